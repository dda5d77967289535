"""Is a run what was computed?  Every file alone, then one against the other, then some once more.

What is derived (curves, overlap, report) is held against the unit files, these against the
manifest and their own records, the image list against the manifest's hash; and where the model and
the images are at hand the held-out accuracy of some circuits is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from circuitcore.analysis.evaluation import prepared_run
from circuitcore.analysis.overlap import FILE, device_of, pairs_table
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.errors import CircuitcoreError, DeviceError, InputError
from circuitcore.extraction.agreement import agreement_on
from circuitcore.extraction.judging import judges
from circuitcore.extraction.opened import means_kept
from circuitcore.inputs.read import InHand
from circuitcore.jobs.job import finish
from circuitcore.jobs.reproduce import not_reproduced
from circuitcore.machine.device import machine
from circuitcore.progress import Progress
from circuitcore.records import Category, Found, Target
from circuitcore.runs.circuitfile import StoredCircuit, read_circuit
from circuitcore.runs.folder import AGAIN, MANIFEST, RunFolder, canonical, create_run
from circuitcore.runs.intact import damaged, set_aside
from circuitcore.runs.means import MEANS, means_lost
from circuitcore.runs.tables import CURVES, IMAGES, OF, curves_table, read_table

SAMPLE = 1  # circuits whose accuracy is computed again
ROUNDING = 1e-4  # of the spread of logits: decisions this close may differ between machines


def verify(
    run: RunFolder, progress: Progress, given: InHand | None = None, *, sample: int = SAMPLE
) -> list[str]:
    """What is wrong with a run, one line each; empty if it is intact.

    ``sample``: of how many circuits the held-out accuracy is computed again, where the model and
    images can be had (else that is noted).  Cost: all files are read; the overlap of all pairs;
    with a sample, what `prepare` costs and a pass over the held-out images a circuit.
    """
    broken = damaged(run.folder, progress)
    problems = [f"{path}: {said}" for path, said in broken.items()]
    units = {unit: path for unit, path in run.units().items() if path not in broken}
    for unit, path in units.items():
        found = _unit_problems(run, unit, read_circuit(path))
        problems += [f"{path}: {said}" for said in found]
    known = set(run.units().values())
    for path in sorted(run.folder.glob("units/*/*.safetensors")):
        if path not in known and path not in broken:
            problems.append(f"{path}: belongs to no category of this run")
    problems += _images_problems(run, broken)
    if units and means_lost(run.folder, run.manifest):
        problems.append(f"{run.folder / MEANS}: missing; {AGAIN}")
    if not problems:
        records = run.records()
        problems += _derived_problems(run, records)
        if sample and not problems:
            problems += _recomputed(run, records, sample, progress, given)
    return problems


def repair(run: RunFolder, progress: Progress, given: InHand | None = None) -> list[str]:
    """Set aside what is damaged, make anew what is derived; what is left to do, a line each.

    The image list, and the means that pruned weights carry, are made anew where the run's model and
    images can be had.
    """
    for path, why in damaged(run.folder).items():
        set_aside(run.folder, path, why, progress.note)
    left = []
    lost = [run.folder / MEANS] if means_lost(run.folder, run.manifest) else []
    lost += [path for path in (run.folder / IMAGES,) if not path.exists()]
    if lost:
        try:
            inputs_again(run, progress, given)
        except (CircuitcoreError, OSError) as error:
            left += [f"{path}: not made anew: {_line(error)}; {AGAIN}" for path in lost]
    finish(run, progress)
    missing = len(run.manifest["categories"]) - len(run.units())
    if missing:
        progress.note(f"{missing} categories are not there; the same sweep makes those it names")
    return left + verify(run, progress, given, sample=0)


def inputs_again(run: RunFolder, progress: Progress, given: InHand | None) -> None:
    """Read the run's inputs anew, hold them against its manifest, and keep what is of them."""
    from circuitcore.inputs.read import read_inputs

    options = run.options()
    inputs = read_inputs(options, given)
    inputs.tell(progress)
    on = machine(options)
    create_run(run.folder, inputs, options, on.device)
    means_kept(run, inputs, options, on, progress)


def _unit_problems(run: RunFolder, unit: int, stored: StoredCircuit) -> Iterator[str]:
    """What in a unit file does not fit the manifest, or its record its masks."""
    record = stored.record
    name = next(c["name"] for c in run.manifest["categories"] if c["index"] == unit)
    if (record.index, record.category) != (unit, name):
        yield f"is of {record.category!r} ({record.index}), not of {name!r} ({unit})"
    for stage in record.stages:
        kept = [level.kept_weights for level in stage.levels]
        if any(low > high for high, low in zip(kept, kept[1:], strict=False)):
            yield f"the {stage.stage} stage's levels are not nested: kept weights grow"
        if not 0 <= stage.chosen < len(kept):
            yield f"the {stage.stage} stage has no level {stage.chosen}"
            return
    if record.circuit is None:
        if stored.kept:
            yield "has masks and no circuit"
        return
    weights = sum(mask.numel() for mask in stored.kept.values())
    bits = sum(int(mask.sum()) for mask in stored.kept.values())
    if bits != record.circuit.kept_weights:
        yield f"its masks keep {bits:,} weights, its record {record.circuit.kept_weights:,}"
    chosen = sum(stage.levels[stage.chosen].kept_weights for stage in record.stages)
    if chosen != record.circuit.kept_weights:
        yield f"its chosen levels keep {chosen:,} weights, its circuit {bits:,}"
    relevant = sum(stage.relevant_weights for stage in record.stages)
    if relevant != weights or relevant != run.manifest["model"]["relevant_weights"]:
        yield f"its masks are of {weights:,} weights, its stages of {relevant:,}"


def _images_problems(run: RunFolder, broken: dict[Path, str]) -> Iterator[str]:
    path = run.folder / IMAGES
    if path in broken:
        return
    if not path.exists():
        yield f"{path}: missing; {AGAIN}"
        return
    rows = read_table(path).to_pylist()
    by_name = {c["name"]: c["index"] for c in run.manifest["categories"]}
    several = len(by_name) < len(run.manifest["categories"])
    if run.of_targets or several or run.manifest["configuration"].get("images_sha256") is None:
        return  # rows name no unit, or not one alone
    try:
        images = sorted((row["split"], by_name[row["category"]], row["sha256"]) for row in rows)
    except KeyError as error:
        yield f"{path}: no {error} in the run"
        return
    if (
        hashlib.sha256(canonical(images)).hexdigest()
        != run.manifest["configuration"]["images_sha256"]
    ):
        yield f"{path}: lists other images than {MANIFEST} was made with"


def _derived_problems(run: RunFolder, records: Sequence[Found]) -> Iterator[str]:
    """Tables that say they are of these very circuits, held against them."""
    contents = run.contents()
    made = {
        CURVES: lambda: curves_table(records, contents),
        FILE: lambda: pairs_table(run, records),
    }
    for name, make in made.items():
        path = run.folder / name
        if not path.exists():
            continue
        found = read_table(path)
        if (found.schema.metadata or {}).get(OF) != contents.encode():
            continue  # of what was there before: a sweep cut short; made anew when it is asked for
        if not _equal(found, make()):
            yield f"{path}: not what its circuits give; circuitcore verify --repair makes it anew"
    if (said := not_reproduced(run)) is not None:
        yield said


def _equal(a: pa.Table, b: pa.Table) -> bool:
    return bool(a.column_names == b.column_names and a.cast(b.schema).equals(b))


def _recomputed(
    run: RunFolder,
    records: Sequence[Found],
    sample: int,
    progress: Progress,
    given: InHand | None,
) -> list[str]:
    """Held-out accuracy of some circuits, computed again; nothing where that cannot be done."""
    some = [record for record in records if record.circuit is not None]
    step = max(len(some) // sample, 1)
    some = some[::step][:sample]
    if not some:
        return []
    try:
        _, prepared = prepared_run(run.folder, progress, given, device=device_of(run))
    except (InputError, DeviceError, OSError) as error:
        progress.note(f"no accuracy is computed again: {_line(error)}")
        return []
    found = []
    for record in some:
        path = run.path(record.index)
        said = _heldout_problem(prepared, record, read_circuit(path))
        found += [f"{path}: {said}"] if said else []
    return found


def _heldout_problem(prepared: Prepared, record: Found, stored: StoredCircuit) -> str | None:
    device = prepared.runner.machine.device
    kept = {layer: mask.to(device) for layer, mask in stored.kept.items()}
    values = activations(prepared.runner, prepared.heldout, record.index, kept)
    assert record.circuit is not None
    if isinstance(record, Target):
        wanted = record.circuit.heldout
        again = agreement_on(prepared, record.index, None, values).heldout
        same = again == wanted or (
            again is not None and wanted is not None and abs(again - wanted) < ROUNDING
        )
        return None if same else f"its held-out agreement is {again}, recorded {wanted}"
    return _accuracy_problem(prepared, record, values)


def _accuracy_problem(prepared: Prepared, record: Category, values: torch.Tensor) -> str | None:
    """Hits and false alarms grow with the bias: a little less and a little more enclose them."""
    assert record.circuit is not None
    heldout, judge = record.circuit.heldout, judges(prepared, record.index)[1]
    near = ROUNDING * float(judge.unpruned.double().std()) + ROUNDING
    low, high = (judge.at(values, heldout.bias + d) for d in (-near, near))
    hits = low.hit <= heldout.hit <= high.hit
    if hits and low.false_alarms <= heldout.false_alarms <= high.false_alarms:
        return None
    return (
        f"held out it hits {low.hit:.4f} with {low.false_alarms} false alarms, "
        f"recorded are {heldout.hit:.4f} and {heldout.false_alarms}"
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

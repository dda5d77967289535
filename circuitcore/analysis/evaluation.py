"""The evaluation step alone: a run's circuits judged again, on its own or other held-out images.

Beside every circuit stand the unpruned network, a random mask that keeps as many weights of each
layer, and the empty circuit, each with a bias of its own.  Biases are *frozen* where they were
fitted on the run's own extraction set.  On other images (transfer) they are *refitted* too, by the
run's own rule on the other images' extraction set, and judged on their held-out set: what is lost
with frozen biases and comes back with refitted ones was a shift of activations alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from circuitcore.analysis.targets import TargetEvaluation, evaluated
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Split
from circuitcore.errors import InputError
from circuitcore.extraction.accuracy import Judge, ratio
from circuitcore.extraction.floor import random_mask
from circuitcore.extraction.judging import empty_activation, judge_of, judges
from circuitcore.extraction.opened import prepared_in
from circuitcore.inputs.image_files import Images
from circuitcore.inputs.read import IN_HAND, InHand, Inputs, read_inputs
from circuitcore.machine.device import machine
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.records import Accuracy, Category, Target
from circuitcore.runs.circuitfile import StoredCircuit, read_circuit, read_record
from circuitcore.runs.folder import (
    RunFolder,
    canonical,
    configuration,
    create_run,
    open_run,
)
from circuitcore.scoring.seeds import unit_seed

PLACE, BIASES = "transfer", "random.json"


class Beside(BaseModel):
    """A circuit on a held-out set beside what it is held against, each with a bias of its own.

    ``csa_ratio``: circuit over ``unpruned``; ``over_random``, ``over_empty``: CSA of the circuit
    minus that of the ``random`` mask, of the ``empty`` circuit; bootstrap 95 % intervals over
    images, paired (of one random mask, not over draws).  None where a bias is not known.
    """

    model_config = ConfigDict(frozen=True)

    circuit: Accuracy
    unpruned: Accuracy
    csa_ratio: float | None
    csa_ratio_ci95: tuple[float, float] | None
    random: Accuracy | None
    over_random: float | None
    over_random_ci95: tuple[float, float] | None
    empty: Accuracy | None
    over_empty: float | None
    over_empty_ci95: tuple[float, float] | None


class _Named(BaseModel):
    """Of which category, on how many held-out images."""

    category: str
    images: int


class EvaluateRow(Beside, _Named):
    """One circuit with frozen biases on a held-out set, and on other images with refitted ones.

    ``unpruned``: at the bias fitted to it on the extraction set, as the sweep's ratio has it.
    ``refitted``: biases fitted on the other images' own extraction set (a matched one to the
    unpruned network's false alarms there); None on the run's own images.
    """

    refitted: Beside | None


def evaluate(
    run: Path,
    images: str | Images | None,
    progress: Progress,
    given: InHand | None = None,
    **engine: Any,
) -> list[EvaluateRow] | list[TargetEvaluation]:
    """Judge every circuit of a run on its held-out images, or on those of another folder.

    ``images``: a folder in ImageNet's layout with the same categories; its split is made with the
    run's own counts.  Rows of other images are kept in the run folder, so that another call goes
    on.  Cost: of a circuit and a random mask each a pass over the held-out images, on other images
    over both sets; once a run a pass of the random mask over the run's extraction images.  Raises
    InputError where the folder or the model does not fit the run.
    """
    biases: dict[str, float] = {}
    of_targets = open_run(run).of_targets
    if images is not None and not of_targets:
        biases = _own_biases(run, progress, given, engine)
    opened, prepared = prepared_run(run, progress, given, images, **engine)
    if images is None and not of_targets:
        biases = _random_biases(opened, prepared, progress)
    present = {c.index for c in prepared.inputs.categories}
    units = {unit: path for unit, path in circuits_of(opened).items() if unit in present}
    file = None if images is None or of_targets else _file(opened, prepared)
    kept = {} if file is None else _kept(file, biases)
    missing = sum(path.stem not in kept for path in units.values())
    if missing and not of_targets:
        sets = len(prepared.heldout) + (0 if images is None else len(prepared.extraction))
        _say(prepared, f"{missing} circuits and as many random masks", 2 * missing, sets, progress)
    progress.start("circuits", len(units))
    rows: list[Any] = []
    for path in units.values():
        stored = read_circuit(path)
        record = stored.record
        if isinstance(record, Target):
            rows.append(evaluated(prepared, record, stored.kept))
        elif path.stem in kept:
            rows.append(kept[path.stem])
        else:
            row = _row(prepared, record, stored, biases.get(path.stem), images is not None)
            rows.append(row)
            if file is not None:
                kept[path.stem] = row
                _keep(file, prepared.inputs.source.place, kept)
        progress.advance(1, record.category)
    return rows


def circuits_of(run: RunFolder) -> dict[int, Path]:
    """Files of the categories or targets that have a circuit."""
    units = run.units().items()
    return {unit: path for unit, path in units if read_record(path)[1].circuit is not None}


def cost_of(prepared: Prepared, passes: int, images: int) -> str:
    """What so many passes over so many images cost at most, in the unit of all costs."""
    work = passes * images * prepared.runner.sizes.multiply_adds
    fpe = passes * images / len(prepared.extraction)
    return f"at most {fpe:.1f} FPE ({work:.2g} multiply-adds)"


def _say(prepared: Prepared, what: str, passes: int, images: int, progress: Progress) -> None:
    """What is to be run, and its cost."""
    progress.note(f"{what}: passes over {images:,} images, {cost_of(prepared, passes, images)}")


def _row(
    prepared: Prepared,
    record: Category,
    stored: StoredCircuit,
    random_bias: float | None,
    refit: bool,
) -> EvaluateRow:
    unit, options = record.index, prepared.options
    extraction, heldout = judges(prepared, unit)
    masks = _masks(prepared, unit, stored.kept)
    found = _values(prepared, prepared.heldout, unit, masks) | {"unpruned": heldout.unpruned}
    seed = unit_seed(options.seed, unit)
    frozen = {
        "circuit": None if record.circuit is None else record.circuit.bias,
        "unpruned": record.unpruned.extraction_biased.bias,
        "random": random_bias,
        "empty": None if record.empty is None else record.empty.extraction.bias,
    }
    refitted = None
    if refit:
        there = _values(prepared, prepared.extraction, unit, masks)
        there["unpruned"] = extraction.unpruned
        fits = extraction.fitted(torch.stack(list(there.values())), options.bias)
        biases = {name: fit.bias for name, fit in zip(there, fits, strict=True)}
        refitted = Beside(**_beside(heldout, found, biases, seed))
    return EvaluateRow(
        category=record.category,
        images=len(prepared.heldout),
        **_beside(heldout, found, frozen, seed),
        refitted=refitted,
    )


def _masks(prepared: Prepared, unit: int, kept: Mapping[str, Tensor]) -> dict[str, Any]:
    """The circuit and its random mask on the device; that is drawn on the CPU, alike everywhere."""
    both = {"circuit": kept, "random": random_mask(prepared, unit, kept)}
    device = prepared.runner.machine.device
    return {
        name: {layer: mask.to(device) for layer, mask in each.items()}
        for name, each in both.items()
    }


def _values(
    prepared: Prepared, split: Split, unit: int, masks: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Target activations by name, float32 [N] each: of masks, of the empty circuit."""
    found = {name: activations(prepared.runner, split, unit, mask) for name, mask in masks.items()}
    return found | {"empty": empty_activation(prepared.inputs.model.network, unit, split)}


def _beside(
    judge: Judge, values: Mapping[str, Tensor], biases: Mapping[str, float | None], seed: int
) -> dict[str, Any]:
    """Fields of `Beside`: activations on the judge's images, each with its bias."""
    known = {name: bias for name, bias in biases.items() if bias is not None}
    said = {name: judge.predicted(values[name], bias) for name, bias in known.items()}
    at = {name: judge.of(said[name], bias) for name, bias in known.items()}
    own, unpruned = at["circuit"].csa, at["unpruned"].csa
    interval = None
    if unpruned > 0:
        circuit, bias = values["circuit"], known["circuit"]
        interval = judge.ratio_interval(circuit, bias, seed, known["unpruned"])
    found: dict[str, Any] = {**at, "csa_ratio": ratio(own, unpruned), "csa_ratio_ci95": interval}
    for name in ("random", "empty"):
        there = name in at
        both = [said["circuit"], said[name]] if there else []
        ends = judge.difference_intervals(both, [(0, 1)], seed)[0] if there else None
        found |= {
            name: at.get(name),
            f"over_{name}": own - at[name].csa if there else None,
            f"over_{name}_ci95": ends,
        }
    return found


def _own_biases(
    run: Path, progress: Progress, given: InHand | None, engine: Mapping[str, Any]
) -> dict[str, float]:
    """`_random_biases`, for which the run's own images are needed unless all are kept.

    Where those cannot be read, what is kept: the user is told.
    """
    opened = open_run(run)
    kept = _kept_biases(opened)
    if all(path.stem in kept for path in circuits_of(opened).values()):
        return kept
    try:
        opened, own = prepared_run(run, progress, given, **engine)
    except InputError as error:
        said = str(error).splitlines()[0]
        progress.note(f"random masks have no frozen bias without the run's own images: {said}")
        return kept
    return _random_biases(opened, own, progress)


def _random_biases(run: RunFolder, own: Prepared, progress: Progress) -> dict[str, float]:
    """Bias of each circuit's random mask, fitted on the run's own extraction set, by file's stem.

    ``own``: of the run's own images.  Kept in the run folder.
    """
    biases = _kept_biases(run)
    missing = {unit: path for unit, path in circuits_of(run).items() if path.stem not in biases}
    if missing:
        images = len(own.extraction)
        _say(own, f"biases of {len(missing)} random masks", len(missing), images, progress)
        progress.start("random masks", len(missing))
    for unit, path in missing.items():
        stored = read_circuit(path)
        judge = judge_of(own.extraction, unit, own.options.false_alarm_norm)
        mask = _masks(own, unit, stored.kept)["random"]
        values = activations(own.runner, own.extraction, unit, mask)
        biases[path.stem] = judge.fitted(values[None], own.options.bias)[0].bias
        write_atomically(run.folder / PLACE / BIASES, sealed(biases))
        progress.advance(1, stored.record.category)
    return biases


def _kept_biases(run: RunFolder) -> dict[str, float]:
    try:
        found = read_sealed(run.folder / PLACE / BIASES)
        return {str(stem): float(bias) for stem, bias in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: made anew
        return {}


def _file(run: RunFolder, other: Prepared) -> Path:
    """Where rows of these other images are kept."""
    config = configuration(other.inputs, other.options)
    return run.folder / PLACE / f"{hashlib.sha256(canonical(config)).hexdigest()[:16]}.json"


def _kept(file: Path, biases: Mapping[str, float]) -> dict[str, EvaluateRow]:
    """Rows by the circuits' files; not those whose random mask had no bias and has one now."""
    try:
        found = read_sealed(file)["circuits"]
        rows = {stem: EvaluateRow(**row) for stem, row in found.items()}
    except (OSError, ValueError, KeyError, TypeError, ValidationError):  # or damaged: made anew
        return {}
    return {s: row for s, row in rows.items() if row.random is not None or s not in biases}


def kept_transfers(run: RunFolder) -> list[tuple[str, list[EvaluateRow]]]:
    """Where other images were, and the rows of them that were kept of circuits still there."""
    stems, found = {path.stem for path in run.units().values()}, []
    for file in sorted((run.folder / PLACE).glob("*.json")):
        rows = [row for stem, row in _kept(file, {}).items() if stem in stems]
        if rows:
            found.append((str(read_sealed(file)["images"]), rows))
    return found


def _keep(file: Path, images: str, rows: Mapping[str, EvaluateRow]) -> None:
    circuits = {stem: row.model_dump(mode="json") for stem, row in rows.items()}
    document = {"images": images, "circuits": circuits}
    write_atomically(file, sealed(document))


def prepared_run(
    folder: Path,
    progress: Progress,
    given: InHand | None = None,
    images: str | Images | None = None,
    **changes: Any,
) -> tuple[RunFolder, Prepared]:
    """A run and what its categories share, decoded anew, to evaluate its circuits.

    ``given``: a model and images of the run that came in hand; ``images``: others than the run's,
    a folder or in hand, split with the run's own counts.  Raises InputError
    where the model, or without ``images`` the images, are not those of the run.
    """
    given = given or InHand()
    if images is None:
        run, inputs, options = inputs_of(folder, given, **changes)
        inputs.tell(progress)
        return run, prepared_in(run, inputs, options, machine(options), progress)
    run = open_run(folder)
    if isinstance(images, str):
        changes["images"], given = images, InHand(given.model)
    else:
        changes["images"], given = IN_HAND, InHand(given.model, images)
    options = run.options(**changes)
    on = machine(options)
    inputs = read_inputs(options, given)
    if inputs.model.sha256 != run.manifest["model"]["weights_sha256"]:
        raise InputError(f"{folder}: the model's weights are not those of the run (sha256 differs)")
    inputs.tell(progress)
    return run, prepared_in(run, inputs, options, on, progress, own=False)


def inputs_of(
    folder: Path, given: InHand | None = None, **changes: Any
) -> tuple[RunFolder, Inputs, Options]:
    """A run with its own inputs, read anew and held against it; no image is decoded.

    Raises InputError where model or images are not those of the run.
    """
    run = open_run(folder)
    options = run.options(**changes)
    inputs = read_inputs(options, given or InHand())
    return create_run(folder, inputs, options, machine(options).device), inputs, options

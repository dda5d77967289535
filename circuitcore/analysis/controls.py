"""Controls beside every circuit: masks of the same size that should not do as well.

Each control gets its own best bias on the extraction set, as the circuit did, and is judged on the
held-out set: ``random`` (as many weights a layer, drawn at random), ``weight-magnitude`` (as many
of the largest weights a layer), ``other-category`` (the circuit of the next category, applied to
this unit), ``complement`` (every weight the circuit does not keep), ``empty`` (no weight at all:
the activation is a constant, so whatever CSA is left comes from the free bias against the other
logits of the unpruned network).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.analysis.evaluation import cost_of, inputs_of
from circuitcore.analysis.statistics import bootstrap
from circuitcore.analysis.summary import interval, mean
from circuitcore.analysis.targets import TargetControl, control_rows, controlled
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import ratio
from circuitcore.extraction.floor import random_mask
from circuitcore.extraction.judging import judges
from circuitcore.extraction.opened import prepared_in
from circuitcore.inputs.read import InHand
from circuitcore.machine.device import machine
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.network.forward import target_row
from circuitcore.progress import Progress
from circuitcore.records import Accuracy, Category, Found, Target
from circuitcore.runs.circuitfile import StoredCircuit, read_circuit, read_unit_header

CONTROLS = "controls.json"
MASKS = 6  # of a category, the circuit among them
CIRCUIT = "circuit"


class ControlRow(BaseModel):
    """One control (or the ``circuit`` itself) of one category.

    ``extraction``: with the bias fitted there; ``heldout``: with that bias; ``csa_ratio``: held-out
    CSA over the unpruned network's at its own, fitted alike; ``overlap``: Jaccard with the circuit.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    control: str
    kept_weights: int
    overlap: float
    extraction: Accuracy
    heldout: Accuracy
    csa_ratio: float | None


def controls(
    run: Path, progress: Progress, given: InHand | None = None, **engine: Any
) -> list[ControlRow] | list[TargetControl]:
    """Judge every circuit of a run beside its controls.  Raises what `inputs_of` raises.

    Kept in ``controls.json`` category by category; those that are there, of the same two circuits,
    are not made again.  Cost: a forward pass over extraction and held-out images for each of six
    masks a category; two circuits' masks are held at a time.
    """
    opened, inputs, options = inputs_of(run, given, **engine)
    files = [opened.path(record.index) for record in opened.records() if record.circuit is not None]
    kind = TargetControl if opened.of_targets else ControlRow
    keys = _made_of(files)
    found: dict[str, list[Any]] = {key: [] for key in keys}
    for key, rows in _kept(run).items():
        if key in found:
            found[key] = [kind.model_validate(row) for row in rows]
    missing = [at for at, key in enumerate(keys) if not found[key]]
    if missing:
        inputs.tell(progress)
        prepared = prepared_in(opened, inputs, options, machine(options), progress)
        images = len(prepared.extraction) + len(prepared.heldout)
        count = MASKS * len(missing)
        cost = cost_of(prepared, count, images)
        progress.note(f"{count} masks: passes over {images:,} images, {cost}")
        progress.start("controls", len(missing))
    for at in missing:
        stored = read_circuit(files[at])
        other = read_circuit(files[(at + 1) % len(files)]).kept if len(files) > 1 else None
        found[keys[at]] = _rows(prepared, stored, other)
        keep_controls(run, [row for rows in found.values() for row in rows], found)
        progress.advance(1, stored.record.category)
    return [row for rows in found.values() for row in rows]


def _made_of(files: Sequence[Path]) -> list[str]:
    """What each circuit's controls are made of: its content, and the next one's."""
    each = [read_unit_header(file).sha256 for file in files]
    return [f"{one} {other}" for one, other in zip(each, [*each[1:], *each[:1]], strict=True)]


def _kept(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of ``controls.json`` by what they are made of; none of an earlier version's."""
    try:
        found = read_sealed(run / CONTROLS)
        rows = iter(found["rows"])
        return {key: list(islice(rows, count)) for key, count in found["of"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _rows(
    prepared: Prepared, stored: StoredCircuit, other: Mapping[str, Tensor] | None
) -> list[Any]:
    """A circuit beside its controls; ``other``: another category's circuit, if there is one."""
    device = prepared.runner.machine.device
    kept = {name: mask.to(device) for name, mask in stored.kept.items()}
    masks = {CIRCUIT: kept, **_masks(prepared, stored.record.index, kept)}
    if other is not None:
        masks["other-category"] = {n: m.to(device) for n, m in other.items()}
    return [_row(prepared, stored.record, control, mask, kept) for control, mask in masks.items()]


def _masks(prepared: Prepared, unit: int, kept: Mapping[str, Tensor]) -> dict[str, dict]:
    network = prepared.runner.network
    weights = {**network.weights, **target_row(network, unit).weights}
    largest, rest, empty = {}, {}, {}
    for layer, mask in kept.items():
        largest[layer] = _highest(weights[layer].abs().flatten(), mask)
        rest[layer] = ~mask
        empty[layer] = torch.zeros_like(mask)
    drawn = random_mask(prepared, unit, kept)
    return {"random": drawn, "weight-magnitude": largest, "complement": rest, "empty": empty}


def _highest(values: Tensor, like: Tensor) -> Tensor:
    """A mask of as many entries as ``like`` keeps, those of the highest values."""
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[values.topk(int(like.sum())).indices] = True
    return mask.view(like.shape)


def _row(
    prepared: Prepared,
    record: Found,
    control: str,
    mask: Mapping[str, Tensor],
    circuit: Mapping[str, Tensor],
) -> ControlRow | TargetControl:
    both = sum(int((mask[n] & circuit[n]).sum()) for n in circuit)
    either = sum(int((mask[n] | circuit[n]).sum()) for n in circuit)
    overlap = both / either if either else 0.0
    if isinstance(record, Target):
        return controlled(prepared, record, control, mask, overlap)
    return _category_row(prepared, record, control, mask, overlap)


def _category_row(
    prepared: Prepared,
    record: Category,
    control: str,
    mask: Mapping[str, Tensor],
    overlap: float,
) -> ControlRow:
    unit, own = record.index, record.unpruned.extraction_biased.bias
    judge, heldout_judge = judges(prepared, unit)
    on_extraction = activations(prepared.runner, prepared.extraction, unit, mask)
    extraction = judge.fitted(on_extraction[None], prepared.options.bias)[0]
    on_heldout = activations(prepared.runner, prepared.heldout, unit, mask)
    heldout = heldout_judge.at(on_heldout, extraction.bias)
    unpruned = heldout_judge.at(heldout_judge.unpruned, own)
    return ControlRow(
        category=record.category,
        control=control,
        kept_weights=sum(int(m.sum()) for m in mask.values()),
        overlap=overlap,
        extraction=extraction,
        heldout=heldout,
        csa_ratio=ratio(heldout.csa, unpruned.csa),
    )


def keep_controls(
    run: Path, rows: Sequence[BaseModel], of: Mapping[str, Sequence[BaseModel]] | None = None
) -> None:
    """Write ``controls.json`` into a run folder, where the next report finds it.

    ``of``: the same ``rows`` by what they are made of, so that they are known again.
    """
    document: dict[str, Any] = {"rows": [row.model_dump(mode="json") for row in rows]}
    if of is not None:
        document["of"] = {key: len(each) for key, each in of.items()}
    write_atomically(run / CONTROLS, sealed(document))


def control_means(run: Path) -> list[dict[str, Any]]:
    """Means over categories of each kind of control; none where no controls were run.

    ``difference``: mean held-out CSA of the circuit less the control's, with a bootstrap 95 %
    interval over categories, each circuit beside its own control; None of the circuits themselves.
    """
    rows = control_rows(run / CONTROLS)
    means = []
    circuits = [row["heldout"]["csa"] for row in rows if row["control"] == CIRCUIT]
    for kind in dict.fromkeys(row["control"] for row in rows):
        mine = [row for row in rows if row["control"] == kind]  # of the categories in their order
        csas = [row["heldout"]["csa"] for row in mine]
        paired = [one - other for one, other in zip(circuits, csas, strict=True)]
        own = kind == CIRCUIT
        means.append(
            {
                "control": kind,
                "csa": mean(csas),
                "csa_ci95": interval(csas, most=1.0),
                "hit": mean([row["heldout"]["hit"] for row in mine]),
                "overlap": mean([row["overlap"] for row in mine]),
                "difference": None if own else mean(paired),
                "difference_ci95": None if own else bootstrap(paired, len(paired)),
            }
        )
    return means

"""`stability RUN`: the circuits of a run from scoring images drawn again, kept beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitcore.analysis.resampling import kept as kept_rows
from circuitcore.analysis.resampling.choice import choices
from circuitcore.analysis.resampling.counts import ResampledRow, rows_of
from circuitcore.analysis.resampling.drawing import Drawing
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.categories import select
from circuitcore.inputs.read import InHand, Inputs, read_inputs
from circuitcore.machine.device import Machine, machine
from circuitcore.machine.scratch import Scratch
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.records import Category
from circuitcore.runs.circuitfile import packed_bits, read_circuit, read_record
from circuitcore.runs.folder import RunFolder, create_run, open_run
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import Contribution
from circuitcore.scoring.seeds import unit_seed


def resample(
    folder: Path,
    wanted: Sequence[str | int],
    progress: Progress,
    given: InHand | None = None,
    *,
    resamples: int = 100,
    pool: int = 32,
    certify: int | None = None,
    **engine: Any,
) -> list[ResampledRow]:
    """Draw the scoring images of a run's circuits again; rows of the whole circuit and its layers.

    Kept in the run folder category by category, so that another call goes on.  Raises UsageError
    for numbers that do not fit and runs of other targets, InputError where a category has fewer
    training images than ``pool`` or one of them chose or tested a circuit.
    """
    run, inputs, options, on = _opened(folder, given, pool, engine)
    network = inputs.model.network.to(on.device)
    drawing = Drawing(resamples, pool, options.scoring_images, certify)
    drawing.check(network.relevant())
    units = run.units()
    chosen = [c for c in select(inputs.categories, wanted) if c.index in units]
    settings = _settings(drawing)
    kept = kept_rows.read(run.folder, settings)
    left = sum(units[c.index].stem not in kept for c in chosen)
    if left:
        progress.note(
            f"{left} circuits from images drawn {resamples} times: a pass of {pool} images each, "
            f"then {resamples} selections among {network.relevant():,} weights"
        )
    progress.start("resamples", len(chosen))
    rows = []
    for category in chosen:
        key = units[category.index].stem
        if key not in kept:
            stored = read_circuit(units[category.index])
            if isinstance(stored.record, Category) and stored.record.circuit is not None:
                images = inputs.scoring_images(category.index, on.device)
                found = scored_by(network, images, category.index, options)
                made = _resampled(network, found, stored.record, stored.kept, options, drawing)
                kept[key] = [row.model_dump() for row in made]
                kept_rows.keep(run.folder, settings, kept)
        rows += _beside_choices(kept.get(key, []), units[category.index], options, run.manifest)
        progress.advance(1, category.name)
    return rows


def _beside_choices(
    kept: Sequence[Mapping[str, Any]], path: Path, options: Options, manifest: Mapping[str, Any]
) -> list[ResampledRow]:
    """Rows as they are kept, that of the whole circuit with the ceilings of its choice of level."""
    rows = [ResampledRow(**row) for row in kept]
    record = read_record(path)[1]
    if not rows or not isinstance(record, Category):
        return rows
    whole = choices(record, options, manifest)[0]
    ceilings = {
        "threshold_ceiling": whole.threshold_ceiling,
        "extraction_ceiling": whole.extraction_ceiling,
    }
    return [row if row.layer else row.model_copy(update=ceilings) for row in rows]


def _opened(
    folder: Path, given: InHand | None, pool: int, engine: Mapping[str, Any]
) -> tuple[RunFolder, Inputs, Options, Machine]:
    """The run, its options, and its inputs with the pool in the place of the scoring images."""
    run = open_run(folder)
    options = run.options(**engine)
    if options.target:
        raise UsageError(f"{folder}: stability --resamples is of categories, not of other targets")
    on = machine(options)
    own = read_inputs(options, given)
    run = create_run(folder, own, options, on.device)
    try:
        pooled = read_inputs(run.options(**engine, scoring_images=pool), given)
    except InputError as error:
        raise InputError(f"--pool {pool}: {error}") from None
    used = {image.sha256 for part in ("extraction", "heldout") for image in own.split(part)}
    both = [image.path for image in pooled.split("scoring") if image.sha256 in used]
    if both:
        raise InputError(
            f"--pool {pool}: {both[0]} and {len(both) - 1} more chose or tested circuits: "
            "the pool must be of other images; give fewer, or images with train/ and val/"
        )
    return run, pooled, options, on


def _resampled(
    network: Network, found: Mapping[str, Contribution], record: Category,
    circuit: Mapping[str, Tensor], options: Options, drawing: Drawing,
) -> list[ResampledRow]:  # fmt: skip
    """Count and compare the circuits of all draws.

    Cost: ``resamples`` selections, then a pass over their bits for the overlaps.
    """
    pruned = {
        stage.stage: stage.relevant_weights - stage.levels[stage.chosen].kept_weights
        for stage in record.stages
    }
    sizes = {name: circuit[name].numel() for name in network.layers() if name in circuit}
    device = next(iter(found.values())).x.device
    counts = {
        name: torch.zeros(circuit[name].shape, dtype=torch.uint8, device=device) for name in sizes
    }
    scratch, masks = Scratch(), drawing.resamples + 1
    bits = {
        name: scratch.array(name, (masks, -(-size // 8)), np.dtype(np.uint8))
        for name, size in sizes.items()
    }
    draws = drawing.draws(unit_seed(options.seed, record.index))
    for place, images in enumerate(draws):
        kept = drawn_circuit(network, found, record.index, pruned, options, images)
        count(kept, counts, bits, place)
    for name in sizes:
        bits[name][-1] = np.packbits(circuit[name].numpy())
    counts = {name: each.cpu() for name, each in counts.items()}
    return rows_of(record.category, counts, circuit, bits, drawing, str(device))


def count(
    kept: Mapping[str, Tensor], counts: Mapping[str, Tensor], bits: Mapping[str, np.ndarray],
    place: int,
) -> None:  # fmt: skip
    """Add a drawn circuit to ``counts``, where it lies, and its packed masks to ``bits``.

    From a GPU a bit a weight crosses, all layers in one copy.
    """
    for name, ones in kept.items():
        counts[name].add_(ones.view(counts[name].shape))
    packed = packed_bits({name: ones.view(torch.bool) for name, ones in kept.items()})
    for name, one in packed.items():
        bits[name][place] = one.numpy()


def drawn_circuit(
    network: Network, found: Mapping[str, Contribution], unit: int, pruned: Mapping[str, int],
    options: Options, images: np.ndarray,
) -> dict[str, Tensor]:  # fmt: skip
    """The circuit from some of the pool's images: uint8 on the device, 1 where a weight is kept.

    ``found``: of the whole pool; ``pruned``: weights by stage; ``images`` int64, places in the
    pool.  A weight's level byte is 1 where it is kept at the only level: no mask beside it.
    """
    places = torch.from_numpy(images).to(next(iter(found.values())).x.device)
    drawn = {name: each.of(places) for name, each in found.items()}
    kept: dict[str, Tensor] = {}
    for stage, count in pruned.items():
        levels = stage_levels(network, stage, drawn, unit, options, [count]).levels
        kept |= levels
    return kept


def _settings(drawing: Drawing) -> dict[str, Any]:
    return {
        "resamples": drawing.resamples, "pool": drawing.pool,
        "drawn": drawing.drawn, "certify": drawing.replaced,
    }  # fmt: skip

"""How sure a circuit is: the same category's circuits from scoring images drawn again.

Scoring images are drawn anew from a pool of training images, weights ranked anew, and as many
pruned as the circuit prunes.  Activations and gradients of the pool are computed once: a resample
costs one exact selection at one level.  Held are a byte a weight for the counts and one for the
mask; the resampled masks, bit-packed, go to scratch for their overlaps.

A weight is *core* where at least 95 % of the resamples keep it, *never* kept where at most 5 % do,
*contingent* between.  The mean overlap of the resampled circuits is the *ceiling* of every overlap
between categories.  *Certified* weights are kept by a majority of draws whichever images of the
pool are replaced (Certified Circuits, arXiv 2602.22968): see `statistics.least_count`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.analysis.statistics import least_count, most_replaced
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.categories import select
from circuitcore.inputs.read import InHand, Inputs, read_inputs
from circuitcore.kernels.overlap.operation import overlap_counts_mapped
from circuitcore.machine.device import Machine, machine
from circuitcore.machine.files import write_atomically
from circuitcore.machine.scratch import Scratch
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.records import Category
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import RunFolder, create_run, open_run
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import Contribution
from circuitcore.scoring.seeds import unit_seed

FILE = "resamples.json"
MOST = 255  # resamples: a count is a byte
CORE, NEVER = 0.95, 0.05  # of the resamples
ERROR = 0.01  # chance that a certificate is wrong: of any weight, or of each
WHOLE = ""  # stands for the layer in the row of all of them


@dataclass(frozen=True)
class Drawing:
    """``resamples`` times ``drawn`` scoring images of a ``pool``; ``replaced`` ones certified."""

    resamples: int
    pool: int
    drawn: int
    replaced: int | None

    def draws(self, seed: int) -> list[np.ndarray]:
        """Places in the pool of the images of each resample, int64 [drawn]."""
        generator = np.random.default_rng([seed, self.pool])
        return [
            np.sort(generator.choice(self.pool, self.drawn, replace=False))
            for _ in range(self.resamples)
        ]

    def check(self, relevant: int) -> None:
        """Raises UsageError where a number does not fit, or nothing could be certified."""
        if not 2 <= self.resamples <= MOST:
            raise UsageError(f"--resamples: {self.resamples}, 2 to {MOST} are possible")
        if self.pool <= self.drawn:
            raise UsageError(
                f"--pool: {self.pool} images, and {self.drawn} (--scoring-images of the run) are "
                "drawn of them each time: give more"
            )
        if self.replaced is None:
            return
        most = most_replaced(self.resamples, self.pool, self.drawn, ERROR / relevant)
        if not 1 <= self.replaced <= most:
            can = f"at most {most}" if most else "none"
            raise UsageError(
                f"--certify: {self.replaced} of {self.pool} images replaced; with {self.resamples} "
                f"resamples of {self.drawn} {can} can be certified over {relevant:,} weights"
            )


class ResampledRow(BaseModel):
    """One layer of one circuit, or all (``layer`` empty), over the resamples.

    ``relevant`` weights, of which the circuit keeps ``kept``; ``core``, ``contingent`` and
    ``never`` are parts of the relevant.  ``ceiling``: mean overlap of two resampled circuits, with
    the smallest and largest; ``chance``: that of independent masks of the circuit's densities;
    ``overlap``: mean overlap of a resampled circuit with the circuit.  ``majority``:
    weights that over half of the resamples keep; ``certified`` of them, ``circuit_certified`` of
    the circuit, with a chance of error of 1 % over all weights (``each_``: for each weight).
    """

    model_config = ConfigDict(frozen=True)

    category: str
    layer: str
    relevant: int
    kept: int
    core: float
    contingent: float
    never: float
    ceiling: float | None
    ceiling_min: float | None
    ceiling_max: float | None
    chance: float | None
    overlap: float | None
    majority: int
    certified: float | None
    circuit_certified: float | None
    each_certified: float | None
    each_circuit_certified: float | None


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
    kept = _kept(run, drawing)
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
                _keep(run, drawing, kept)
        rows += [ResampledRow(**row) for row in kept.get(key, [])]
        progress.advance(1, category.name)
    return rows


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
        stage.stage: [stage.relevant_weights - stage.levels[stage.chosen].kept_weights]
        for stage in record.stages
    }
    layers = {name: stage for stage in pruned for name in network.layers(stage)}
    counts = {name: torch.zeros(circuit[name].shape, dtype=torch.uint8) for name in layers}
    scratch = Scratch()
    bits = {
        name: scratch.array(
            name, (drawing.resamples + 1, -(-circuit[name].numel() // 8)), np.dtype(np.uint8)
        )
        for name in layers
    }
    for draw, chosen in enumerate(drawing.draws(unit_seed(options.seed, record.index))):
        images = torch.from_numpy(chosen).to(found[network.last].x.device)
        drawn = {name: c.of(images) for name, c in found.items()}
        for stage, count in pruned.items():
            levels = stage_levels(network, stage, drawn, record.index, options, count)
            for name, mask in levels.kept(0).items():
                own = mask.cpu()
                counts[name] += own.view(counts[name].shape)
                bits[name][draw] = np.packbits(own.numpy())
    for name in layers:
        bits[name][-1] = np.packbits(circuit[name].numpy())
    return _rows(record.category, counts, circuit, bits, drawing)


@dataclass(frozen=True)
class _Counts:
    """Of a layer, or all: ``kept_by[c]``: weights that c of R resamples keep, ``inside`` those of
    the circuit; ``both`` int64 [R + 1, R + 1]: weights that two masks share, the circuit's last;
    ``chance``: intersection and union expected of two independent masks as dense as the circuit.
    """

    kept_by: np.ndarray
    inside: np.ndarray
    both: np.ndarray
    chance: np.ndarray

    @staticmethod
    def of(count: Tensor, circuit: Tensor, bits: np.ndarray) -> _Counts:
        length = len(bits)
        kept_by = torch.bincount(count.view(-1), minlength=length).numpy()
        inside = torch.bincount(count[circuit], minlength=length).numpy()
        both = overlap_counts_mapped(list(bits))[0].numpy()
        p = inside.sum() / count.numel()
        return _Counts(kept_by, inside, both, count.numel() * np.array([p * p, 2 * p - p * p]))

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(
            self.kept_by + other.kept_by, self.inside + other.inside,
            self.both + other.both, self.chance + other.chance,
        )  # fmt: skip


def _rows(
    category: str, counts: Mapping[str, Tensor], circuit: Mapping[str, Tensor],
    bits: Mapping[str, np.ndarray], drawing: Drawing,
) -> list[ResampledRow]:  # fmt: skip
    """The row of all layers, then theirs, from counts and masks."""
    relevant = sum(count.numel() for count in counts.values())
    least: tuple[int | None, int | None] = (None, None)
    if drawing.replaced is not None:
        bounds = drawing.resamples, drawing.pool, drawing.drawn, drawing.replaced
        least = least_count(*bounds, ERROR / relevant), least_count(*bounds, ERROR)
    parts = {name: _Counts.of(count, circuit[name], bits[name]) for name, count in counts.items()}
    whole = reduce(add, parts.values())
    return [_row(category, name, each, least) for name, each in {WHOLE: whole, **parts}.items()]


def _row(
    category: str, layer: str, counts: _Counts, least: tuple[int | None, int | None]
) -> ResampledRow:
    """``least``: fewest resamples that certify a weight, over all weights and each alone."""
    kept_by, inside = counts.kept_by, counts.inside
    resamples, relevant, kept = len(kept_by) - 1, int(kept_by.sum()), int(inside.sum())
    share = np.arange(resamples + 1) / resamples
    sizes = np.diag(counts.both)
    union = sizes[:, None] + sizes[None, :] - counts.both
    overlaps = np.divide(counts.both, union, out=np.full(union.shape, np.nan), where=union > 0)
    pairs = overlaps[:-1, :-1][np.triu_indices(resamples, k=1)]
    pairs, own = pairs[np.isfinite(pairs)], overlaps[-1, :-1][np.isfinite(overlaps[-1, :-1])]
    majority = int(kept_by[share > 0.5].sum())
    expected, either = counts.chance

    def certified(counted: np.ndarray, of: int, count: int | None) -> float | None:
        return None if count is None or not of else float(counted[count:].sum() / of)

    return ResampledRow(
        category=category,
        layer=layer,
        relevant=relevant,
        kept=kept,
        core=float(kept_by[share >= CORE].sum() / relevant),
        contingent=float(kept_by[(share > NEVER) & (share < CORE)].sum() / relevant),
        never=float(kept_by[share <= NEVER].sum() / relevant),
        ceiling=float(pairs.mean()) if len(pairs) else None,
        ceiling_min=float(pairs.min()) if len(pairs) else None,
        ceiling_max=float(pairs.max()) if len(pairs) else None,
        chance=float(expected / either) if either else None,
        overlap=float(own.mean()) if len(own) else None,
        majority=majority,
        certified=certified(kept_by, majority, least[0]),
        circuit_certified=certified(inside, kept, least[0]),
        each_certified=certified(kept_by, majority, least[1]),
        each_circuit_certified=certified(inside, kept, least[1]),
    )


def _settings(drawing: Drawing) -> dict[str, Any]:
    return {
        "resamples": drawing.resamples, "pool": drawing.pool,
        "drawn": drawing.drawn, "certify": drawing.replaced,
    }  # fmt: skip


def _kept(run: RunFolder, drawing: Drawing) -> dict[str, list[dict[str, Any]]]:
    """Rows by the circuits' files as an earlier call with these numbers left them."""
    try:
        found = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        return found["circuits"] if found["settings"] == _settings(drawing) else {}
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: made anew
        return {}


def _keep(run: RunFolder, drawing: Drawing, kept: Mapping[str, Any]) -> None:
    document = {"settings": _settings(drawing), "circuits": kept}
    write_atomically(run.folder / FILE, json.dumps(document, indent=1).encode())


def ceiling(run: RunFolder) -> float | None:
    """Mean ceiling of a run's whole circuits, where `resample` has been there; else None."""
    try:
        found = json.loads((run.folder / FILE).read_text(encoding="utf-8"))["circuits"]
        own = [rows[0]["ceiling"] for stem, rows in found.items() if rows]
        return float(np.mean([each for each in own if each is not None])) if own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

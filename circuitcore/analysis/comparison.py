"""Two runs beside each other: options, circuits, what they reach, areas; B less A throughout.

Categories are matched by name (the folder's where two share one).  Overlap is Jaccard over the
weights of layers of the same name and shape, beside that of independent masks of the same densities
layer by layer (``chance``), the most that two masks of these sizes can have (``most``: a circuit of
a tenth of the weights shares at most a tenth with the whole) and the noise *ceiling* of each run
that `resampling` has been to.  Where the networks have the same shapes and other weights (another
seed), a weight's place means nothing: overlap at chance says that units are in another order, not
that the circuits differ.  Circuits that differ need not compute anything else.

Paired bootstrap over the categories that both runs have a value of: it says what other categories
would give, not what other images or seeds would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitcore.analysis.area import MEASURES, Curve, area, curves, measured, named_records
from circuitcore.analysis.overlap import LayerOverlap, jaccard
from circuitcore.analysis.resampling.kept import WHOLE, ceilings
from circuitcore.analysis.statistics import bootstrap
from circuitcore.errors import UsageError
from circuitcore.kernels.overlap.operation import overlap_counts_mapped
from circuitcore.options import FIELDS, LATER, OF_CRITERION, changing
from circuitcore.records import Category, Found, Record, Target
from circuitcore.runs.circuitfile import read_shapes, stored_mask
from circuitcore.runs.folder import RunFolder

CALL = frozenset(changing("call")) | {"out", "format", "quiet"}
OTHER_WEIGHTS = "same shapes, other weights: a place is no name of a unit"
CONFIGURED = ("weights_sha256", "images_sha256", "numerics")


class Differing(Record):
    """One option, or property of network and images, that is not the same in both runs."""

    name: str
    a: Any
    b: Any


class Shared(Record):
    """Overlap of a category's two circuits in a layer, or all (``layer`` empty).

    ``kept_a``, ``kept_b`` of ``relevant`` weights; ``both`` in both.  ``overlap``, ``chance`` and
    ``most`` are None where both circuits keep nothing; ``ceiling_a``, ``ceiling_b``: overlap of two
    circuits of the run from other scoring images, None without ``stability RUN --resamples``.
    """

    category: str
    layer: str
    relevant: int
    kept_a: int
    kept_b: int
    both: int
    overlap: float | None
    chance: float | None
    most: float | None
    ceiling_a: float | None
    ceiling_b: float | None


class Pair(Record):
    """One category in both runs.  ``same``: whether the circuits keep the same weights.

    ``overlap`` as in `Shared`, of the whole circuits; None where layers' shapes differ.  Held-out
    values; a target's ``value`` stands in the place of hits and ratio.  ``undefined``: why there is
    no circuit in A or B.
    """

    category: str
    same: bool | None
    overlap: float | None
    chance: float | None
    pruned_a: float | None
    pruned_b: float | None
    hit_a: float | None
    hit_b: float | None
    csa_ratio_a: float | None
    csa_ratio_b: float | None
    value_a: float | None
    value_b: float | None
    undefined: str | None


class Difference(Record):
    """Means over the ``categories`` that both runs have a value of, and B less A.

    ``difference_ci95``: paired bootstrap over them; ``left_out``: categories of both runs where one
    has no value.  ``quantity``: ``pruned``, ``hit``, ``csa_ratio``, ``value``, or ``cpr`` and
    ``cmd`` with their ``stage``, over kept fractions of 1 to ``least_kept``, which both runs cover.
    """

    quantity: str
    stage: str
    categories: int
    left_out: int
    a: float | None
    b: float | None
    difference: float | None
    difference_ci95: tuple[float, float] | None
    least_kept: float | None = None


class Comparison(Record):
    """What two runs have in common and what not: see the module's docstring.

    ``overlap``: how its layers were matched, or why none is; ``measure``: what CPR and CMD are of.
    ``ceiling_a``, ``ceiling_b``: mean noise ceilings of the whole circuits.  ``screened``: curves
    of either run with levels judged on part of the images, whose areas are bounded, not exact.
    """

    a: str
    b: str
    differing: list[Differing]
    only_a: list[str]
    only_b: list[str]
    overlap: str
    measure: str | None
    screened: int
    ceiling_a: float | None
    ceiling_b: float | None
    categories: list[Pair]
    layers: list[Shared]
    differences: list[Difference]


@dataclass(frozen=True)
class _Side:
    """One of the two runs: its records by name, ceilings by name and layer."""

    run: RunFolder
    records: dict[str, Found]
    ceilings: dict[tuple[str, str], float]

    @property
    def ceiling(self) -> float | None:
        found = [value for (_, layer), value in self.ceilings.items() if layer == WHOLE]
        return float(np.mean(found)) if found else None


def compare(a: RunFolder, b: RunFolder, measure: str = "judge") -> Comparison:
    """Compare two runs from their files; masks are mapped, those of one category at a time.

    ``measure``: of CPR and CMD, as `area.areas` has it.  Raises UsageError where one is of
    categories and the other of other targets.
    """
    if measure not in MEASURES:
        raise UsageError(f"--measure {measure}: one of {', '.join(MEASURES)}")
    if a.of_targets != b.of_targets:
        raise UsageError(
            f"compare: {(a if a.of_targets else b).folder} is of other targets than categories, "
            f"{(b if a.of_targets else a).folder} is of categories: give two of a kind"
        )
    left, right = _side(a), _side(b)
    names = [name for name in left.records if name in right.records]
    pairs, layers = [], []
    for name in names:
        shared = _shared(name, left, right)
        layers += shared
        pairs.append(_pair(name, left.records[name], right.records[name], shared))
    what, screened, differences = _areas(left, right, names, measure)
    return Comparison(
        a=str(a.folder),
        b=str(b.folder),
        differing=_differing(a, b),
        only_a=[name for name in left.records if name not in right.records],
        only_b=[name for name in right.records if name not in left.records],
        overlap=_matched(a, b, pairs, layers),
        measure=what,
        screened=screened,
        ceiling_a=left.ceiling,
        ceiling_b=right.ceiling,
        categories=pairs,
        layers=layers,
        differences=[*_reached(pairs, left.run.options().seed), *differences],
    )


def _side(run: RunFolder) -> _Side:
    records, found = named_records(run), ceilings(run.folder)
    stems = {run.path(record.index).stem: name for name, record in records.items()}
    own = {(stems[stem], layer): v for (stem, layer), v in found.items() if stem in stems}
    return _Side(run, records, own)


def _differing(a: RunFolder, b: RunFolder) -> list[Differing]:
    """Options that are not the same, and what else changes numbers: weights, images, version."""
    own, other = (run.options().as_json(exclude=CALL) for run in (a, b))
    for run, options in ((a, own), (b, other)):
        options |= {key: run.manifest["configuration"].get(key) for key in CONFIGURED}
    # a manifest leaves an option that came later out where it is at its default
    unsaid = {n: FIELDS[n].default for n in LATER - {*OF_CRITERION} if n in {**own, **other}}
    own, other = {**unsaid, **own}, {**unsaid, **other}
    return [
        Differing(name=name, a=own.get(name), b=other.get(name))
        for name in dict.fromkeys([*own, *other])
        if own.get(name) != other.get(name)
    ]


def _shared(name: str, left: _Side, right: _Side) -> list[Shared]:
    """Overlap of one category's circuits: of all layers where all agree, then of those that do."""
    paths = []
    for side in (left, right):
        record = side.records[name]
        if record.circuit is None:
            return []
        paths.append(side.run.path(record.index))
    shapes, others = (read_shapes(path) for path in paths)
    parts = {}
    for layer, shape in shapes.items():
        if others.get(layer) == shape:
            masks = [stored_mask(path, layer) for path in paths]
            both, kept = (t.numpy() for t in overlap_counts_mapped(masks))
            parts[layer] = LayerOverlap(both, kept, int(np.prod(shape, dtype=np.int64)), False)
    groups = {layer: {layer: part} for layer, part in parts.items()}
    if parts and shapes == others:
        groups = {WHOLE: parts, **groups}
    ceilings = [
        {layer: side.ceilings.get((name, layer)) for layer in groups} for side in (left, right)
    ]
    return [
        _row(name, layer, group, ceilings[0][layer], ceilings[1][layer])
        for layer, group in groups.items()
    ]


def _row(
    name: str, layer: str, parts: Mapping[str, LayerOverlap], own: float | None,
    other: float | None,
) -> Shared:  # fmt: skip
    """One group of layers of two circuits."""
    overlap, chance = jaccard(parts)
    kept = np.array([part.kept for part in parts.values()])
    some = int(kept.sum()) > 0
    return Shared(
        category=name,
        layer=layer,
        relevant=sum(part.relevant for part in parts.values()),
        kept_a=int(kept[:, 0].sum()),
        kept_b=int(kept[:, 1].sum()),
        both=int(sum(part.intersection[0, 1] for part in parts.values())),
        overlap=float(overlap[0, 1]) if some else None,
        chance=float(chance[0, 1]) if some else None,
        most=float(kept.min(axis=1).sum() / kept.max(axis=1).sum()) if some else None,
        ceiling_a=own,
        ceiling_b=other,
    )


def _pair(name: str, own: Found, other: Found, shared: Sequence[Shared]) -> Pair:
    whole = next((row for row in shared if row.layer == WHOLE), None)
    values = {
        f"{key}_{letter}": value
        for letter, record in (("a", own), ("b", other))
        for key, value in _values(record).items()
    }
    why = [
        f"{letter}: {record.undefined or 'no circuit'}"
        for letter, record in (("A", own), ("B", other))
        if record.circuit is None
    ]
    return Pair(
        category=name,
        same=None if whole is None else whole.both == whole.kept_a == whole.kept_b,
        overlap=whole.overlap if whole else None,
        chance=whole.chance if whole else None,
        undefined="; ".join(why) or None,
        **values,
    )


def _values(record: Found) -> dict[str, float | None]:
    """What is compared of one circuit."""
    found: dict[str, float | None] = dict.fromkeys(("pruned", "hit", "csa_ratio", "value"))
    if isinstance(record, Category) and record.circuit is not None:
        held = record.circuit.heldout
        found |= {"pruned": record.circuit.pruned, "hit": held.hit}
        found["csa_ratio"] = held.csa_ratio_biased
    elif isinstance(record, Target) and record.circuit is not None:
        found |= {"pruned": record.circuit.pruned, "value": record.circuit.heldout}
    return found


def _matched(a: RunFolder, b: RunFolder, pairs: Sequence[Pair], layers: Sequence[Shared]) -> str:
    """How layers were matched, in words."""
    if not any(pair.undefined is None for pair in pairs):
        return "none: no category has a circuit in both runs"
    if not layers:
        return "none: the networks have no layer of the same name and shape"
    if not any(row.layer == WHOLE for row in layers):
        return "of single layers only: the others have no layer of the same name and shape"
    weights = (run.manifest["configuration"].get("weights_sha256") for run in (a, b))
    return "same network" if len(set(weights)) == 1 else OTHER_WEIGHTS


def _difference(
    quantity: str, pairs: Iterable[tuple[float | None, float | None]], seed: int, **more: Any
) -> Difference:
    every = list(pairs)
    both = np.array([(x, y) for x, y in every if x is not None and y is not None])
    some = len(both) > 0
    found = {"stage": "", **more}
    return Difference(
        quantity=quantity,
        categories=len(both),
        left_out=len(every) - len(both),
        a=float(both[:, 0].mean()) if some else None,
        b=float(both[:, 1].mean()) if some else None,
        difference=float((both[:, 1] - both[:, 0]).mean()) if some else None,
        difference_ci95=bootstrap(both[:, 1] - both[:, 0], seed) if some else None,
        **found,
    )


def _reached(pairs: Sequence[Pair], seed: int) -> list[Difference]:
    """Differences of what the circuits reach, those that no pair has a value of left out."""
    found = [
        _difference(name, [(getattr(p, f"{name}_a"), getattr(p, f"{name}_b")) for p in pairs], seed)
        for name in ("pruned", "hit", "csa_ratio", "value")
    ]
    return [each for each in found if each.categories or each.quantity == "pruned"]


def _areas(
    left: _Side, right: _Side, names: Sequence[str], measure: str
) -> tuple[str | None, int, list[Difference]]:
    """CPR and CMD by stage, of both over the range that all curves of both cover.

    Under other judges (a matched bias here, another there) of CSA, which both have.
    """
    kinds = {measured(side.run.options(), measure) for side in (left, right)}
    if len(kinds) > 1 and left.run.of_targets:
        return None, 0, []
    what = kinds.pop() if len(kinds) == 1 else "csa"
    own, other = curves(left.run, what), curves(right.run, what)
    screened = sum(not each.exact for run in (own, other) for each in run.values())
    found = []
    for stage in dict.fromkeys(stage for _, stage in own):
        both = {
            name: (own[name, stage], other[name, stage])
            for name in names
            if (name, stage) in own and (name, stage) in other
        }
        some = {n: p for n, p in both.items() if max(each.least for each in p) < 1}
        if not some:
            continue
        least = max(each.least for pair in some.values() for each in pair)
        cut = {name: [_cut(each, least) for each in pair] for name, pair in some.items()}
        for place, quantity in enumerate(("cpr", "cmd")):
            values = [
                (cut[n][0][place], cut[n][1][place]) if n in cut else (None, None) for n in names
            ]
            seed = left.run.options().seed
            found.append(_difference(quantity, values, seed, stage=stage, least_kept=least))
    return what, screened, found


def _cut(curve: Curve, least: float) -> tuple[float, float]:
    found = area(curve.kept, curve.phi, least=least)
    return found.cpr, found.cmd

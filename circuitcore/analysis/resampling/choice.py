"""What a circuit owes to its threshold, to its extraction images, and to the seed.

Masks of one stage's levels are nested, whatever the other stages keep, so two choices of level
overlap by counts alone: the smaller kept count over the larger, summed over the stages.  The levels
are chosen anew from the stored curves: no network is run.  Of the first stage that is what
`extract RUN --threshold` does; a later stage's curve was run with the earlier ones at their chosen
levels, and is read as if these had stayed.

*Thresholds*: the run's own and those 0.05 beside it.  *Extraction images*: the category's images
and the others drawn again, at the stored biases; a curve holds counts, not images, so hits (and
false alarms) are taken as nested: an image that a level hits is hit by every level with more hits.
That ties levels as closely as their counts allow, so the ceiling is rather too high than too low
(`bench/e2e/extraction_images.py` runs every level on every draw).
*Seeds*: `--seed` draws random masks, bootstrap samples and which images screening runs first, none
of which is in a circuit; of the criterion ``random`` it draws the scores, and two seeds share what
chance gives.  What else a repetition would draw are images: scoring images, `resampling.run`, and
extraction images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from circuitcore.analysis.resampling.kept import WHOLE
from circuitcore.analysis.rows import Judged
from circuitcore.extraction.accuracy import SLACK, choose_level, worth
from circuitcore.options import Options
from circuitcore.records import Accuracy, Category, Level, Stage
from circuitcore.scoring.seeds import unit_seed

STEP = 0.05  # to the threshold on either side
DRAWS = 400  # of the extraction images


class ChoiceRow(BaseModel):
    """One stage of one category, or the whole circuit (``stage`` empty), its levels chosen anew.

    ``kept`` weights; ``lower`` and ``higher`` thresholds keep ``kept_lower`` and ``kept_higher``;
    ``threshold_ceiling``: mean overlap of two of the three circuits.  ``extraction_ceiling``: that
    of circuits from extraction images drawn again, ``moved``: the share of draws that choose
    another level.  None where a curve does not tell: levels that were not run, or not on all
    images.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    stage: str
    kept: int
    lower: float | None
    kept_lower: int | None
    higher: float | None
    kept_higher: int | None
    threshold_ceiling: float | None
    extraction_ceiling: float | None
    moved: float | None


def choices(record: Category, options: Options, run: Mapping[str, Any]) -> list[ChoiceRow]:
    """The row of the whole circuit, then its stages'; none without a circuit.  ``run``: manifest.

    Cost: ``DRAWS`` times the levels, and ``DRAWS`` squared.
    """
    if record.circuit is None:
        return []
    judged = Judged.of(run, "extraction")
    stages = [_at_thresholds(record, stage, options) for stage in record.stages]
    draws = _drawn(record, options, judged)
    rows = []
    for place, name in enumerate([WHOLE, *(stage.stage for stage in record.stages)]):
        some = slice(None) if place == 0 else slice(place - 1, place)
        three = _kept_sum(stages[some])
        drawn = _kept_sum(draws[some])
        own = [each.levels[each.chosen].kept_weights for each in record.stages[some]]
        ends = [options.stage_threshold(each.stage) for each in record.stages[some]]
        alone = ends[0] if len(set(ends)) == 1 else None
        moved = None
        if drawn is not None:
            moved = float((drawn != np.array(own)[:, None]).any(0).mean())
        rows.append(
            ChoiceRow(
                category=record.category,
                stage=name,
                kept=sum(own),
                lower=None if alone is None else _beside(alone, -STEP),
                kept_lower=None if three is None else int(three[:, 0].sum()),
                higher=None if alone is None else _beside(alone, STEP),
                kept_higher=None if three is None else int(three[:, 2].sum()),
                threshold_ceiling=None if three is None else mean_overlap(three),
                extraction_ceiling=None if drawn is None else mean_overlap(drawn),
                moved=moved,
            )  # fmt: skip
        )
    return rows


def mean_overlap(kept: np.ndarray) -> float | None:
    """Mean overlap of two of M choices, ``kept`` [stages, M]: sum of min over sum of max.

    Pairs of which both keep nothing are left out; None where all do.  Cost: the square of how many
    choices differ.
    """
    some = kept[:, kept.sum(0) > 0]
    empty = kept.shape[1] - some.shape[1]
    levels, times = np.unique(some, axis=1, return_counts=True)
    both = np.minimum(levels[:, :, None], levels[:, None]).sum(0)
    either = np.maximum(levels[:, :, None], levels[:, None]).sum(0)
    pairs = np.outer(times, times) - np.diag(times)  # ordered, none with itself
    total = pairs.sum() + 2 * empty * some.shape[1]  # one of them empty: they share nothing
    return float((pairs * both / either).sum() / total) if total else None


def _beside(threshold: float, step: float) -> float:
    return min(max(round(threshold + step, 9), 0.0), 1.0)


def _kept_sum(stages: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """[stages, M], None where one of them does not tell."""
    known = [stage for stage in stages if stage is not None]
    return np.stack(known) if len(known) == len(stages) else None


def _at_thresholds(record: Category, stage: Stage, options: Options) -> np.ndarray | None:
    """Weights that one stage keeps below, at and above its threshold: int64 [3]."""
    own = options.stage_threshold(stage.stage)
    hits = stage.reference_hits is not None
    full = stage.reference_hits if stage.reference_hits is not None else stage.reference_csa
    floor = 0.0
    if options.reference == "faithful" and record.empty is not None:
        floor = worth(record.empty.extraction, options.bias)
    places: list[int] = []
    for fraction in (_beside(own, -STEP), own, _beside(own, STEP)):
        place = stage.chosen
        if fraction != own:
            threshold = floor + fraction * (full - floor)
            found = _chosen(stage, "hit" if hits else "csa", threshold, options)
            if found is None:
                return None
            place = found
        places.append(place)
    return np.array([stage.levels[place].kept_weights for place in places])


def _chosen(stage: Stage, what: str, threshold: float, options: Options) -> int | None:
    """The level that another threshold chooses; None where the curve leaves it open."""
    found = set()
    for name in (f"{what}_lo", f"{what}_hi"):
        values = [_known(level, name, what) for level in stage.levels]
        found.add(choose_level(values, threshold, options.stop))
    place = next(iter(found))
    if len(found) > 1 or not _whole(stage, options, place):
        return None
    return place


def _known(level: Level, name: str, what: str) -> float:
    value = getattr(level, name)
    return float(getattr(level, what) if value is None else value)


def _whole(stage: Stage, options: Options, place: int) -> bool:
    """Whether no level that was not run could have been chosen in the place of this one."""
    levels = [level.level for level in stage.levels]
    if len(levels) == len(options.grid(stage.stage)):
        return True
    dense_to_sparse = levels[: place + 2] == list(range(place + 2))
    return options.stop == "first-crossing" and dense_to_sparse


def _drawn(record: Category, options: Options, judged: Judged) -> list[np.ndarray | None]:
    """Weights that each stage keeps in each draw of the extraction images, int64 [draws] each.

    The same draws for all stages; left out are those in which the category has no reference.
    """
    if min(judged) < 1:
        return [None] * len(record.stages)
    unpruned, beside = record.unpruned, []
    full_of = unpruned.extraction if options.reference == "unpruned" else unpruned.extraction_biased
    if options.reference == "faithful" and record.empty is not None:
        beside = [record.empty.extraction]
    every = [level for stage in record.stages for level in stage.levels]
    values = _values([*every, full_of, *beside], judged, options, record.index)
    full, floor = values[:, len(every)], values[:, -1] if beside else np.zeros(len(values))
    found: list[np.ndarray | None] = []
    defined, start = np.ones(len(values), bool), 0
    for stage in record.stages:
        curve = values[:, start : start + len(stage.levels)]
        start += len(stage.levels)
        if options.reference == "peak":
            full = curve.max(1)
        defined &= full > floor
        threshold = floor + options.stage_threshold(stage.stage) * (full - floor)
        kept = np.array([level.kept_weights for level in stage.levels])
        places = _places(curve >= threshold[:, None] - SLACK, options.stop)
        found.append(kept[places] if _exact(stage, options, sum(judged)) else None)
    if defined.sum() < 2:
        return [None] * len(found)
    return [None if each is None else each[defined] for each in found]


def _places(above: np.ndarray, stop: str) -> np.ndarray:
    """`choose_level` of each row of a bool [draws, levels]: int64 [draws]."""
    levels = above.shape[1]
    if stop == "first-crossing":
        return np.maximum(np.where(above.all(1), levels, (~above).argmax(1)) - 1, 0)
    return np.where(above.any(1), levels - 1 - above[:, ::-1].argmax(1), 0)


def _exact(stage: Stage, options: Options, images: int) -> bool:
    """Whether every level of the grid was run on all images."""
    return len(stage.levels) == len(options.grid(stage.stage)) and all(
        level.images == images and level.csa_lo == level.csa_hi for level in stage.levels
    )


def _values(found: Sequence[Accuracy], judged: Judged, options: Options, unit: int) -> np.ndarray:
    """What each accuracy is worth on each draw of the images: float64 [draws, accuracies]."""
    seed = unit_seed(options.seed, unit)
    hits = nested_draws([judged.hits(each) for each in found], judged.targets, [seed, 41, 0])
    values = hits / judged.targets
    if options.bias == "matched":
        return values
    false = nested_draws([each.false_alarms for each in found], judged.others, [seed, 41, 1])
    norm = judged.targets if options.false_alarm_norm == "target" else judged.others
    return values - false / norm


def nested_draws(counts: Sequence[int], of: int, seed: Sequence[int]) -> np.ndarray:
    """Counts on ``of`` images drawn again, where the smaller counts' images are among the larger's.

    int64 [draws, counts].  Only how many images fall between two counts matters: one multinomial.
    """
    ends = np.unique([0, of, *counts])
    generator = np.random.default_rng(seed)
    between = generator.multinomial(of, np.diff(ends) / of, size=DRAWS)
    below = np.concatenate([np.zeros((DRAWS, 1), np.int64), between.cumsum(1)], axis=1)
    return below[:, np.searchsorted(ends, counts)]

"""Area under the faithfulness curve (CPR) and between it and 1 (CMD), free of a threshold.

Mueller et al. 2025 (MIB): phi(k) = (m(C_k) - m(empty)) / (m(N) - m(empty)) of circuits that keep a
fraction k; CPR = integral of phi, CMD = integral of |1 - phi|, both over k from 0.001 to 1 by
trapezoids, |1 - phi| taken at the levels.  Here both are divided by the width of the range: means
over it, 1 and 0 where the circuit does what the network does (MIB's own figures are 0.999 of them).

The axis is **linear** in the kept fraction, as MIB's: half of the area lies above one half kept.
``_log`` columns take ln k instead, where 0.001 to 0.01 counts as much as 0.1 to 1.  k is the
fraction of the *stage's* relevant weights.  The first stage is pruned with all later ones whole,
the last one with the earlier ones at their chosen levels: its curve begins at that circuit, not at
the network, and depends on the threshold through it.  m is what the run's levels are judged by,
its hit rate under a matched bias, else its CSA; m(N) and m(empty) are the unpruned network's and
the empty circuit's at their own biases.  All are of the extraction images, on which every level's
bias was fitted: in-sample figures.  Areas over other level grids differ by their trapezoids alone.
Of other targets m is the judge's value, m(N) = 1 and m(empty) = 0, as a constant with its best
shift has it.

Only levels that were run count, from the densest on without a gap: where a stop rule or the grid
ends above 0.001, or screening judged a level on part of the images, CPR and CMD are NA with the
reason, and ``_covered`` columns hold the areas over the range that is there.  A screened level has
the value that its record has, which is no less than the true one where the level was rejected on
the category's own images: ``cpr_at_least`` and ``cpr_at_most`` bound such areas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from circuitcore.analysis.rows import stage_names
from circuitcore.analysis.statistics import bootstrap
from circuitcore.analysis.summary import NO_FAITHFULNESS
from circuitcore.errors import UsageError
from circuitcore.extraction.accuracy import SLACK, worth
from circuitcore.options import Options
from circuitcore.records import Category, Found, Stage, Target, TargetStage
from circuitcore.runs.folder import RunFolder

LEAST = 0.001  # kept fraction at which the range ends
MEAN = ""  # stands for the category in the row of all of them
MEASURES = ("judge", "csa")
NO_EMPTY = "the run's records have no empty circuit: an earlier version made them"
REMEDY = "sweep with --screen off and levels down to 0.999 pruned"
Axis = Literal["linear", "log"]


@dataclass(frozen=True)
class Curve:
    """Faithfulness of one stage's levels, dense to sparse: ``kept`` and ``phi`` float64 [L].

    ``low``, ``high`` [L]: what phi is at least and at most, where not every image was evaluated;
    ``missing``: why it is not whole, down to `LEAST` and exact; None where it is.
    """

    kept: np.ndarray
    phi: np.ndarray
    low: np.ndarray
    high: np.ndarray
    missing: str | None = None

    @property
    def exact(self) -> bool:
        """Whether every level was judged on all images."""
        return bool((self.high - self.low <= SLACK).all())

    @property
    def least(self) -> float:
        """The sparse end of its range: its sparsest level, `LEAST` where that is sparser."""
        return max(float(self.kept[-1]), LEAST)


@dataclass(frozen=True)
class Area:
    """Mean of phi and of |1 - phi| over a range, and the fraction of 0.001 to 1 that it is."""

    cpr: float
    cmd: float
    covered: float


class AreaRow(BaseModel):
    """One stage of one category, or their mean (``category`` empty).

    ``measure``: what m is.  ``levels`` of the grid's ``of`` levels were run without a gap, down to
    ``least_kept``; ``covered`` and ``covered_log``: that range's share of 0.001 to 1.  ``cpr`` to
    ``cmd_log`` are None where it is not all; ``_covered`` are over what is there, in the mean row
    over what every curve has.  ``cpr_at_least``, ``cpr_at_most``: bounds of ``cpr_covered`` where
    screening left images out, else equal to it.  ``_ci95``: bootstrap over ``categories``.

    ``control``: ``empty`` (the empty circuit: 0 and 1 by definition), or the criterion of the run
    given as control, over the same range; ``above_control``: `cpr_covered` less the control's.
    ``circuit_phi``, ``random_phi``: the circuit, and at most the best random mask of its own
    densities, one point each, in the last stage's row.  ``undefined``: why a value is None;
    ``left_out``: categories without a curve, counted in the mean row.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    stage: str
    measure: str
    categories: int = 0
    left_out: int = 0
    levels: int | None = None
    of: int | None = None
    least_kept: float | None = None
    covered: float | None = None
    covered_log: float | None = None
    cpr: float | None = None
    cpr_ci95: tuple[float, float] | None = None
    cmd: float | None = None
    cmd_ci95: tuple[float, float] | None = None
    cpr_log: float | None = None
    cmd_log: float | None = None
    cpr_covered: float | None = None
    cpr_covered_ci95: tuple[float, float] | None = None
    cmd_covered: float | None = None
    cpr_at_least: float | None = None
    cpr_at_most: float | None = None
    control: str = "empty"
    control_cpr: float | None = None
    control_cmd: float | None = None
    above_control: float | None = None
    above_control_ci95: tuple[float, float] | None = None
    circuit_phi: float | None = None
    random_phi: float | None = None
    undefined: str | None = None


def areas(
    run: RunFolder,
    control: RunFolder | None = None,
    measure: str = "judge",
    records: Sequence[Found] | None = None,
) -> list[AreaRow]:
    """CPR and CMD of a run's finished categories, a row a category and stage, then the means.

    ``control``: a run of the same categories with another criterion, such as ``random``, whose
    curves stand beside; ``measure``: ``csa`` in the place of the run's judge.  From the records
    alone (``records``, where they were read): no network is run.  Raises UsageError where a
    measure or control does not fit.
    """
    options, named = run.options(), named_records(run, records)
    what, beside = measured(options, measure), "empty"
    other: Mapping[tuple[str, str], Curve] = {}
    if control is not None:
        if bool(control.options().target) != bool(options.target):
            raise UsageError(f"--control {control.folder}: not a run of the same kind of targets")
        if control.manifest["model"]["weights_sha256"] != run.manifest["model"]["weights_sha256"]:
            raise UsageError(
                f"--control {control.folder}: a run of another network: a control has other scores "
                "of the same one; compare A B sets two networks side by side"
            )
        beside, other = control.options().criterion, curves(control, what)
    rows: list[AreaRow] = []
    for stage in _stages(named.values()):
        mine: list[tuple[AreaRow, Curve | None]] = []
        for name, record in named.items():
            blank = AreaRow(category=name, stage=stage, measure=what, control=beside)
            curve = curve_of(record, stage, options, what)
            if isinstance(curve, str):
                left = {"undefined": curve, "left_out": 1}
                mine.append((blank.model_copy(update=left), None))
                continue
            row = _filled(blank, curve, len(options.grid(stage)))
            row = _beside(row, _control(beside, other.get((name, stage)), curve.least))
            mine.append((_beside_random(row, record, what), curve))
        rows += [row for row, _ in mine]
        if mine:
            controls = {name: other.get((name, stage)) for name in named}
            rows.append(_mean(mine, controls, options.seed))
    return rows


def named_records(run: RunFolder, records: Sequence[Found] | None = None) -> dict[str, Found]:
    """Records by the category's name, its folder's where two share one."""
    records, listed = records or run.records(), run.manifest["categories"]
    names = Counter(each["name"] for each in listed)
    folders = {each["index"]: each["folder"] for each in listed}
    return {r.category if names[r.category] < 2 else folders[r.index]: r for r in records}


def _stages(records: Iterable[Found]) -> tuple[str, ...]:
    """Stages that any record has; the default ones where none has any."""
    some = [record for record in records if record.stages]
    swept = {stage.stage for record in some for stage in record.stages}
    return tuple(name for name in stage_names(some) if name in swept or not some)


def measured(options: Options, measure: str = "judge") -> str:
    """What m is: ``hit`` or ``csa``, or the judge of other targets.  Raises UsageError."""
    if measure not in MEASURES:
        raise UsageError(f"--measure {measure}: one of {', '.join(MEASURES)}")
    if options.target:
        if measure == "csa":
            raise UsageError("--measure csa: targets that are no categories have none")
        return options.judge
    return "hit" if measure == "judge" and options.bias == "matched" else "csa"


def curves(run: RunFolder, what: str) -> dict[tuple[str, str], Curve]:
    """The curves of a run by category and stage, those that are undefined left out."""
    options, named = run.options(), named_records(run)
    made = {
        (name, stage): curve_of(record, stage, options, what)
        for stage in _stages(named.values())
        for name, record in named.items()
    }
    return {key: each for key, each in made.items() if isinstance(each, Curve)}


def curve_of(record: Found, stage: str, options: Options, what: str) -> Curve | str:
    """Faithfulness along one stage, its levels from 0 on without a gap; else why there is none."""
    own = next((each for each in record.stages if each.stage == stage), None)
    if own is None:
        return record.undefined or "no circuit"
    if isinstance(record, Category) and record.empty is None:
        return NO_EMPTY
    whole, empty = _ends(record, what)
    if whole <= empty:
        return NO_FAITHFULNESS
    places = [x.level for x in own.levels]
    count = next((i for i, level in enumerate(places) if level != i), len(places))
    kept = np.array([x.kept_weights for x in own.levels[:count]]) / own.relevant_weights
    values = (_values(own, what, count) - empty) / (whole - empty)
    left_out = len(options.grid(stage)) - len(places)
    unsure = int((values[2] - values[1] > SLACK).sum())
    why = _missing(count, left_out, unsure, options.grid(stage))
    return Curve(kept, values[0], values[1], values[2], why)


def _ends(record: Found, what: str) -> tuple[float, float]:
    """m of the unpruned network and of the empty circuit."""
    if isinstance(record, Target) or record.empty is None:
        return 1.0, 0.0
    bias = "matched" if what == "hit" else "exact"
    return worth(record.unpruned.extraction_biased, bias), worth(record.empty.extraction, bias)


def _values(stage: Stage | TargetStage, what: str, count: int) -> np.ndarray:
    """m of the first levels, with its bounds: float64 [3, count]."""
    if isinstance(stage, TargetStage):  # None: the circuit's value is a constant
        return np.tile([x.value or 0.0 for x in stage.levels[:count]], (3, 1))
    names = what, f"{what}_lo", f"{what}_hi"
    every = [[getattr(x, name) for name in names] for x in stage.levels[:count]]
    return np.array([[value, *(value if b is None else b for b in more)]
                     for value, *more in every]).T  # fmt: skip


def _missing(count: int, left_out: int, unsure: int, grid: Sequence[float]) -> str | None:
    """Why the first ``count`` levels of a grid are no whole curve; None where they are one.

    ``left_out`` were not run; ``unsure`` of the first ones were judged on part of the images.
    """
    needed = next((i for i, pruned in enumerate(grid) if 1 - pruned <= LEAST * (1 + 1e-6)), None)
    if left_out and (needed is None or count <= needed):
        return f"{left_out} of {len(grid)} levels were not run: {REMEDY}"
    if needed is None:
        return f"the sparsest level keeps {1 - grid[-1]:.4g}: {REMEDY}"
    if unsure:
        return f"{unsure} of {len(grid)} levels were judged on part of the images: {REMEDY}"
    return None


def area(kept: np.ndarray, phi: np.ndarray, axis: Axis = "linear", least: float = LEAST) -> Area:
    """CPR and CMD by trapezoids of a curve, float64 [L] each, from 1 kept down to ``least``.

    ``kept`` decreases from 1; between levels phi is a straight line on the axis, which is cut at
    ``least``.  Nothing is made up below the sparsest level: the areas are those of what is covered.
    Raises ValueError where no range is.
    """
    inside = kept >= (least if axis == "linear" else max(least, 1e-300))
    x, y = kept[inside], phi[inside]
    place = np.log if axis == "log" else np.asarray
    below = kept[~inside]
    if len(below) and (axis == "linear" or below[0] > 0):  # ln 0 is nowhere
        ends = place(kept[[len(x), len(x) - 1]])
        cut = np.interp(place(np.float64(least)), ends, phi[[len(x), len(x) - 1]])
        x, y = np.append(x, least), np.append(y, cut)
    u = place(x)
    steps = -np.diff(u)
    if not steps.sum() > 0:
        raise ValueError("area: a curve has two levels or more")
    whole = 1 - LEAST if axis == "linear" else -math.log(LEAST)
    off = np.abs(1 - y)
    return Area(
        cpr=float((steps * (y[:-1] + y[1:])).sum() / 2 / steps.sum()),
        cmd=float((steps * (off[:-1] + off[1:])).sum() / 2 / steps.sum()),
        covered=min(float(steps.sum() / whole), 1.0),
    )


def _filled(row: AreaRow, curve: Curve, of: int) -> AreaRow:
    """The row of one curve."""
    if len(curve.kept) < 2 or curve.kept[0] <= curve.kept[-1]:
        return row.model_copy(update={"levels": len(curve.kept), "of": of, "left_out": 1,
                                      "undefined": curve.missing})  # fmt: skip
    linear, log = area(curve.kept, curve.phi), area(curve.kept, curve.phi, "log")
    update = {
        "categories": 1, "levels": len(curve.kept), "of": of, "least_kept": curve.least,
        "covered": linear.covered, "covered_log": log.covered,
        "cpr_covered": linear.cpr, "cmd_covered": linear.cmd,
        "cpr_at_least": area(curve.kept, curve.low).cpr,
        "cpr_at_most": area(curve.kept, curve.high).cpr, "undefined": curve.missing,
    }  # fmt: skip
    if curve.missing is None:
        update |= {"cpr": linear.cpr, "cmd": linear.cmd, "cpr_log": log.cpr, "cmd_log": log.cmd}
    return row.model_copy(update=update)


def _control(beside: str, curve: Curve | None, least: float) -> tuple[float, float] | None:
    """CPR and CMD of a control down to ``least``; None where its curve does not go there."""
    if beside == "empty":
        return 0.0, 1.0
    if curve is None or curve.least > least * (1 + 1e-6) + 1e-9 or curve.least >= 1:
        return None
    found = area(curve.kept, curve.phi, least=least)
    return found.cpr, found.cmd


def _beside(row: AreaRow, control: tuple[float, float] | None) -> AreaRow:
    """The row with its control, where there is one."""
    if row.cpr_covered is None or control is None:
        return row
    held = {"control_cpr": control[0], "control_cmd": control[1]}
    return row.model_copy(update={**held, "above_control": row.cpr_covered - control[0]})


def _beside_random(row: AreaRow, record: Found, what: str) -> AreaRow:
    """In the last stage's row: the circuit, and the random masks of its own densities."""
    if row.stage != record.stages[-1].stage or isinstance(record, Target):
        return row
    circuit, masks = record.circuit, record.random_masks
    whole, empty = _ends(record, what)

    def phi(value: float | None) -> float | None:
        return None if value is None else (value - empty) / (whole - empty)

    update = {
        "circuit_phi": phi(getattr(circuit.extraction, what) if circuit else None),
        "random_phi": phi(getattr(masks, f"{what}_hi") if masks else None),
    }
    return row.model_copy(update=update)


def _mean(
    rows: Sequence[tuple[AreaRow, Curve | None]], controls: Mapping[str, Curve | None], seed: int
) -> AreaRow:
    """Means over the categories that have a curve, over the range that all of them cover.

    A mean CPR only where every curve is whole: those that are not stopped early for being worse.
    """
    first, some = (
        rows[0][0],
        [(r, c) for r, c in rows if c is not None and r.cpr_covered is not None],
    )
    blank = AreaRow(category=MEAN, stage=first.stage, measure=first.measure, control=first.control,
                    categories=len(some), left_out=len(rows) - len(some))  # fmt: skip
    if not some:
        return blank.model_copy(update={"undefined": "no category has a curve"})
    least = max(curve.least for _, curve in some)
    over = [area(curve.kept, curve.phi, least=least) for _, curve in some]
    log = [area(curve.kept, curve.phi, "log", least) for _, curve in some]
    cprs = np.array([each.cpr for each in over])
    update: dict[str, Any] = {
        "levels": min(len(curve.kept) for _, curve in some), "of": first.of or some[0][0].of,
        "least_kept": least, "covered": over[0].covered, "covered_log": log[0].covered,
        "cpr_covered": float(cprs.mean()), "cpr_covered_ci95": bootstrap(cprs, seed),
        "cmd_covered": float(np.mean([each.cmd for each in over])),
    }  # fmt: skip
    for name, side in (("cpr_at_least", "low"), ("cpr_at_most", "high")):
        bounds = [area(curve.kept, getattr(curve, side), least=least).cpr for _, curve in some]
        update[name] = float(np.mean(bounds))
    if short := sum(row.cpr is None for row, _ in some):
        update["undefined"] = f"{short} of {len(some)} curves are not whole: {REMEDY}"
    for name in () if short else ("cpr", "cmd", "cpr_log", "cmd_log"):
        values = np.array([getattr(row, name) for row, _ in some])
        update[name] = float(values.mean())
        if not name.endswith("log"):
            update[f"{name}_ci95"] = bootstrap(values, seed)
    held = [_control(first.control, controls[row.category], least) for row, _ in some]
    found = np.array([each for each in held if each is not None])
    if len(found) == len(some):
        above = cprs - found[:, 0]
        update |= {
            "control_cpr": float(found[:, 0].mean()), "control_cmd": float(found[:, 1].mean()),
            "above_control": float(above.mean()), "above_control_ci95": bootstrap(above, seed),
        }  # fmt: skip
    return blank.model_copy(update=update)

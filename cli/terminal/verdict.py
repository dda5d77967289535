"""The last lines of a verb, on stderr: what was found, where the report is, what to ask next.

They stand there whatever the format of the result, which has stdout to itself.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcore.cli.terminal.layout import folded, plain
from circuitcore.machine.process import say

if TYPE_CHECKING:
    from circuitcore.analysis.across.structure import Structure
    from circuitcore.analysis.reproduction.document import Reproduction
    from circuitcore.records import Sweep, TargetSweep

REPORT = "report.html"
# what else can be asked of a run, and the file in its folder that says it was
QUESTIONS = (
    ("controls", "controls.json"),
    ("stability", "resamples.json"),
    ("structure", "structure.json"),
    ("lesion", "lesions"),
)


def conclude(
    said: str, folder: Path | str, quiet: bool, report_next: bool = True, page: str = REPORT
) -> None:
    """Say what was found in a run, where its report is and which command comes next.

    ``report_next``: what was found is not in the report yet; ``page``: of the run folder, where it
    is.  Nothing with ``quiet``, or of a run that has no report.
    """
    folder = Path(folder)
    if quiet or not (folder / page).exists():
        return
    where = shlex.quote(near(folder))
    asked = [verb for verb, file in QUESTIONS if not (folder / file).exists()]
    verb = "report" if report_next else asked[0] if asked else ""
    then = f"circuitcore {verb} {where}" if verb else f"circuitcore export {where} CATEGORY"
    said = folded(said, stream=sys.stderr)
    say(f"{said}\nreport: {plain(near(folder / page))}   next: {then}")


def near(path: Path) -> str:
    """A path as one would type it here: from the working folder where it lies in that."""
    here = os.path.relpath(path)
    return str(path) if here.startswith(os.pardir) else here


def of_sweep(document: Sweep | TargetSweep) -> str:
    """How many circuits there are, how sparse they are, and what they are worth held out."""
    from circuitcore.records import Sweep

    if not isinstance(document, Sweep):
        t = document.summary
        held = _pair("held-out agreement", t.mean_heldout, "random masks", t.mean_random_heldout)
        return _counted("target", t.targets, t.undefined, t.mean_pruned, held)
    s = document.summary
    floor = mean(c.empty.heldout.csa for c in document.categories if c.circuit and c.empty)
    unpruned = s.mean_unpruned_heldout_csa_biased
    held = _pair("held-out CSA", s.mean_heldout_csa, "unpruned", unpruned)
    held += f", empty circuit {_number(floor)}"
    return _counted("category", s.categories, s.undefined, s.mean_pruned, held)


def of_accuracies(rows: Sequence[Mapping[str, Any]], categories: int) -> str:
    """Mean held-out CSA of circuits beside what they are held against: rows of `evaluate`.

    ``categories``: how many are done in the run, those without a circuit too.
    """
    means = {
        name: mean(row[name]["csa"] for row in rows if row.get(name))
        for name in ("circuit", "unpruned", "random", "empty")
    }
    held = _pair("held-out CSA", means["circuit"], "unpruned", means["unpruned"])
    return (
        f"{_many(len(rows), 'circuit')}: {held}, random mask {_number(means['random'])}, "
        f"empty circuit {_number(means['empty'])}; {categories - len(rows)} undefined"
    )


def of_controls(means: Sequence[Mapping[str, Any]]) -> str:
    """Mean held-out CSA of circuits and of their controls: rows of `control_means`."""
    said = ", ".join(f"{row['control']} {_number(row['csa'])}" for row in means)
    return f"held-out CSA, means: {said}"


def of_resamples(rows: Iterable[Mapping[str, Any]]) -> str:
    """What of the circuits stays, and the noise ceiling: rows of `stability RUN`."""
    whole = [row for row in rows if not row["layer"]]
    core = mean(row["core"] for row in whole)
    ceiling, chance = (mean(row[name] for row in whole) for name in ("ceiling", "chance"))
    return (
        f"{_many(len(whole), 'circuit')} from other scoring images: overlap {_number(ceiling)} "
        f"(the noise ceiling), chance {_number(chance)}; core {_number(core)} of the weights"
    )


def of_structure(found: Structure) -> str:
    """Overlap of circuits beside chance and the noise ceiling."""
    whole = next((row for row in found.shared if not row.layer), None)
    if whole is None:
        return f"{_many(found.categories, 'circuit')}: no two to compare"
    beside = _pair("overlap", whole.mean, "chance", whole.chance)
    circuits = _many(found.categories, "circuit")
    return f"{circuits}: {beside}, noise ceiling {_number(whole.ceiling)}"


def of_reproduction(found: Reproduction) -> str:
    """How far the preset's reading is from what was published, and the nearest one."""
    every = found.by_distance
    place = every.index(found.preset) + 1
    undefined = sum(found.preset.undefined.values())
    return (
        f"{len(every)} readings of {_many(found.categories, 'category')}: the preset is number "
        f"{place} by distance ({_number(found.preset.distance)}, the nearest "
        f"{_number(every[0].distance)}); {undefined} undefined by it"
    )


def of_lesions(rows: Sequence[Mapping[str, Any]]) -> str:
    """What lesions do to their own category and to the others, beyond the random ones."""
    said = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        own, others = (
            mean(row[name] for row in mine if row[name] is not None) for name in ("own", "others")
        )
        harmed, counted = (sum(row[name] for row in mine) for name in ("harmed", "counted"))
        said.append(
            f"{kind}: own CSA {_signed(own)}, others {_signed(others)}, {harmed} of {counted} "
            "others lose more than by a random lesion"
        )
    return "; ".join(said) or "no lesion"


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    some = list(values)
    return sum(some) / len(some) if some else None


def _counted(
    one: str, count: int, undefined: Mapping[str, int], pruned: float | None, held: str
) -> str:
    gone = sum(undefined.values())
    tail = f"{gone} undefined (NA)" if gone else "none undefined"
    if pruned is None:
        return f"{_many(count, one)}, none with a circuit: {tail}"
    return f"{_many(count, one)}: {100 * pruned:.1f} % pruned; {held}; {tail}"


def _many(count: int, one: str) -> str:
    many = one.removesuffix("y") + "ies" if one.endswith("y") else f"{one}s"
    return f"{count:,} {one if count == 1 else many}"


def _pair(what: str, own: float | None, beside: str, other: float | None) -> str:
    return f"{what} {_number(own)}, {beside} {_number(other)}"


def _number(value: float | None) -> str:
    return "NA" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "NA" if value is None else f"{value:+.2f}"

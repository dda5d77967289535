"""How what is asked of finished runs is shown: tables of 80 columns, and what they leave out."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcore.cli.tables import UNDEFINED, counted, number, percent, plain, rows_text, table

if TYPE_CHECKING:
    from circuitcore.analysis.comparison import Comparison

NAMED = 5  # categories that a line names


def area_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a category and stage, then their means; intervals and what is NA below."""
    shown = [
        [
            str(row["category"] or f"mean of {row['categories']}"),
            row["stage"],
            *(number(row[name]) for name in ("cpr", "cmd", "cpr_log")),
            "NA" if row["least_kept"] is None else f"{row['least_kept']:.3g}",
            *(number(row[name]) for name in ("cpr_covered", "control_cpr")),
        ]
        for row in rows
    ]
    headings = ["category", "stage", "CPR", "CMD", "CPR log", "down to", "covered", "control"]
    lines = "".join(f"\n{_wrapped(line)}" for line in _area_lines(rows))
    return table(headings, shown, left=2) + lines + "\n"


def _area_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Below the table: the means with their intervals, what is NA and why."""
    lines = []
    for row in (each for each in rows if not each["category"]):
        if row["left_out"]:
            lines.append(f"{row['stage']}: {row['left_out']} left out (NA)")
        if row["cpr_covered"] is None:
            continue
        whole = row["cpr"] is not None
        name = "cpr" if whole else "cpr_covered"
        lines.append(
            f"{row['stage']}: mean CPR {number(row[name])} "
            f"({_interval(row[f'{name}_low'], row[f'{name}_high'])}), CMD "
            f"{number(row['cmd' if whole else 'cmd_covered'])}, over kept fractions of 1 to "
            f"{row['least_kept'] or 1:.3g} ({percent(row['covered'], 2)} of the range, "
            f"{percent(row['covered_log'], 0)} of its logarithm); control ({row['control']}) "
            f"{number(row['control_cpr'])}, above it {number(row['above_control'])} "
            f"({_interval(row['above_control_low'], row['above_control_high'])})"
        )
        if (row["cpr_at_least"] or 0) < (row["cpr_at_most"] or 0):
            lines.append(
                f"{row['stage']}: levels were screened, on part of the images: the mean CPR is "
                f"{number(row['cpr_at_least'])} at least, {number(row['cpr_at_most'])} at most"
            )
    reasons = Counter(r["undefined"] for r in rows if r["category"] and r["undefined"])
    lines += [f"NA in {counted(n, 'curve', 'curves')}: {why}" for why, n in reasons.items()]
    measure = rows[0]["measure"] if rows else ""
    return [*lines, f"faithfulness of {measure}, on the extraction images"]


RESAMPLED = ("category", "core", "contingent", "never", "ceiling", "chance", "overlap")
CERTIFIED = {"certified": "certified", "circuit": "circuit_certified"}
SEED = {
    False: "--seed draws nothing that is in a circuit: what another draw would change are images",
    True: "the criterion is random: circuits of two seeds share what chance gives",
}


def stability_text(
    rows: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, Any]], certify: int | None,
    random: bool,
) -> str:  # fmt: skip
    """Whole circuits from other scoring images, then their levels chosen anew.

    ``random``: the run's criterion is.
    """
    whole = [dict(row) for row in rows if not row["layer"]]
    columns: Sequence[str] = RESAMPLED
    if certify is not None:
        columns = (*RESAMPLED[:-1], *CERTIFIED)
        whole = [{**row, **{k: row[v] for k, v in CERTIFIED.items()}} for row in whole]
    text = rows_text(whole, "table", columns=columns)
    shown = [
        [
            row["category"],
            f"{row['kept']:,}",
            *(
                UNDEFINED if row[n] is None else f"{row[n]:,}"
                for n in ("kept_lower", "kept_higher")
            ),
            *(number(row[n]) for n in ("threshold_ceiling", "extraction_ceiling")),
            percent(row["moved"], 0),
        ]
        for row in choices
        if not row["stage"]
    ]
    headings = ["category", "kept", "at -0.05", "at +0.05", "thresholds", "images", "moved"]
    lines = [
        "ceiling: mean overlap of two circuits of the category from other scoring images",
        "thresholds: the same at thresholds 0.05 lower and higher; images: from other extraction "
        "images, of which moved choose another level (hits taken as nested: rather too high)",
        SEED[random],
    ]
    if certify is not None:
        gone = counted(certify, "image of the pool is", "images of the pool are")
        lines.insert(
            1,
            "certified: of the majority's weights, circuit: of the circuit's, those that most "
            f"draws keep whichever {gone} replaced",
        )
    said = "".join(f"{_wrapped(line)}\n" for line in lines)
    return f"{text}\n{table(headings, shown)}\n{said}"


def controls_text(rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]) -> str:
    """A row a category and mask, then their means with paired differences."""
    shown = [
        [
            row["category"],
            row["control"],
            f"{row['kept_weights']:,}",
            number(row["overlap"]),
            number(row["heldout"]["csa"]),
            number(row["csa_ratio"]),
            number(row["heldout"]["hit"], 2),
            f"{row['heldout']['false_alarms']:,}",
        ]
        for row in rows
    ]
    headings = ["category", "control", "kept", "overlap", "CSA", "ratio", "hit", "alarms"]
    text = table(headings, shown, left=2)
    shown = [
        [
            row["control"],
            number(row["csa"]),
            number(row["hit"]),
            number(row["overlap"]),
            "" if own else number(row["difference"]),
            "" if own else _interval(*(row["difference_ci95"] or (None, None))),
        ]
        for row in means
        for own in (row["control"] == "circuit",)
    ]
    headings = ["mean", "CSA", "hit", "overlap", "circuit - it", "95 %"]
    said = "held out; 95 %: of the difference in CSA, bootstrapped over categories\n"
    return f"{text}\n{table(headings, shown)}\n{said}"


def comparison_text(found: Comparison) -> str:
    """What differs, then a row a category, a layer, and a quantity."""
    text = f"A {found.a}\nB {found.b}\n\n"
    if found.differing:
        rows = [[d.name, _brief(d.a), _brief(d.b)] for d in found.differing]
        text += table(["differs", "A", "B"], rows, left=3) + "\n"
    else:
        text += "same options, network and images\n\n"
    rows = [
        [p.category, percent(p.pruned_a), percent(p.pruned_b), number(p.hit_a, 2),
         number(p.hit_b, 2), number(p.csa_ratio_a, 2), number(p.csa_ratio_b, 2),
         number(p.overlap), number(p.chance)]
        for p in found.categories
    ]  # fmt: skip
    headings = ["category", "pruned", "B", "hit", "B", "ratio", "B", "overlap", "chance"]
    text += table(headings, rows) + "\n"
    text += _layers(found)
    rows = [
        [d.quantity, d.stage, str(d.categories), number(d.a), number(d.b), number(d.difference),
         _interval(*(d.difference_ci95 or (None, None))),
         "" if d.least_kept is None else f"{d.least_kept:.3g}"]
        for d in found.differences
    ]  # fmt: skip
    headings = ["mean", "stage", "of", "A", "B", "B - A", "95 %", "down to"]
    text += table(headings, rows, left=2)
    return text + "".join(f"\n{_wrapped(line)}" for line in _comparison_lines(found)) + "\n"


def _layers(found: Comparison) -> str:
    """Mean overlap by layer, the whole circuits first."""
    rows = []
    for layer in dict.fromkeys(row.layer for row in found.layers):
        mine = [row for row in found.layers if row.layer == layer]
        means = (
            _mean([getattr(row, name) for row in mine])
            for name in ("overlap", "chance", "most", "ceiling_a", "ceiling_b")
        )
        rows.append([layer or "whole", str(len(mine)), *(number(each) for each in means)])
    headings = ["layer", "circuits", "overlap", "chance", "at most", "ceiling A", "ceiling B"]
    return table(headings, rows) + "\n" if rows else ""


def _comparison_lines(found: Comparison) -> list[str]:
    """Below the tables: how circuits were matched, whose do not differ, what is left out."""
    same = [pair.category for pair in found.categories if pair.same]
    lines = [f"overlap: {found.overlap}"]
    if same:
        lines.append(f"the same circuit in both: {_named(same)}")
    for names, run in ((found.only_a, "A"), (found.only_b, "B")):
        if names:
            lines.append(f"in {run} alone: {_named(names)}")
    for pair in found.categories:
        if pair.undefined:
            lines.append(f"{pair.category}: {pair.undefined}")
    if found.measure is None:
        lines.append("CPR and CMD: the runs have other judges")
    else:
        lines.append(f"CPR and CMD of {found.measure}, on the extraction images")
    if any(each.name.endswith("levels") for each in found.differing):
        lines.append("other levels: trapezoids between them differ by themselves, areas with them")
    if found.screened:
        lines.append(
            f"{counted(found.screened, 'curve', 'curves')} with levels judged on part of the "
            "images: areas not exact (circuitcore area has their bounds)"
        )
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None where nothing is."""
    some = [value for value in values if value is not None]
    return sum(some) / len(some) if some else None


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    named = ", ".join(names[:NAMED])
    return f"{len(names)}: {named}{f' and {more} more' if more > 0 else ''}"


def _interval(low: float | None, high: float | None) -> str:
    return "NA" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 28 else f"{text[:25]}..."


def _wrapped(line: str) -> str:
    return textwrap.fill(plain(line), 80, subsequent_indent="  ", break_long_words=False)

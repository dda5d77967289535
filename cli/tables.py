"""Print a result on stdout: a table for people, JSON, JSON lines or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcore.cli.terminal.layout import emit as emit
from circuitcore.cli.terminal.layout import folded
from circuitcore.cli.terminal.layout import plain as plain
from circuitcore.cli.terminal.layout import table as table

if TYPE_CHECKING:
    from circuitcore.api.run import Run
    from circuitcore.api.table import Table
    from circuitcore.records import Overlap, Sweep, TargetSweep

UNDEFINED = "NA"
PART = 10_000  # rows that are text at a time
NAMED = 5  # categories that a line of the summary names


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if value is None:
        return UNDEFINED
    if isinstance(value, str):
        text = plain(value)
        harmless = re.fullmatch(r"-[\w .,-]*", text)  # at worst a number: nothing is called
        return "'" + text if text[:1] in tuple("=+-@\t") and text and not harmless else text
    return value


def as_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """Rows of equal keys as CSV with a heading, ``names`` where there is none of them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(rows[0]) if rows else list(names)
    if names:
        writer.writerow(names)
    writer.writerows([cell(row[name]) for name in names] for row in rows)
    return out.getvalue()


def counted(count: int, one: str, many: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{count:,} {one if count == 1 else many}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage, NA where undefined."""
    return UNDEFINED if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number of so many digits after the point, NA where undefined."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def emit_sweep(run: Run, form: str) -> None:
    """Print a run's document; as JSON lines a category at a time, so that none need be held."""
    if form != "jsonl":
        emit(sweep_text(run.document, form))
        return
    for record in run.each_record():
        emit(record.model_dump_json(by_alias=True) + "\n")


def sweep_text(document: Sweep | TargetSweep, form: str) -> str:
    """The document of a sweep as JSON, CSV or a table."""
    from circuitcore.analysis.rows import rows_of
    from circuitcore.records import Sweep

    if form == "json":
        return document.to_json(indent=2) + "\n"
    records = document.categories if isinstance(document, Sweep) else document.targets
    if form == "csv":
        return as_csv(rows_of(records, document.run))
    return _sweep_table(document) if isinstance(document, Sweep) else _target_table(document)


def _target_table(document: TargetSweep) -> str:
    """Held-out: how well the circuit's values follow the unpruned ones, beside a random mask's."""
    rows = []
    for t in document.targets:
        circuit, masks = t.circuit, t.random_masks
        low = circuit.heldout_ci95 if circuit else None
        rows.append(
            [
                t.category,
                percent(circuit.pruned if circuit else None, 2),
                UNDEFINED if circuit is None else f"{circuit.kept_weights:,}",
                number(circuit.extraction if circuit else None),
                number(circuit.heldout if circuit else None),
                f"{low[0]:.2f}-{low[1]:.2f}" if low else UNDEFINED,
                number(masks.heldout if masks else None),
            ]
        )
    judge = document.targets[0].judge if document.targets else "agreement"
    headings = ["target", "pruned", "kept", f"{judge}", "held out", "95 %", "random"]
    return table(headings, rows) + "\n" + _target_summary(document)


def _pruned(mean: float, deviation: float | None) -> str:
    spread = f" (s.d. {percent(deviation)})" if deviation is not None else ""
    return f"{percent(mean)} pruned{spread}"


def _target_summary(document: TargetSweep) -> str:
    s, lines = document.summary, []
    if s.mean_pruned is not None:
        lines.append(
            f"{s.targets} targets: {_pruned(s.mean_pruned, s.sd_pruned)}; held out "
            f"{number(s.mean_heldout)}, random masks {number(s.mean_random_heldout)}"
        )
    lines += _undefined(s.undefined) + _no_better(s.no_better_than_random)
    return _below([*lines, *_closing(document.run, document.overlap)])


def _sweep_table(document: Sweep) -> str:
    """Held-out, like with like: the circuit at its bias beside the unpruned network at its own."""
    rows = []
    for c in document.categories:
        own = c.unpruned.heldout_biased
        beside = [f"{own.hit:.2f}", str(own.false_alarms)]
        if c.circuit is None:
            rows.append([c.category, *[UNDEFINED] * 2, beside[0], UNDEFINED, beside[1],
                         *[UNDEFINED] * 3])  # fmt: skip
            continue
        held = c.circuit.heldout
        interval = held.csa_ratio_biased_ci95
        rows.append(
            [
                c.category,
                percent(c.circuit.pruned, 2),
                f"{held.hit:.2f}",
                beside[0],
                str(held.false_alarms),
                beside[1],
                number(held.csa_ratio_biased),
                f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else UNDEFINED,
                number(c.faithfulness.heldout if c.faithfulness else None, 2),
            ]
        )
    headings = [
        "category",
        "pruned",
        "hit",
        "unpr.",
        "alarms",
        "unpr.",
        "ratio",
        "95 %",
        "faithful",
    ]
    return table(headings, rows) + "\n" + _sweep_summary(document)


def _sweep_summary(document: Sweep) -> str:
    s, lines = document.summary, []
    if s.mean_pruned is not None:
        lines.append(
            f"{counted(s.categories, 'category', 'categories')}: "
            f"{_pruned(s.mean_pruned, s.sd_pruned)}; held-out CSA {number(s.mean_heldout_csa)}, "
            f"unpruned {number(s.mean_unpruned_heldout_csa_biased)}, "
            f"mean ratio {number(s.mean_csa_ratio)}, ratio of means {number(s.ratio_of_means)}; "
            f"faithfulness {number(s.mean_faithfulness, 2)}"
        )
    if s.mean_heldout_csa_ci95 is not None and s.mean_heldout_hit_ci95 is not None:
        csa, hit = (f"{a:.3f} to {b:.3f}" for a, b in (
            s.mean_heldout_csa_ci95, s.mean_heldout_hit_ci95))  # fmt: skip
        lines.append(f"95 % over categories and images: CSA {csa}, hits {hit}")
    lines += _undefined(s.undefined)
    lines += [f"{n} with a circuit, {reason}" for reason, n in s.undefined_heldout.items()]
    lines += _no_better(s.no_better_than_random)
    return _below([*lines, *_closing(document.run, document.overlap)])


def _below(lines: Sequence[str]) -> str:
    return "".join(f"{folded(line)}\n" for line in lines)


def _undefined(reasons: Mapping[str, int]) -> list[str]:
    return [f"{count} undefined (NA): {reason}" for reason, count in reasons.items()]


def _no_better(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more, named = len(names) - NAMED, ", ".join(map(plain, names[:NAMED]))
    said = f"no better than a random mask of its own densities: {named}"
    return [f"{said} and {more} more" if more > 0 else said]


def _closing(run: Mapping[str, Any], overlap: Overlap) -> list[str]:
    """What the circuits share, what they cost, and where they are."""
    lines = []
    if overlap.pairs and overlap.mean is not None:
        lines.append(
            f"overlap of {counted(overlap.pairs, 'pair', 'pairs')}: mean {number(overlap.mean)}, "
            f"from {number(overlap.min)} to {number(overlap.max)}; "
            f"{number(overlap.mean_chance)} expected of independent masks"
        )
    plan = run.get("plan")
    if plan:
        said, took = plan["predicted"], plan["actual"]
        lines.append(
            f"FPE a category: {took['fpe']:.2f}, predicted {said['fpe']:.1f}, at most "
            f"{said['fpe_upper']:.1f}; memory {size(took['memory_bytes'])}, predicted "
            f"{size(said['memory_bytes'])}"
        )
    folder = run.get("folder")
    if folder:
        here = os.path.relpath(folder)
        shown = folder if here.startswith(os.pardir) else here
        lines.append(f"run folder {plain(shown)}")
    return lines


def emit_rows(
    rows: Table, form: str, left: int = 1, columns: Mapping[str, str] | None = None
) -> None:
    """Print rows as `rows_text` does; JSON lines and CSV a part at a time."""
    if form == "csv" and not rows:
        emit(as_csv([], rows.columns))
        return
    if form not in ("jsonl", "csv") or not rows:
        emit(rows_text(rows.nested, form, left=left, columns=columns))
        return
    for start in range(0, len(rows), PART):
        text = rows_text(rows.nested[start : start + PART], form)
        emit(text.partition("\n")[2] if start and form == "csv" else text)


def rows_text(
    rows: Sequence[Mapping[str, Any]],
    form: str,
    *,
    left: int = 1,
    columns: Sequence[str] | Mapping[str, str] | None = None,
) -> str:
    """Records of equal keys in one of the four formats (``json``: a list).

    A table shows ``columns`` of the flat record (a mapping: with these headings), all by default.
    """
    if form == "json":
        return json.dumps(list(rows), indent=2, default=str) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, default=str) + "\n" for row in rows)
    from circuitcore.analysis.rows import flat

    level = [flat(row) for row in rows]
    if form == "csv":
        return as_csv(level)
    if not rows:
        return "nothing\n"
    chosen = list(columns or level[0])
    named = columns if isinstance(columns, Mapping) else {}
    headings = [named.get(name) or name.replace("_", " ") for name in chosen]
    return table(headings, ([_shown(row.get(n)) for n in chosen] for row in level), left=left)


def transfer_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Two rows a circuit on other images: with frozen biases, and with those refitted there."""
    rows = []
    for row in found:
        for bias, each in (("frozen", row), ("refitted", row["refitted"])):
            csa = [each[name] for name in ("circuit", "unpruned", "random", "empty")]
            ends = each["csa_ratio_ci95"]
            rows.append(
                [
                    row["category"] if bias == "frozen" else "",
                    bias,
                    *(number(None if at is None else at["csa"], 2) for at in csa),
                    number(each["csa_ratio"], 2),
                    f"{ends[0]:.2f}-{ends[1]:.2f}" if ends else UNDEFINED,
                ]
            )
    headings = ["category", "bias", "circuit", "unpr.", "random", "empty", "ratio", "95 %"]
    text = "held-out CSA there; ratio: circuit over unpruned network, each at its own bias\n"
    return table(headings, rows, left=2) + "\n" + text if rows else "nothing\n"


def _shown(value: Any) -> str:
    if value is None:
        return UNDEFINED
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return UNDEFINED
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

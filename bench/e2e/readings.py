"""The paper's figures on the thousand characters, for several readings of the method.

``python bench/e2e/readings.py FOLDER --categories 24`` draws so many of the 1,000 categories with
seed 0 and extracts their circuits as `READINGS` read the method: scores, level bytes and
activations that readings of one grid share are computed once.  Each reading is a run folder
``FOLDER/NAME``, so that the same command, with more categories or after a stop, goes on from what
is there.  It ends with the table of ``docs/readings.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from glyphs import problem

from circuitcore.api.run import Run
from circuitcore.api.verbs import open_run
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.stage import scored
from circuitcore.inputs.read import read_inputs
from circuitcore.jobs.job import commit, finish
from circuitcore.machine.device import machine
from circuitcore.options import PRESETS, Options
from circuitcore.progress import Silent
from circuitcore.runs.folder import create_run

READINGS = {
    "matched": {},
    "strict": PRESETS["strict"],
    "paper-literal": PRESETS["paper-literal"],
    "vss": PRESETS["vss"],
}
PUBLISHED = [
    ("paper, 1,000 categories of ImageNet", "45.3 ± 16.2", "–", "47.5 / 52.3", "0.909", "–"),
    (
        "VSS abstract, the same",
        "95.0 (median)",
        "–",
        "85 % kept by choice",
        "–",
        "< 0.01 to > 0.99",
    ),
]


def drawn(categories: int, count: int, seed: int = 0) -> list[int]:
    """Output units, in the order they are drawn: more of them begin with the same ones."""
    return np.random.default_rng(seed).permutation(categories)[:count].tolist()


def options_of(folder: Path, images: Path, weights: Path, **reading: object) -> Options:
    """The thousand-way problem under one reading; ``folder``: its run folder."""
    return Options(
        model=f"file:{weights}", arch="alexnet", images=str(images), resize=64, crop=64,
        out=folder, quiet=True, **reading,
    )  # fmt: skip


def extract(folder: Path, count: int) -> dict[str, Run]:
    """The runs of all readings, complete for ``count`` categories."""
    images, weights = problem(folder)
    options = {name: options_of(folder / name, images, weights, **reading)
               for name, reading in READINGS.items()}  # fmt: skip
    first = next(iter(options.values()))
    inputs, on = read_inputs(first), machine(first)
    runs = {name: create_run(folder / name, inputs, own, on.device)
            for name, own in options.items()}  # fmt: skip
    wanted = drawn(len(inputs.categories), count)
    names = {c.index: c.name for c in inputs.categories}
    prepared = prepare(inputs, first, on, Silent())
    grids = {own.grid("fc"): [n for n in options if options[n].grid("fc") == own.grid("fc")]
             for own in options.values()}  # fmt: skip
    for group in grids.values():
        missing = [u for u in wanted if not all(runs[name].finished(u) for name in group)]
        for done, unit in enumerate(missing):
            began, work = time.perf_counter(), scored(prepared, unit, share=True)
            for name in group:
                own = replace(prepared, options=options[name])
                commit(runs[name], extract_circuit(own, unit, names[unit], work=work))
            took = time.perf_counter() - began
            print(f"{', '.join(group)}: {done + 1} of {len(missing)}, {took:.1f} s", flush=True)
    for run in runs.values():
        finish(run, Silent())
    return {name: open_run(run.folder) for name, run in runs.items()}


def row(name: str, run: Run) -> tuple[str, ...]:
    """One reading's figures, as the paper reports them."""
    document = run.document
    s, overlap = document.summary, document.overlap
    undefined = sum(s.undefined.values())
    label = name + (f" ({undefined} NA)" if undefined else "")
    if s.mean_pruned is None:
        return label, *["NA"] * 5

    def shown(value: float | None, digits: int = 3) -> str:
        return "NA" if value is None else f"{value:.{digits}f}"

    circuits = [c for c in document.categories if c.circuit is not None]
    hits = np.mean([c.unpruned.heldout.hit for c in circuits])
    return (
        label,
        f"{100 * s.mean_pruned:.1f} ± {100 * (s.sd_pruned or 0):.1f}",
        f"{100 * (s.mean_heldout_hit or 0):.1f} / {100 * hits:.1f}",
        f"{100 * (s.mean_heldout_csa or 0):.1f} / {100 * (s.mean_unpruned_heldout_csa or 0):.1f}",
        f"{shown(s.ratio_of_means)} ({shown(s.ratio_of_means_unbiased)})",
        f"{shown(overlap.mean, 2)} ({shown(overlap.min, 2)} to {shown(overlap.max, 2)})",
    )


def table(runs: dict[str, Run]) -> str:
    """Markdown: what each reading gives, and what was published."""
    heading = ("reading", "pruned, % ± s.d.", "held-out hits, % / unpruned",
               "held-out CSA, % / unpruned at b = 0", "ratio of means (to b = 0)",
               "overlap, mean (range)")  # fmt: skip
    rows = [row(name, run) for name, run in runs.items()] + PUBLISHED
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", type=int, default=24)
    options = parser.parse_args(arguments)
    print(table(extract(options.folder, options.categories)))


if __name__ == "__main__":
    main()

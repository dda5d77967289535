"""The thousand-way problem, swept with the defaults: figures, floors, cost, and screening's check.

``python bench/e2e/glyph_sweep.py FOLDER --categories 20`` sweeps so many categories drawn with
seed 0 (resumed where it was stopped), prints the table and summary, overlap against chance, FPE and
seconds a category part by part, and holds three of them against ``--screen off``.  ``--controls``
judges the controls of all of them too, the longest part.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from glyphs import problem
from readings import drawn, options_of

import circuitcore
from circuitcore.api.run import Run
from circuitcore.cli.tables import sweep_text


def swept(folder: Path, images: Path, weights: Path, units: Sequence[int], **more: object) -> Run:
    """A run of these units, resumed."""
    options = options_of(folder, images, weights, **more)
    given = options.as_json(exclude={"model", "images", "out", "quiet", "format"})
    kept = {name: value for name, value in given.items() if value is not None}
    return circuitcore.sweep(options.model, images, categories=units, out=folder, **kept)


def costs(run: Run) -> str:
    """FPE and seconds of a category, mean and most, part by part."""
    found = [record.cost for record in run.document.categories]
    lines = []
    for name in ("fpe", "fpe_sweep", "fpe_certify", "fpe_heldout", "fpe_floor", "seconds",
                 "floor_seconds"):  # fmt: skip
        values = [getattr(cost, name) or 0.0 for cost in found]
        lines.append(f"{name:14} mean {np.mean(values):7.3f}  most {max(values):7.3f}")
    memory = max(cost.memory_bytes for cost in found)
    return "\n".join([*lines, f"memory {memory / 1e6:.0f} MB"])


def against_off(screened: Run, off: Run) -> int:
    """Stages whose level differs from the one that evaluating everything chooses."""
    differ = 0
    for name in off:
        ours, whole = screened[name].record, off[name].record
        print(f"{name}: {ours.cost.fpe:.2f} FPE, {ours.cost.seconds:.1f} s; every level "
              f"{whole.cost.fpe:.2f} FPE, {whole.cost.seconds:.1f} s")  # fmt: skip
        for a, b in zip(ours.stages, whole.stages, strict=True):
            differ += a.levels[a.chosen].level != b.levels[b.chosen].level
    return differ


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", type=int, default=20)
    parser.add_argument("--controls", action="store_true")
    options = parser.parse_args(arguments)
    images, weights = problem(options.folder)
    units = drawn(1000, options.categories)
    run = swept(options.folder / "sweep", images, weights, units)
    print(sweep_text(run.document, "table"))
    print(costs(run))
    off = swept(options.folder / "off", images, weights, units[:3], screen="off")
    print(f"{against_off(run, off)} of 6 stages differ from --screen off")
    if options.controls:
        for each in run.controls():
            print(each["category"], each["control"], each["heldout_hit"], each["heldout_csa"])


if __name__ == "__main__":
    main()

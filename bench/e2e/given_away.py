"""How much faster a compacted circuit runs than the network it is of: bundled, and an AlexNet.

``python bench/e2e/given_away.py FOLDER`` sweeps three categories of the bundled example with the
defaults and two of the AlexNet of `alexnet` (``--pixels`` of its images), compacts each circuit and
prints multiply-adds and quartiles of the ratio of seconds, measured side by side
(`circuitcore.analysis.giving.speed`).  ``--alexnet-categories 0`` leaves the AlexNet out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from alexnet import image_folder, trained_alexnet  # noqa: E402

import circuitcore  # noqa: E402
from circuitcore.api.run import Run  # noqa: E402

BUNDLED = ("Trouser", "Dress", "Bag")
LEVELS = "0,0.5,0.8,0.9,0.95,0.98,0.99"


def told(name: str, run: Run) -> None:
    """A line a circuit."""
    for category, circuit in run.items():
        if circuit.record.circuit is None:
            print(f"{name} {category}: no circuit")
            continue
        speed = circuit.write_compact().speed
        assert speed is not None
        low, middle, high = speed.ratio
        work = speed.multiply_adds_ratio or float("inf")
        print(
            f"{name} {category}: {circuit.record.circuit.pruned:.1%} pruned, {work:.2f} x fewer "
            f"multiply-adds, {middle:.2f} x as fast ({low:.2f} to {high:.2f}), batch "
            f"{speed.batch}, {speed.rounds} rounds, {speed.threads} threads, {speed.device}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--alexnet-categories", type=int, default=2)
    options = parser.parse_args(arguments)
    told("bundled", circuitcore.sweep(categories=BUNDLED, out=options.folder / "bundled"))
    if not options.alexnet_categories:
        return
    weights, images = trained_alexnet(), options.folder / "images"
    if not images.exists():
        image_folder(images, 4, 16)
    run = circuitcore.sweep(
        f"file:{weights}", images, arch="alexnet", categories=range(options.alexnet_categories),
        resize=options.pixels, crop=options.pixels, extraction_images=8, heldout_images=8,
        levels=LEVELS, out=options.folder / "alexnet",
    )  # fmt: skip
    told("alexnet", run)


if __name__ == "__main__":
    main()

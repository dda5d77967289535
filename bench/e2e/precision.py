"""bfloat16 against float32 on this machine: the thousand-way problem, category by category in turn.

``python bench/e2e/precision.py FOLDER --categories 2`` prints, for each, seconds and image runs of
both, whether the circuits are equal, and the ratio of the sums of seconds.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from glyphs import problem
from readings import drawn, options_of

from circuitcore.engine.prepare import prepare
from circuitcore.engine.runner import Runner
from circuitcore.extraction.circuit import Extracted, extract_circuit
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.progress import Silent


def counted(runs: Counter[bool]) -> None:
    """Count image runs from now on, by whether they are in float32."""
    plain = Runner.run_chunks

    def run_chunks(self, split, images, network, features, levels, run, precise=True):
        runs[precise or not self.machine.low] += levels * len(images)
        return plain(self, split, images, network, features, levels, run, precise)

    Runner.run_chunks = run_chunks


def same(a: Extracted, b: Extracted) -> bool:
    """Whether masks, hits, false alarms and bias are equal, held out too."""
    if a.record.circuit is None or b.record.circuit is None:
        return a.record.circuit is b.record.circuit
    masks = all(torch.equal(a.kept[name], b.kept[name]) for name in b.kept)
    figures = [
        (c.extraction.hit, c.extraction.false_alarms, c.heldout.hit, c.heldout.false_alarms)
        for c in (a.record.circuit, b.record.circuit)
    ]
    close = abs(a.record.circuit.bias - b.record.circuit.bias) < 1e-5
    return masks and figures[0] == figures[1] and close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", type=int, default=2)
    parser.add_argument("--heldout", type=int, default=30)
    given = parser.parse_args()
    images, weights = problem(given.folder)
    options = options_of(
        given.folder / "precision", images, weights, random_masks=0, device="cpu",
        heldout_images=given.heldout,
    )  # fmt: skip
    whole = prepare(read_inputs(options), options, machine(options), Silent())
    low = replace(whole.runner.machine, dtype=torch.bfloat16)
    network = whole.runner.network.to(low.device, low.dtype)
    both = {
        "float32": whole,
        "bfloat16": replace(whole, runner=replace(whole.runner, machine=low, low_network=network)),
    }
    runs: Counter[bool] = Counter()
    counted(runs)
    seconds: Counter[str] = Counter()
    for unit in drawn(1000, given.categories):
        found = {}
        for name, prepared in both.items():
            runs.clear()
            began = time.perf_counter()
            found[name] = extract_circuit(prepared, unit, str(unit))
            spent = time.perf_counter() - began
            seconds[name] += spent
            fpe = found[name].record.cost.fpe
            print(f"{unit} {name}: {spent:.1f} s, {fpe:.2f} FPE, image runs: {runs[False]} in low "
                  f"precision, {runs[True]} in float32", flush=True)  # fmt: skip
        print("  circuits equal:", same(found["bfloat16"], found["float32"]), flush=True)
    print(f"float32 / bfloat16 seconds: {seconds['float32'] / seconds['bfloat16']:.2f}")


if __name__ == "__main__":
    main()

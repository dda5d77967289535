"""What ends a run of a thousand categories of AlexNet's size: tables, overlaps, report.

``python bench/e2e/finishing.py FOLDER --categories 1000`` writes a run whose circuits are drawn at
random with the densities of real ones, layer by layer (7 MB each; their records are those of the
bundled example's, renamed), then opens it, finishes it and prints its document in processes of
their own: seconds and peak memory of each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from circuitcore.api.verbs import sweep
from circuitcore.inputs.shapes import shapes_inputs
from circuitcore.options import Options
from circuitcore.runs.circuitfile import write_circuit
from circuitcore.runs.folder import create_run, open_run

# kept fractions of the circuits of a full-size AlexNet by the defaults, `docs/readings.md`:
# a third of the weights in the mean, of single circuits between these
LEAST, MOST = 0.02, 0.95
PARTS = {
    "open": "open_run(folder)",
    "records": "open_run(folder).records()",
    "finish": "finish(open_run(folder), Silent())",
    "report again": "report(open_run(folder), Silent())",
}
CHILD = """
import sys, time
from pathlib import Path
from circuitcore.jobs.job import finish, report
from circuitcore.progress import Silent
from circuitcore.runs.folder import open_run
folder, began = Path(sys.argv[1]), time.perf_counter()
{code}
took = time.perf_counter() - began
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]
print(f"{{took:.1f}} s beside imports, {{int(peak) / 1e6:.2f}} GB at most", flush=True)
"""


def made(folder: Path, categories: int) -> None:
    """Write the run, as far as it is not there."""
    options = Options(model="tv:alexnet-shapes")
    inputs = shapes_inputs(options)
    run = create_run(folder, inputs, options, torch.device("cpu"))
    network = inputs.model.network
    shapes = {name: network.relevant_shape(name) for name in network.layers()}
    like = sweep(out=folder.with_name(f"{folder.name}-bundled")).folder
    records = open_run(like).records()
    for unit in range(categories):
        path = run.path(unit)
        if path.exists():
            continue
        random = np.random.default_rng(unit)
        record = records[unit % len(records)]
        circuit = record.circuit.model_copy(update={"file": ""})
        renamed = {"category": f"category {unit}", "index": unit, "circuit": circuit}
        density = np.exp(random.uniform(np.log(LEAST), np.log(MOST)))
        kept = {}
        for name, shape in shapes.items():
            own = 1.0 if name.startswith("features") else density
            size = int(np.prod(shape))
            bits = np.unpackbits(drawn(size, own, random), count=size).astype(bool)
            kept[name] = torch.from_numpy(bits).view(shape)
        write_circuit(path, path.stem, record.model_copy(update=renamed), kept)


def drawn(size: int, density: float, random: np.random.Generator) -> np.ndarray:
    """Bits, one in ``density``, to 1 in 256: as many coins a bit as that takes, packed."""
    length, wanted = -(-size // 8), round(256 * density)
    if wanted >= 256:
        return np.full(length, 255, np.uint8)
    found = np.zeros(length, np.uint8)
    for place in range(8):
        coin = np.frombuffer(random.bytes(length), np.uint8)
        found = found | coin if wanted >> place & 1 else found & coin
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", type=int, default=1000)
    options = parser.parse_args()
    began = time.perf_counter()
    made(options.folder, options.categories)
    print(f"written in {time.perf_counter() - began:.0f} s")
    for name, code in PARTS.items():
        print(name, end=": ", flush=True)
        child = CHILD.format(code=code)
        subprocess.run([sys.executable, "-P", "-c", child, str(options.folder)], check=True)


if __name__ == "__main__":
    main()

"""Memory predicted against memory measured, and an ImageNet-sized extraction set in 8 GB.

``python bench/e2e/memory.py`` runs a few sweeps, each in a process of its own, and prints a table.
``python bench/e2e/memory.py 20000`` runs the fc stage of a trained full-size AlexNet on so many
images in a process that may take 8 GB at most, and prints what the whole run would take.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))  # alexnet.py is no package

import numpy as np  # noqa: E402
import torch  # noqa: E402
from alexnet import image_folder, trained_alexnet  # noqa: E402
from contenders import reference_of  # noqa: E402

from circuitcore.cli.config import resolve  # noqa: E402
from circuitcore.engine.executors import executor  # noqa: E402
from circuitcore.engine.footprint import Counts, predicted  # noqa: E402
from circuitcore.engine.prepare import Prepared, prepare  # noqa: E402
from circuitcore.engine.splits import Split  # noqa: E402
from circuitcore.extraction.judging import judges  # noqa: E402
from circuitcore.extraction.stage import sweep_stage  # noqa: E402
from circuitcore.inputs.read import Inputs, read_inputs  # noqa: E402
from circuitcore.jobs.job import sweep  # noqa: E402
from circuitcore.machine.device import machine  # noqa: E402
from circuitcore.machine.meter import Meter  # noqa: E402
from circuitcore.machine.scratch import Scratch  # noqa: E402
from circuitcore.network.forward import Tally  # noqa: E402
from circuitcore.options import Options  # noqa: E402
from circuitcore.progress import Silent  # noqa: E402
from circuitcore.scoring.levels import stage_levels  # noqa: E402
from circuitcore.scoring.scores import contributions  # noqa: E402

GB = 10**9
SMALL = {"levels": "6", "screen": "off"}
ROWS: list[tuple[str, str, dict[str, str]]] = [
    ("bundled", "all", {}),
    ("bundled", "Trouser", {"memory": "64M"}),
    ("alexnet", "Trouser,Coat", {**SMALL}),
    ("alexnet", "Trouser,Coat", {**SMALL, "memory": "600M"}),
    ("alexnet", "Trouser,Coat", {**SMALL, "dtype": "bfloat16"}),
    ("alexnet", "Coat", {"screen": "off"}),
]


def options_of(model: str, more: dict[str, str], folder: Path) -> Options:
    """Options of a sweep on the CPU; AlexNet on 10 x 20 images of 128 pixels."""
    flags = {"device": "cpu", "out": folder / "run", **more}
    if model == "alexnet":
        flags |= {"model": f"file:{trained_alexnet()}", "arch": "alexnet", "resize": 128}
        flags |= {"crop": 128, "images": str(image_folder(folder / "images", 4, 50))}
    return resolve(flags, environment={})


def prediction(inputs: Inputs, options: Options, categories: int, extraction: int) -> int:
    """Predicted peak bytes of a sweep of so many categories on so many extraction images."""
    first = inputs.source.pixels(inputs.images[0].path, inputs.model.preprocessing)
    counts = Counts(extraction, len(inputs.split("heldout")), categories)
    found = predicted(inputs.model.network, first.shape, options, machine(options), counts)
    return max(found.values())


def row(number: int) -> None:
    """One sweep of the table, in this process."""
    model, wanted, more = ROWS[number]
    with tempfile.TemporaryDirectory() as place:
        options = options_of(model, more, Path(place))
        names = [] if wanted == "all" else wanted.split(",")
        inputs = read_inputs(options)
        said = prediction(inputs, options, len(names) or 10, len(inputs.split("extraction")))
        del inputs
        document = sweep(options, names, Silent())
    took = max(category.cost.memory_bytes for category in document.categories)
    print(json.dumps({"predicted": said, "measured": took}))


def table() -> None:
    """Every row in a process of its own."""
    print("| network | options | predicted | measured | ratio |\n|---|---|---|---|---|")
    for number, (model, wanted, more) in enumerate(ROWS):
        command = [sys.executable, __file__, "--row", str(number)]
        last = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(last.splitlines()[-1])
        said, took = found["predicted"] / 1e6, found["measured"] / 1e6
        shown = " ".join(f"--{name} {value}" for name, value in more.items()) or "defaults"
        print(
            f"| {model}, {wanted} | {shown} | {said:.0f} MB | {took:.0f} MB | {said / took:.2f} |",
            flush=True,
        )


def many(prepared: Prepared, images: int) -> Split:
    """An extraction set of ``images``: the small one's, repeated with noise."""
    few, random = prepared.extraction, np.random.default_rng(0)
    (name, stored), size = next(iter(few.features.items())), len(few)
    values = Scratch().array(name, (images, *stored.shape[1:]), stored.dtype)
    for first in range(0, images, size):
        part = stored[: images - first]
        values[first : first + size] = part * random.uniform(0.9, 1.1, (len(part), 1))
    at = torch.arange(images) % size
    return Split(few.pixels, few.labels[at], few.logits[at], {name: values})


def fc_stage(images: int) -> None:
    """The fc stage of one category on ``images`` images, in a process of at most 8 GB."""
    resource.setrlimit(resource.RLIMIT_DATA, (8 * GB, 8 * GB))
    with tempfile.TemporaryDirectory() as place:
        more = {"levels": "0,0.7,0.9,0.97,0.99", "screen": "off", "memory": "6500M"}
        options = options_of("alexnet", more, Path(place))
        inputs = read_inputs(options)
        with Meter(torch.device("cpu")) as meter:
            prepared = prepare(inputs, options, machine(options), Silent())
            object.__setattr__(prepared, "extraction", many(prepared, images))
            judge, _ = judges(prepared, 4)
            found = contributions(prepared.runner.network, prepared.scoring_images(4), 4)
            assigned = stage_levels(prepared.runner.network, "fc", found, 4, options)
            reference = reference_of(prepared, 4)
            began = time.perf_counter()
            swept = sweep_stage(
                prepared,
                executor(prepared.runner, prepared.extraction, 4, assigned, {}, Tally()),
                judge,
                start=judge.unpruned,
                reference=reference,
            )
        features = next(iter(prepared.extraction.features.values()))
        shown = " x ".join(map(str, features.shape))
        print(f"{shown} float32 boundary values, {features.nbytes / 1e6:.0f} MB on disk")
        print(f"fc stage: level {swept.level}, {time.perf_counter() - began:.0f} s, ", end="")
        print(f"{meter.peak / 1e6:.0f} MB beside the model, of 8 GB that the process may take")
        whole = prediction(inputs, options, 10, images)
        print(f"a whole run on as many images, predicted: {whole / 1e6:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        row(int(sys.argv[2]))
    elif len(sys.argv) > 1:
        fc_stage(int(sys.argv[1]))
    else:
        table()

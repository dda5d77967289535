"""A sweep of many categories by two workers that are killed at random, watched all along.

The images are the bundled ones, each category's shown in a hundred ways (moved, turned, mirrored,
negative); the network is the bundled one with a last layer solved for as many output units.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.inputs.pixels import Preprocessing, to_input

SPLITS = {"train": 1, "val": 2}  # scoring; extraction and held out
OPTIONS = (
    "--scoring-images", "1", "--extraction-images", "1", "--heldout-images", "1",
    "--fc-levels", "0,0.5,0.9", "--conv-levels", "0,0.4", "--threshold", "0.5",
    "--screen", "off", "--device", "cpu",
)  # fmt: skip
POLL = 0.2


def shown(pixels: np.ndarray, way: int) -> np.ndarray:
    """A bundled image in one of 100 ways."""
    found = np.rot90(pixels, way % 4)
    found = found[:, ::-1] if way // 4 % 2 else found
    found = 255 - found if way // 8 % 2 else found
    return np.roll(found, (way // 16 % 7 - 3) * 3, axis=1)


def write_problem(folder: Path, categories: int) -> list[str]:
    """``folder/images`` in ImageNet's layout and ``folder/net.safetensors``; their options."""
    kinds = sorted(path.name for path in (IMAGES / "train").iterdir())
    inputs, targets = [], []
    network, _, own = load_bundled()
    preprocessing = Preprocessing(None, None, own.mean, own.std, 1)
    for category in range(categories):
        kind, way = kinds[category % len(kinds)], category // len(kinds)
        for split, count in SPLITS.items():
            there = folder / "images" / split / f"{category:04d}"
            there.mkdir(parents=True)
            for number, path in enumerate(sorted((IMAGES / split / kind).iterdir())[:count]):
                pixels = np.ascontiguousarray(shown(np.asarray(Image.open(path)), way))
                Image.fromarray(pixels).save(there / f"{number}.png")
                inputs.append(torch.from_numpy(pixels)[None])
                targets.append(category)
    _solve(network, to_input(torch.stack(inputs), preprocessing, torch.device("cpu")), targets)
    save_file(network.state_dict(), folder / "net.safetensors")
    return ["--model", f"file:{folder / 'net.safetensors'}", "--arch", "bundled",
            "--images", str(folder / "images"), *OPTIONS]  # fmt: skip


def _solve(network: torch.nn.Module, inputs: torch.Tensor, targets: list[int]) -> None:
    """Give the network a last layer that tells these images apart, as far as its features do."""
    with torch.no_grad():
        maps = torch.cat([network.features(part).flatten(1) for part in inputs.split(256)])
        hidden = network.classifier[:-1](maps).double()
        hidden = torch.nn.functional.pad(hidden, (0, 1), value=1.0)
        wanted = 8 * torch.nn.functional.one_hot(torch.tensor(targets)).double()
        ridge = 1e-3 * hidden.square().mean() * torch.eye(hidden.shape[1], dtype=torch.double)
        solved = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.T @ wanted).float()
    last = torch.nn.Linear(hidden.shape[1] - 1, wanted.shape[1])
    last.weight = torch.nn.Parameter(solved[:-1].T.contiguous())
    last.bias = torch.nn.Parameter(solved[-1].clone())
    network.classifier[-1] = last


class Watched:
    """What is seen of a run while it is worked on.

    ``units``: each category's file as it was first seen, by inode; ``again``: those that became
    another file since; ``memory``: bytes of every living worker, by process and category done.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.units: dict[str, int] = {}
        self.again: list[str] = []
        self.memory: dict[int, list[tuple[int, int]]] = {}

    def look(self, workers: list[subprocess.Popen]) -> None:
        for path in self.run.glob("units/??/*.safetensors"):
            inode = path.stat().st_ino
            if self.units.setdefault(path.stem, inode) != inode:
                self.again.append(path.stem)
                self.units[path.stem] = inode
        for worker in workers:
            if (used := resident(worker.pid)) is not None:
                self.memory.setdefault(worker.pid, []).append((len(self.units), used))

    def growth(self) -> float:
        """Memory of the longest-lived worker in its last quarter over that in its second."""
        longest = max(self.memory.values(), key=len)
        parts = np.array_split(np.array([used for _, used in longest]), 4)
        return statistics.median(parts[3]) / statistics.median(parts[1])


def resident(pid: int) -> int | None:
    """Bytes of a process's own memory that are in RAM: files it maps are not its own."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def start(run: Path, log: Path) -> subprocess.Popen:
    """A worker process that joins the run."""
    command = [sys.executable, "-P", "-m", "circuitcore.cli.main", "worker", str(run), "--quiet"]
    with log.open("ab") as said:
        return subprocess.Popen(
            command, stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def soak(run: Path, categories: int, kills: int, seed: int) -> tuple[Watched, int]:
    """Work on a run that was begun until it is done, killing ``kills`` workers on the way.

    Kills fall at random instants over the first two thirds of the categories; another worker then
    takes the dead one's place.  Returns what was seen, and how many workers were started.
    """
    chance, seen, log = random.Random(seed), Watched(run), run.parent / "workers.log"
    instants = sorted(chance.uniform(0, categories * 2 / 3) for _ in range(kills))
    workers = [start(run, log) for _ in range(2)]
    started = 2
    while any(worker.poll() is None for worker in workers):
        time.sleep(POLL)
        seen.look(workers)
        while instants and len(seen.units) > instants[0]:
            del instants[0]
            time.sleep(chance.uniform(0, POLL))  # so that it falls anywhere in a category
            victim = chance.randrange(2)
            workers[victim].send_signal(signal.SIGKILL)
            assert workers[victim].wait() in (-signal.SIGKILL, 0)
            workers[victim] = start(run, log)
            started += 1
        assert all(w.returncode in (None, 0) for w in workers), log.read_text()[-3000:]
    seen.look([])
    assert not instants, f"{len(instants)} kills were left over"
    return seen, started

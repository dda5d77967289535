"""What a category of the thousand-way problem costs: against another version, on the host, planned.

``python bench/e2e/glyph_cost.py FOLDER --before CHECKOUT`` sweeps the same categories, drawn with
seed 0, with the package of another checkout at its defaults and with this one under ``--preset
strict`` and at its defaults, in turns, each a process of its own; a category's seconds are its
scoring, sweep, certificate and held-out test, without decoding.  Without ``--before`` it says what
of a category is the host's: all but the network's own passes, scores and levels, by a profile; and
how near the time and memory that ``plan`` predicts come to what the sweep took.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from glyphs import problem
from readings import drawn, options_of

from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.planning.plan import plan
from circuitcore.inputs.read import read_inputs
from circuitcore.jobs.job import commit
from circuitcore.machine.device import machine
from circuitcore.progress import Silent
from circuitcore.runs.folder import create_run

NETWORK = {  # the network's arithmetic, and what it runs on: file, function
    ("executors.py", "look"), ("executors.py", "executor"), ("passes.py", "circuit_pass"),
    ("passes.py", "run"), ("scores.py", "contributions"), ("levels.py", "stage_levels"),
    ("floor.py", "random_mask"),
}  # fmt: skip


def sweep(package: Path | None, out: Path, arguments: Sequence[str]) -> dict[str, dict]:
    """Categories by name, swept in a process of its own with the package of a checkout."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as made:
        if package is not None:
            root = Path(made) / "circuitcore"
            root.mkdir()
            for path in (package / "circuitcore").iterdir():
                (root / path.name).symlink_to(path)
            for name in ("kernels", "cli"):
                (root / name).symlink_to(package / name)
            environment["PYTHONPATH"] = made
        code = "import sys; from circuitcore.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "sweep", *arguments, "--out", str(out)]
        done = subprocess.run(
            [*command, "--format", "json", "--quiet"], env=environment, cwd=made,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return {each["category"]: each for each in json.loads(done.stdout)["categories"]}


def race(folder: Path, before: Path, count: int, rounds: int) -> None:
    """Print seconds a category of every contender, and whether the circuits are the same."""
    images, weights = problem(folder)
    names = sorted(path.name for path in (images / "train").iterdir())
    contenders: dict[str, tuple[Path | None, list[str]]] = {
        "before": (before, []),
        "strict": (None, ["--preset", "strict"]),
        "default": (None, []),
    }
    took: dict[str, list[float]] = {name: [] for name in contenders}
    same = 0
    for number in range(rounds):
        units = drawn(1000, count * rounds)[number::rounds]
        chosen = [names[unit] for unit in units]
        given = [*chosen, "--model", f"file:{weights}", "--arch", "alexnet", "--images",
                 str(images), "--resize", "64", "--crop", "64"]  # fmt: skip
        found = {}
        for name, (package, more) in contenders.items():
            with tempfile.TemporaryDirectory(dir=folder) as out:
                found[name] = sweep(package, Path(out) / "run", [*given, *more])
            took[name] += [each["cost"]["seconds"] for each in found[name].values()]
        for name in chosen:
            a, b = (found[which][name]["circuit"] for which in ("before", "strict"))
            keys = ("kept_weights", "pruned_fc", "pruned_conv")
            same += (a is None and b is None) or all(a[key] == b[key] for key in keys)
    print(f"{count * rounds} categories, {same} with the same circuit before and under strict")
    for name, seconds in took.items():
        ratio = sum(seconds) / sum(took["before"])
        print(f"{name:8} mean {mean(seconds):6.2f} s, median {median(seconds):6.2f} s, "
              f"{ratio:.2f} of before")  # fmt: skip


def host(folder: Path, count: int) -> None:
    """Print seconds of the host a category, and what plan predicts beside what the sweep took."""
    images, weights = problem(folder)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        options = options_of(Path(out) / "run", images, weights)
        inputs, on = read_inputs(options), machine(options)
        units = drawn(1000, count + 1)
        wanted = [str(unit) for unit in units[1:]]
        planned = plan(inputs, options, on, wanted, Silent(), probe=True)
        run = create_run(Path(out) / "run", inputs, options, on.device)
        began = time.perf_counter()
        prepared = prepare(inputs, options, on, Silent())
        ready = time.perf_counter() - began
        names = {c.index: c.name for c in inputs.categories}
        extract_circuit(prepared, units[0], names[units[0]])  # compiles what there is to compile
        hosts, walls = [], []
        for unit in units[1:]:
            profile, began = cProfile.Profile(), time.perf_counter()
            profile.enable()
            commit(run, extract_circuit(prepared, unit, names[unit]))
            profile.disable()
            walls.append(time.perf_counter() - began)
            hosts.append(walls[-1] - network_seconds(profile))
    print(f"host {mean(hosts):.3f} s a category, at most {max(hosts):.3f}, of {mean(walls):.2f} s")
    took = ready + sum(walls)
    print(f"{count} categories: {planned.seconds:.0f} s predicted, {took:.0f} s taken")


def network_seconds(profile: cProfile.Profile) -> float:
    """Seconds within `NETWORK`, each called from outside it."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    inside = {key for key in stats if (Path(key[0]).name, key[2]) in NETWORK}
    total = 0.0
    for key in inside:
        *_, callers = stats[key]
        total += sum(row[3] for caller, row in callers.items() if caller not in inside)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="a checkout of the version to race against")
    parser.add_argument("--categories", type=int, default=3, help="of a round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.before is not None:
        race(folder, options.before.resolve(), options.categories, options.rounds)
    else:
        host(folder, options.categories)


if __name__ == "__main__":
    main()

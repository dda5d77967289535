"""Rows of a benchmark run: pytest-benchmark's own JSON, and medians kept before it was the format.

A race (`bench/conftest.py`) keeps what tells its row from others in ``extra_info["race"]``; any
other benchmark of such a file is a row of one contender.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from circuitcore.errors import InputError
from circuitcore.machine.files import write_atomically

RACE = "race"  # the key in extra_info


@dataclass(frozen=True)
class Times:
    """Seconds of the rounds of one contender; of old rows the median alone is known.

    ``quartiles``: where rounds are not kept; ``count``: how many rounds there were.
    """

    median: float
    rounds: tuple[float, ...] = ()
    quartiles: tuple[float, float] | None = None
    count: int = 1

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Times:
        """All rounds are known."""
        return cls(median(rounds), tuple(rounds), count=len(rounds))

    def quantiles(self) -> dict[str, float]:
        """By name, 10, 25, 50, 75 and 90 %."""
        if len(self.rounds) < 2:
            return {"50 %": self.median}
        cuts = quantiles(self.rounds, n=20, method="inclusive")
        return {f"{5 * (k + 1)} %": cuts[k] for k in (1, 4, 9, 14, 17)}


@dataclass(frozen=True)
class Row:
    """One benchmark: ``name`` with its parameters, seconds of each contender, what it was of.

    ``ours``: the contender that the row is about; ``about``: device, dtype, shape, driver, commit,
    fpe, roofline … as far as they are known.
    """

    name: str
    device: str
    ours: str
    times: Mapping[str, Times]
    about: Mapping[str, Any] = field(default_factory=dict)
    note: Mapping[str, str] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """How many times faster ours is than each of the others."""
        own = self.times[self.ours].median
        return {n: each.median / own for n, each in self.times.items() if n != self.ours}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file.  Raises InputError where it is none of the two formats."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, list):
            return [_old(each) for each in held]
        return [_row(each, held) for each in held["benchmarks"]]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no JSON of pytest-benchmark ({error!r})") from error


def _old(each: Mapping[str, Any]) -> Row:
    """A row of medians."""
    times = {n: Times(s, count=each["rounds"][n]) for n, s in each["seconds"].items()}
    return Row(each["name"], each["device"], each["ours"], times, note=each["note"])


def _commit(held: Mapping[str, Any]) -> str | None:
    """The commit a run was of, where pytest-benchmark knew it."""
    found = held.get("commit_info", {})
    return found.get("id") and f"{found['id'][:12]}{'+' if found.get('dirty') else ''}"


def _row(each: Mapping[str, Any], held: Mapping[str, Any]) -> Row:
    race, stats = each.get("extra_info", {}).get(RACE), each["stats"]
    if race is not None:
        times = {name: Times.of(rounds) for name, rounds in race["rounds"].items()}
        about = {k: v for k, v in race.items() if k not in ("rounds", "quantiles", "ours", "note")}
        about.setdefault("commit", _commit(held))
        return Row(each["name"], race["device"], race["ours"], times, about, race["note"])
    rounds = stats.get("data") or ()
    quartiles = None if rounds else (stats["q1"], stats["q3"])
    own = Times(stats["median"], tuple(rounds), quartiles, stats["rounds"])
    machine = held.get("machine_info", {})
    device = machine.get("cpu", {}).get("brand_raw") or machine.get("machine") or "unknown device"
    about = {"commit": _commit(held)}
    return Row(each["name"], device, each["name"], {each["name"]: own}, about)


def keep_rows(source: Path, kept: Path) -> Path:
    """Keep a run as a baseline: rows of an earlier one of the same name and device give way.

    ``kept``: a file, or a folder in which each device has one, by its name.  Rows of a file of the
    old format give way altogether.  Returns the file.
    """
    rows = read_rows(source)
    if not rows:
        raise InputError(f"{source}: no benchmark in it: nothing to keep")
    if kept.is_dir() or not kept.suffix:
        kept = kept / baseline_name(rows[0].device)
    held = json.loads(source.read_text(encoding="utf-8"))
    for each in held["benchmarks"]:  # rows of other runs may come to stand beside them
        if RACE in each.get("extra_info", {}):
            each["extra_info"][RACE].setdefault("commit", _commit(held))
    if kept.is_file() and isinstance(before := json.loads(kept.read_text(encoding="utf-8")), dict):
        new = {(row.name, row.device) for row in rows}
        old = zip(before["benchmarks"], read_rows(kept), strict=True)
        left = [each for each, row in old if (row.name, row.device) not in new]
        held["benchmarks"] = [*left, *held["benchmarks"]]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, (json.dumps(held, indent=1, ensure_ascii=False) + "\n").encode())
    return kept


def baseline_name(device: str) -> str:
    """The file of a device's baseline: ``x86_64, 2 threads`` is ``x86_64-2-threads.json``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", device).strip("-") + ".json"

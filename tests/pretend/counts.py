"""What a pretended device was asked to do, counted by name and by the line of ours that asked."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import circuitcore
import circuitcore.cli
import circuitcore.kernels

ROOTS = {  # where the product's own files lie: folder -> how it is called in a site
    str(Path(next(iter(module.__path__))).resolve()): module.__name__.rpartition(".")[2]
    for module in (circuitcore, circuitcore.kernels, circuitcore.cli)
}
NOT_A_SITE = {str(file) for file in Path(__file__).parent.glob("*.py") if file.stem[:5] != "test_"}
NOT_A_SITE.add(f"{next(iter(circuitcore.kernels.__path__))}/launch.py")


def site() -> str:
    """The innermost function of the product that led here: ``engine/runner.py Runner.batch``.

    A function and not a line, so that a committed count survives an edit above it.  The caller's
    own file where nothing of the product is on the stack.
    """
    outside = "?"
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in NOT_A_SITE:
            for root, called in ROOTS.items():
                if name.startswith(root):
                    place = f"{called}{name[len(root) :]}".removeprefix("circuitcore/")
                    return f"{place} {frame.f_code.co_qualname}"
            if outside == "?" and "/torch/" not in name:
                outside = f"{Path(name).name} {frame.f_code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside


@dataclass(frozen=True)
class Launch:
    """A Triton launch, as much of it as decides which specialisation is compiled.

    ``pointers``: (dtype, address divisible by 16) by name; ``integers`` and ``floats``: values by
    name; ``constants``: of the kernel and the compiler.  ``elements``: of each pointer's storage
    from where it points, which bounds every offset a kernel computes.
    """

    kernel: str
    grid: tuple[int, ...]
    pointers: dict[str, tuple[str, bool]]
    integers: dict[str, int]
    floats: tuple[str, ...]
    constants: dict[str, Any]
    elements: dict[str, int]
    site: str

    @property
    def pattern(self) -> dict[str, str]:
        """What Triton specialises on: each integer is ``1``, ``16`` (divisible) or ``any``."""
        kinds = {n: "1" if v == 1 else "any" if v % 16 else "16" for n, v in self.integers.items()}
        return kinds | {n: "16" if even else "any" for n, (_, even) in self.pointers.items()}


@dataclass
class Counts:
    """All that happened on the pretended devices since the last `clear`.

    Launches by (name, site), those of torch and of Triton apart, inside a captured graph apart
    from those outside; ``syncs``: the host waited, by (why, site); ``to_device``, ``to_host``:
    bytes by site.
    """

    torch: Counter[tuple[str, str]] = field(default_factory=Counter)
    triton: Counter[tuple[str, str]] = field(default_factory=Counter)
    captured: Counter[tuple[str, str]] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: list[Launch] = field(default_factory=list)
    captures: int = 0
    replays: int = 0
    replayed: int = 0  # launches that replays made

    def clear(self) -> None:
        """Begin anew."""
        self.__dict__.update(Counts().__dict__)

    def totals(self) -> dict[str, int]:
        """One number of each kind."""
        return {
            "torch launches": self.torch.total(),
            "triton launches": self.triton.total(),
            "captured launches": self.captured.total(),
            "syncs": self.syncs.total(),
            "bytes to device": self.to_device.total(),
            "bytes to host": self.to_host.total(),
            "captures": self.captures,
            "replays": self.replays,
            "replayed launches": self.replayed,
        }

    def table(self, most: int = 12) -> str:
        """The totals, and the sites that make the most of each, for reading."""
        lines = [f"{name}: {number:,}" for name, number in self.totals().items()]
        for name in ("torch", "triton", "captured", "syncs", "to_device", "to_host"):
            found: Counter[Any] = getattr(self, name)
            lines += [f"  {name} {count:,} {key}" for key, count in found.most_common(most)]
        return "\n".join(lines)

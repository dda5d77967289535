"""How much of a kernel's main loop the matrix units work: counted in its machine code.

One of a multiprocessor's four schedulers issues one instruction of a warp a cycle; every warp runs
the same loop, so per warp and turn of the loop

    ratio = matrix cycles / max(issue slots, 2 x ALU instructions)

Below 1 the matrix units wait for instructions, however many warps there are.  Not in it: waiting
for memory, and shared memory's bandwidth.

Sources.  Multiply-adds a cycle of one matrix unit (four a multiprocessor), 16-bit dense: 256 on
sm_80, 512 on sm_90, TF32 half of it (NVIDIA A100 and H100 architecture white papers; H100 SXM:
989.4 TFLOP/s / 2 / 132 / 4 / 1.83 GHz = 512).  Integer, logic, compare, select and permute
instructions: 64 lanes a cycle and multiprocessor on both, two cycles a warp instruction; float32
128 lanes, one cycle (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions").
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MULTIPLY_ADDS = {"sm_80": 256, "sm_90": 512}  # a cycle of one matrix unit, 16-bit operands
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*?);")
LABEL = re.compile(r"^\.(L_x_\d+):")
CLASSES = (
    ("matrix", r"HGMMA|[HIDQ]MMA"),
    ("shared load", r"LDS|LDSM"),
    ("shared store", r"STS|STSM"),
    ("async copy", r"LDGSTS|UTMALDG|UBLKCP"),
    ("load", r"LDG|LD\b"),
    ("barrier", r"BAR|SYNCS|WARPGROUP|WARPSYNC|DEPBAR|LDGDEPBAR|ARRIVES|FENCE"),
    ("alu", r"ISETP|SEL|P?LOP3?|PRMT|SHF|IADD3?|LEA|VIADD|V?IMNMX|BMSK|SGXT|FSEL|[FH]SETP|FMNMX"
            r"|P2R|R2P"),
)  # fmt: skip
SHAPE = re.compile(r"HGMMA\.64x(\d+)x(\d+)|HMMA\.(16816|1688|1684)")
WARP_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}


@dataclass(frozen=True)
class Loop:
    """One turn of a main loop, per warp: instructions by class, cycles of the matrix unit."""

    instructions: dict[str, int]
    matrix_cycles: float

    @property
    def slots(self) -> int:
        return sum(self.instructions.values())

    @property
    def ratio(self) -> float:
        """Matrix-unit cycles over the cycles that issuing the rest takes."""
        return self.matrix_cycles / max(self.slots, 2 * self.instructions.get("alu", 0))


def main_loop(cubin: bytes, arch: str) -> Loop | None:
    """The innermost loop with the most matrix work; None where there is none, or no rate known."""
    if arch not in MULTIPLY_ADDS:
        return None
    listing = disassembled(cubin)
    loops = [listing[first : last + 1] for first, last in _loops(listing)]
    found = [loop for loop in loops if any(_class(name) == "matrix" for _, name, _ in loop)]
    if not found:
        return None
    best = max(found, key=lambda loop: (_cycles(loop, arch), -len(loop)))
    inner = [loop for loop in found if _cycles(loop, arch) >= 0.5 * _cycles(best, arch)]
    loop = min(inner, key=len)
    return Loop(dict(Counter(_class(name) for _, name, _ in loop)), _cycles(loop, arch))


def disassembled(cubin: bytes) -> list[tuple[str | None, str, str]]:
    """(label before it, instruction, operands) in order, by nvdisasm of Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        told = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"nvdisasm: {told.stderr}")
    listing: list[tuple[str | None, str, str]] = []
    label = None
    for line in told.stdout.splitlines():
        if match := LABEL.match(line.strip()):
            label = match[1]
        elif match := LINE.match(line):
            listing.append((label, match[2], match[3]))
            label = None
    return listing


def _loops(listing: list[tuple[str | None, str, str]]) -> list[tuple[int, int]]:
    """(first, last) of every backward branch's span."""
    places = {label: k for k, (label, _, _) in enumerate(listing) if label}
    spans = []
    for k, (_, name, operands) in enumerate(listing):
        if name.startswith("BRA") and (match := re.search(r"L_x_\d+", operands)):
            start = places.get(match[0], k + 1)
            if start <= k:
                spans.append((start, k))
    return spans


def _class(name: str) -> str:
    return next((kind for kind, pattern in CLASSES if re.match(rf"U?(?:{pattern})", name)), "other")


def _cycles(loop: list[tuple[str | None, str, str]], arch: str) -> float:
    cycles = 0.0
    for _, name, _ in loop:
        if match := SHAPE.match(name):
            tf32 = "TF32" in name
            work = 16 * int(match[1]) * int(match[2]) if match[1] else WARP_SHAPES[match[3]]
            cycles += work / (MULTIPLY_ADDS[arch] / (2 if tf32 else 1))
    return cycles

"""Proof without a GPU: every kernel compiled ahead of time for every target, and held to a budget.

Each operation lists, in ``aot_cases(arch)``, every (kernel, tile configuration, dtype) that its
launcher can choose.  Triton compiles them without a device, with the compilers of its own wheel;
the machine code says how many registers, spills and bytes of shared memory a kernel takes and
whether the matrix instructions, asynchronous copies and 16-byte loads it was written for are in
it.  ``budget.json`` holds those figures, keyed by Triton's version; a test fails where one gets
worse.  ``python -m circuitcore.kernels.aot --write-budget`` measures them again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import circuitcore.kernels as package
from circuitcore.kernels.aot.budget import CompiledKernel, read_budget, worse, write_budget
from circuitcore.kernels.aot.case import AotCase
from circuitcore.kernels.aot.issue import main_loop
from circuitcore.kernels.aot.targets import TARGETS, target
from circuitcore.kernels.cache import private_folder
from circuitcore.progress import Progress, Silent

WORKERS = 2

# what counts as what, in PTX (NVIDIA) and in the assembler text (AMD)
MATRIX = {
    "wgmma": r"\bwgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "tcgen05": r"\btcgen05\.mma",
    "mfma": r"\bv_mfma_",
}
ASYNC_COPY = r"\bcp\.async\.(?:c[ag]|bulk)\S*|\bbuffer_load_\w+ .*\blds\b|\bglobal_load_lds_"
WIDE_LOAD = (
    r"\bld\.global\S*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]32|v4\.[bfsu]64)"
    r"|\bcp\.async\.cg\S*|\bcp\.async\.bulk\S*|\b(?:global|buffer)_load_dwordx4"
)


def targets() -> tuple[str, ...]:
    """Names of the architectures every kernel is compiled for."""
    return tuple(TARGETS)


def modules() -> list[ModuleType]:
    """Every module of this package that holds kernels: ``gpu`` in the folder of each operation."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [
        importlib.import_module(module.name)
        for module in found
        if module.name.rpartition(".")[2].startswith("gpu")
    ]


def collect(arch: str) -> list[AotCase]:
    """All cases of all operations for ``arch``.  Raises ValueError for two of the same name."""
    target(arch)
    cases: list[AotCase] = []
    for module in modules():
        if hasattr(module, "aot_cases"):
            cases += module.aot_cases(arch)
    names = [case.key for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{arch}: listed twice: {', '.join(sorted(twice))}")
    return cases


def assemble(case: AotCase, arch: str, **options: object) -> Any:
    """Triton's compilation of one case: ``asm`` (PTX and cubin, or AMD's assembler), ``metadata``.

    Raises RuntimeError where Triton is missing or decorated its kernels for the interpreter.
    """
    from circuitcore.kernels.compilers import HAS_TRITON, interpreted

    if not HAS_TRITON:
        raise RuntimeError("ahead-of-time compilation needs Triton (Linux only)")
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    goal = target(arch)
    names = case.kernel.arg_names
    warps: dict[str, object] = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    source = ASTSource(
        case.kernel,
        {n: "constexpr" if n in case.constexprs else case.signature[n] for n in names},
        constexprs={(names.index(n),): value for n, value in case.constexprs.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in case.divisible},
    )
    return triton.compile(
        source,
        target=GPUTarget(goal.backend, goal.capability, goal.warp),
        options=warps | case.options | options,
    )


def machine_text(compiled: Any) -> str:
    """The text instructions are counted in."""
    return compiled.asm["ptx"] if "ptx" in compiled.asm else compiled.asm["amdgcn"]


def compile_case(case: AotCase, arch: str) -> CompiledKernel:
    """Compile one case for ``arch`` and read its machine code; raises as `assemble` does."""
    compiled = assemble(case, arch)
    read = _read_nvidia if target(arch).backend == "cuda" else _read_amd
    registers, stack, spills = read(compiled.asm, arch)
    text = machine_text(compiled)
    found = {name: len(re.findall(pattern, text)) for name, pattern in MATRIX.items()}
    shared = compiled.metadata.shared
    cubin = compiled.asm.get("cubin", b"")
    loop = main_loop(cubin, arch) if found["wgmma"] + found["mma"] else None
    return CompiledKernel(
        op=case.op,
        kernel=case.kernel.__name__,
        config=case.config,
        dtype=case.dtype,
        target=arch,
        registers=registers,
        spills=spills,
        stack=stack,
        shared=shared,
        matrix_instructions={name: count for name, count in found.items() if count},
        async_copies=len(re.findall(ASYNC_COPY, text)),
        wide_loads=len(re.findall(WIDE_LOAD, text)),
        issue=round(loop.ratio, 2) if loop else 0.0,
        occupancy=target(arch).occupancy(registers, shared, compiled.metadata.num_warps),
        reason=case.reason,
    )


def _read_nvidia(asm: Any, arch: str) -> tuple[int, int, int]:
    """(registers a thread, stack bytes, spilled registers) of a cubin."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [str(tools / "cuobjdump"), "-res-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
        match = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
        if match is None:
            raise RuntimeError(f"cuobjdump said nothing of registers: {usage.stdout!r}")
        registers, stack = int(match[1]), int(match[2])
        if not stack:  # what is spilled lies on the stack
            return registers, 0, 0
        source = Path(folder) / "kernel.ptx"
        source.write_text(asm["ptx"])
        named = re.search(r"^\.target (\w+)", asm["ptx"], re.MULTILINE)
        assembler = "ptxas-blackwell" if arch == "sm_100" else "ptxas"
        command = [str(tools / assembler), "-v", f"-arch={named[1] if named else arch}"]
        command += [str(source), "-o", os.devnull]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        spilled = re.search(r"(\d+) bytes spill stores", told.stderr)
        return registers, stack, int(spilled[1]) // 4 if spilled else 0


def _read_amd(asm: Any, arch: str) -> tuple[int, int, int]:
    """The same from the metadata AMD's assembler text ends with."""
    text = asm["amdgcn"]

    def value(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(match[1]) if match else 0

    spills = value("vgpr_spill_count") + value("sgpr_spill_count")
    return value("vgpr_count"), value("private_segment_fixed_size"), spills


def compile_all(
    archs: Sequence[str] | None = None,
    workers: int = WORKERS,
    without: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[CompiledKernel]:
    """Every case of every target in ``archs`` (default all), in ``workers`` processes.

    ``without``: operations left out of targets other than sm_90.
    """
    shown = progress or Silent()
    jobs = [
        (arch, case.key)
        for arch in archs or targets()
        for case in collect(arch)
        if arch == "sm_90" or case.op not in without
    ]
    # fresh processes: a fork of one whose thread pools run may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_cache) as pool:
        shown.start("compiling kernels", len(jobs))
        found = []
        for each in pool.map(_compile_named, jobs, chunksize=2):
            found.append(each)
            shown.advance(1, f"{each.kernel} {each.dtype}")
    return found


def _use_cache() -> None:
    """Triton's own cache of compilations, where any HOME allows it."""
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = str(private_folder("circuitcore-triton"))


def _compile_named(job: tuple[str, str]) -> CompiledKernel:
    arch, key = job  # not the case itself: a kernel does not pickle
    case = next(case for case in collect(arch) if case.key == key)
    try:
        return compile_case(case, arch)
    except Exception as error:  # Triton's exceptions do not all pickle
        raise RuntimeError(f"{case.key} for {arch}: {error}") from None


def kernel_table(arch: str, progress: Progress | None = None) -> list[dict[str, Any]]:
    """One row a kernel, configuration and dtype for ``circuitcore kernels --target``.

    ``kernel config dtype registers spills stack shared matrix_instructions async_copies
    wide_loads issue occupancy``, and ``roofline_us``: the least time, in microseconds, the target's
    device needs for the operation on each of AlexNet's layers (`circuitcore.kernels.aot.roofline`).
    Raises ValueError for an unknown target, RuntimeError without Triton.
    """
    from circuitcore.kernels.aot.roofline import alexnet_microseconds

    told: dict[str, Any] = {} if progress is None else {"progress": progress}
    rows = []
    for record in compile_all([target(arch).arch], **told):
        row = asdict(record)
        row["roofline_us"] = alexnet_microseconds(record.op, record.dtype, target(arch))
        del row["target"], row["reason"]
        rows.append(row)
    return rows


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `kernel_table` with its two mappings as text, for a table or CSV."""
    flat = dict(row)
    for name in ("matrix_instructions", "roofline_us"):
        flat[name] = " ".join(f"{key} {value:g}" for key, value in row[name].items()) or "-"
    return flat


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything; print what breaks the budget, or write a new one."""
    parser = argparse.ArgumentParser(prog="python -m circuitcore.kernels.aot")
    parser.add_argument("--target", choices=targets(), action="append")
    parser.add_argument("--write-budget", action="store_true")
    options = parser.parse_args(arguments)
    records = compile_all(options.target)
    if options.write_budget:
        write_budget(records)
    entries = read_budget()
    broken = 0
    for record in records:
        faults = worse(record, entries.get(record.key))
        broken += bool(faults)
        print(record.key, json.dumps(asdict(record)), *faults, sep="\t")
    return int(broken > 0)

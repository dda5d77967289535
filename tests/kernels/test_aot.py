"""Every kernel, compiled for every target without a GPU, within its budget."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from launches import faults_of

from circuitcore.kernels.aot import compile as aot
from circuitcore.kernels.aot import issue
from circuitcore.kernels.aot.budget import (
    CompiledKernel,
    read_budget,
    triton_version,
    worse,
    write_budget,
)
from circuitcore.kernels.aot.case import case_of, distinct
from circuitcore.kernels.aot.roofline import alexnet_microseconds
from circuitcore.kernels.aot.targets import TARGETS, target
from circuitcore.kernels.launch import Launch, launch, recorded
from circuitcore.kernels.masked_linear.gpu import launch_masked
from circuitcore.kernels.overlap import gpu as overlap

RECORD = CompiledKernel(
    op="overlap",
    kernel="k",
    config="c",
    dtype="fp16",
    target="sm_90",
    registers=100,
    spills=0,
    stack=0,
    shared=1024,
    matrix_instructions={"wgmma": 4},
    async_copies=8,
    wide_loads=8,
    issue=1.2,
)


COPIES = ("masked_weights", "random_masks")  # no product, the same on every target: sm_90 tells


@pytest.mark.parametrize("without", [COPIES, pytest.param((), marks=pytest.mark.slow)])
def test_nothing_is_worse_than_the_budget(without):
    budget = read_budget()
    if not budget:
        pytest.skip(f"budget.json has no figures for Triton {triton_version()}")
    records = aot.compile_all(without=without)
    faults = {r.key: worse(r, budget.get(r.key)) for r in records}
    assert {key: fault for key, fault in faults.items() if fault} == {}
    gone = set(budget) - {
        f"{case.key}/{arch}" for arch in aot.targets() for case in aot.collect(arch)
    }
    assert not gone, f"in budget.json but not compiled: {sorted(gone)}"


def test_every_kernel_is_listed_for_every_target():
    kernels = {
        name
        for module in aot.modules()
        for name, value in vars(module).items()
        if hasattr(value, "arg_names") and name.endswith("_kernel")
    }
    total = 0
    for arch in aot.targets():
        cases = aot.collect(arch)
        total += sum(arch == "sm_90" or case.op not in COPIES for case in cases)
        assert {case.kernel.__name__ for case in cases} == kernels, arch
        for case in cases:
            named = set(case.signature) | set(case.constexprs)
            assert named >= set(case.kernel.arg_names), case.key
    assert total <= 300, "too many compilations for every run of the tests"


@pytest.mark.parametrize("kernel", ["masked_linear_kernel"])
def test_the_matrix_units_are_not_kept_waiting_for_instructions(kernel):
    """What may be chosen on sm_90: main loops whose matrix cycles are 0.8 of the issue cycles."""
    cases = [case for case in aot.collect("sm_90") if case.kernel.__name__ == kernel]
    assert {case.dtype for case in cases} == {"fp32", "fp16", "bf16"}
    for case in cases:
        record = aot.compile_case(case, "sm_90")
        assert record.issue >= 0.8, record.key
        assert record.matrix_instructions.get("wgmma") and record.async_copies, record.key
        assert record.wide_loads and not record.spills, record.key


LISTING = """
.L_x_0:
        /*0000*/                   LDS.128 R4, [R2] ;
        /*0010*/                   ISETP.GE.AND P0, PT, R4, R5, PT ;
        /*0020*/              @!P0 SEL R4, R6, RZ, P0 ;
        /*0030*/                   PRMT R4, R4, 0x7632, R5 ;
        /*0040*/                   HGMMA.64x256x16.F32.BF16 R24, R4, gdesc[UR4], R24, gsb0 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0070*/                   BRA `(.L_x_1) ;
"""


def test_a_loop_is_read_from_machine_code(monkeypatch):
    answer = SimpleNamespace(returncode=0, stdout=LISTING, stderr="")
    monkeypatch.setattr(issue.subprocess, "run", lambda *a, **k: answer)
    loop = issue.main_loop(b"", "sm_90")
    assert loop.instructions == {"shared load": 1, "alu": 3, "matrix": 1, "other": 1}
    assert (loop.slots, loop.matrix_cycles) == (6, 128.0)
    assert loop.ratio == 128 / 6  # six slots, and three instructions of two cycles
    assert issue.main_loop(b"", "sm_100") is None
    answer.stdout = ".L_x_1" + LISTING.partition(".L_x_1")[2]
    assert issue.main_loop(b"", "sm_80").matrix_cycles == 8.0
    assert issue.main_loop(b"", "sm_90").matrix_cycles == 4.0


@pytest.mark.parametrize(
    ("value", "free"),
    [(v, False) for v in (0, 1, 16, 17, -32, 2**31, 2**33 + 8, True, 1.5)]
    + [(1, True), (16, True)],
)
def test_arguments_are_specialised_as_triton_does(value, free):
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    kind, key = native_specialize_impl(CUDABackend, value, False, not free, not free)[:2]
    kernel = SimpleNamespace(
        __name__="k",
        params=[SimpleNamespace(name="v", is_constexpr=False, do_not_specialize=free)],
    )
    case = case_of("op", Launch(kernel, (1,), (value,), {}))
    if kind == "constexpr":
        assert case.constexprs == {"v": value} and not case.signature
    else:
        assert case.signature["v"].replace("i1", "u1") == kind
        assert case.divisible == (("v",) if key == "D" else ())


def test_a_recorded_launch_becomes_the_case_it_would_compile():
    with recorded() as launches, torch.device("meta"):
        for images in (100, 112, 100):  # 16 divides one of them
            x = torch.empty(images, 64, dtype=torch.bfloat16)
            weight = torch.empty(32, 64, dtype=torch.bfloat16)
            level = torch.empty(32, 64, dtype=torch.uint8)
            launch_masked(x, weight, level, [0], None, relu=False)
    cases = distinct(case_of("masked_linear", record) for record in launches)
    assert len(launches) == 3 and len(cases) == 2
    odd, even = cases
    assert "N" not in odd.divisible and "N" in even.divisible
    assert odd.constexprs["levels"] == 1 and odd.constexprs["bias"] is None
    assert odd.signature["x"] == "*bf16" and odd.signature["level"] == "*u8"
    assert odd.dtype == "bf16" and (odd.num_warps, odd.num_stages) == (8, 2)
    assert faults_of(launches, "sm_90") == {}


def test_what_is_recorded_is_not_launched():
    with recorded() as outer:
        with recorded() as inner:
            launch(SimpleNamespace(__name__="k"), (1,), torch.empty(1), X=3)
        with pytest.raises(ValueError, match="grid"):
            launch(SimpleNamespace(__name__="k"), (1, 70000), torch.empty(1))
    assert not outer and inner[0].options == {"X": 3}


def test_a_target_that_is_not_known():
    with pytest.raises(ValueError, match="sm_80, sm_90, sm_100, gfx942"):
        aot.kernel_table("sm_70")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"registers": 90}, None),
        ({"registers": 101}, "registers 101 > 100"),
        ({"spills": 2}, "spills 2"),
        ({"stack": 8}, "stack 8"),
        ({"shared": 232_449}, "shared 232449 > 232448"),
        ({"matrix_instructions": {"mma": 4}}, "no wgmma"),
        ({"async_copies": 0}, "no async_copies"),
        ({"wide_loads": 0}, "no wide_loads"),
        ({"issue": 0.9}, "issue cycles 0.9 < 1.2"),
    ],
)
def test_what_is_worse(change, fault, tmp_path):
    write_budget([RECORD], tmp_path / "budget.json")
    entry = read_budget(tmp_path / "budget.json")[RECORD.key]
    found = worse(replace(RECORD, **change), entry)
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0])


def test_sm_100_without_tcgen05_needs_a_reason(tmp_path):
    path = tmp_path / "budget.json"
    record = replace(RECORD, target="sm_100", matrix_instructions={"mma": 4})
    write_budget([record], path)
    assert "reason" in worse(record, read_budget(path)[record.key])[0]
    document = json.loads(path.read_text())
    document[triton_version()][record.key]["reason"] = "too narrow"
    path.write_text(json.dumps(document))
    write_budget([record], path)  # keeps it
    assert worse(record, read_budget(path)[record.key]) == []
    assert worse(record, None) != []
    write_budget([replace(record, reason="too narrow a tile")], path)  # or comes with the case
    assert read_budget(path)[record.key]["reason"] == "too narrow a tile"


def test_writing_one_target_keeps_the_others(tmp_path):
    path = tmp_path / "budget.json"
    write_budget([RECORD, replace(RECORD, target="sm_80")], path)
    write_budget([replace(RECORD, registers=50)], path)
    figures = {key: entry["registers"] for key, entry in read_budget(path).items()}
    assert figures == {"k/c/fp16/sm_90": 50, "k/c/fp16/sm_80": 100}


def test_a_spill_is_seen():
    """The reader of the machine code against a kernel given too few registers."""
    compiled = aot.assemble(overlap.aot_cases("sm_80")[0], "sm_80", maxnreg=64)
    registers, stack, spills = aot._read_nvidia(compiled.asm, "sm_80")
    assert registers == 64 and stack > 0 and spills > 0


@pytest.mark.parametrize("arch", TARGETS)
def test_overlap_counts_bits_with_one_instruction(arch):
    text = aot.machine_text(aot.assemble(overlap.aot_cases(arch)[0], arch))
    assert ("v_bcnt_u32" if arch == "gfx942" else "popc.b32") in text


def test_occupancy_of_known_cases():
    """Against NVIDIA's occupancy calculator, and CDNA 3's table of waves by registers."""
    h100, a100, amd = target("sm_90"), target("sm_80"), target("gfx942")
    assert h100.occupancy(registers=32, shared=0, num_warps=4) == 1.0
    assert h100.occupancy(registers=128, shared=0, num_warps=4) == 0.25
    assert h100.occupancy(registers=255, shared=0, num_warps=8) == 0.125
    assert a100.occupancy(registers=64, shared=80 * 1024, num_warps=4) == 0.125
    assert a100.occupancy(registers=64, shared=166_913, num_warps=4) == 0
    assert amd.occupancy(registers=64, shared=0, num_warps=4) == 1.0
    assert amd.occupancy(registers=512, shared=0, num_warps=4) == 0.125
    assert amd.occupancy(registers=128, shared=40_000, num_warps=4) == 0.125


def test_table_has_the_documented_columns(monkeypatch):
    monkeypatch.setattr(aot, "compile_all", lambda archs: [replace(RECORD, occupancy=0.5)])
    (row,) = aot.kernel_table("sm_90")
    documented = "kernel config dtype registers spills stack shared matrix_instructions occupancy"
    assert set(documented.split()) <= set(row)
    assert list(row["roofline_us"]) == ["network"]
    json.dumps(row)
    assert aot.table_row(row)["matrix_instructions"] == "wgmma 4"


def test_every_compiled_operation_has_a_roofline():
    operations = {case.op for case in aot.collect("sm_90")}
    for operation in operations:
        found = alexnet_microseconds(operation, "fp16", target("sm_90"))
        assert found and all(value > 0 for value in found.values())
    assert {"masked_weights", "random_masks"} <= operations

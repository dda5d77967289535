"""Traces that were kept are read, and every second of them is somebody's."""

import json
import sqlite3
from pathlib import Path

import pytest

from circuitcore.errors import InputError
from circuitcore.jobs.profiling.attribution import HOST, attribute
from circuitcore.jobs.profiling.chrome import read_chrome
from circuitcore.jobs.profiling.nsight import device_name, read_nsight
from circuitcore.jobs.profiling.peaks import Peaks
from circuitcore.jobs.profiling.profile import read_profile
from circuitcore.jobs.profiling.trace import Mark, Range, Trace

TRACES = Path(__file__).parent / "traces"
US, NS = 1e-6, 1e-9


def seconds(sums):
    """{name: seconds}, of what took any."""
    return {key: each.seconds for key, each in sums.items() if each.seconds}


def exact(found, unit, expected):
    assert seconds(found) == pytest.approx({k: v * unit for k, v in expected.items()}, abs=1e-12)


@pytest.fixture
def nsight(tmp_path):
    """The file that ``nsys export`` writes of `gpu.sql`."""
    path = tmp_path / "made.sqlite"
    with sqlite3.connect(path) as file:
        file.executescript((TRACES / "gpu.sql").read_text())
    file.close()
    return path


def test_each_moment_of_the_host_is_the_innermost_range_s():
    found = attribute(read_chrome(TRACES / "cpu.json"))
    run, bag = ("sweep",), ("sweep", "a category")
    exact(found.stages, US, {
        run: 1000, (*run, "plan"): 50, bag: 800, (*bag, "scoring"): 50, (*bag, "fc"): 200,
        (*bag, "conv"): 450, (*run, "report"): 70,
    })  # fmt: skip
    assert found.wall == pytest.approx(1000 * US)
    assert found.uncovered == pytest.approx((80 + 100) * US)  # of the run and the category
    exact(found.beside, US, {("decode",): 100})
    exact(found.kernels, US, {
        (HOST,): 704, ("aten::mm",): 100, ("circuitcore::masked_chain",): 100,
        ("aten::mkldnn_convolution",): 160, ("aten::conv2d",): 20, ("aten::relu",): 16,
    })  # fmt: skip
    both_threads = found.wall + 100 * US
    assert sum(seconds(found.kernels).values()) == pytest.approx(both_threads)


def test_layers_have_their_work_and_their_longest_kernel_too():
    found = attribute(read_chrome(TRACES / "cpu.json"))
    exact(found.layers, US, {
        ("fc", "fc6"): 100, ("fc", "fc7"): 50, ("conv", "conv1"): 200, ("conv", "relu1"): 20,
    })  # fmt: skip
    exact(found.levels, US, {("fc", "3"): 150, ("conv", "7"): 430})
    work = {name: (each.multiply_adds, each.bytes) for (_, name), each in found.layers.items()}
    assert work == {
        "fc6": (8000, 100), "fc7": (1000, 50), "conv1": (64000, 2000), "relu1": (0, 4000),
    }  # fmt: skip
    credited = {name: each.multiply_adds for (name,), each in found.kernels.items()}
    assert credited["aten::mm"] == 8000
    assert credited["circuitcore::masked_chain"] == 1000
    assert credited["aten::mkldnn_convolution"] == 64000 and credited["aten::conv2d"] == 0


def test_the_document_has_rooflines_and_the_gap_to_the_plan():
    found = read_profile(TRACES / "cpu.json")
    assert found.uncovered == pytest.approx(0.18) and found.device_busy is None
    layers = {row.name: row for row in found.layers}
    conv = layers["conv1"]  # at least 64,000 / 4e8 s = 160 us of 200
    assert conv.multiply_adds_per_second == pytest.approx(3.2e8)
    assert (conv.roofline, conv.bound) == (pytest.approx(0.8), "matrix")
    assert (layers["relu1"].roofline, layers["relu1"].bound) == (pytest.approx(1.0), "memory")
    gaps = {gap.part: (gap.predicted, pytest.approx(gap.measured)) for gap in found.gaps}
    assert gaps == {
        "images": (1e-4, 0.0), "convolutions": (2e-4, 270 * US), "fc layers": (1e-4, 150 * US),
        "weights and host": (4e-4, 800 * US - 420 * US), "random masks": (None, 0.0),
        "all else of the run": (None, 200 * US), "all that was predicted": (8e-4, 800 * US),
        "the run": (None, 1000 * US),
    }  # fmt: skip
    assert found.command == "circuitcore sweep Bag --device cpu" and found.notes == ["made by hand"]


def test_kernels_of_a_gpu_belong_to_what_asked_for_them():
    found = attribute(read_chrome(TRACES / "gpu.json"))
    conv = ("sweep", "a category", "conv")
    exact(found.device, US, {conv: 2 + 3 + 1 + 0.5})
    assert found.busy == pytest.approx((2 + 3.5 + 0.5) * US)  # two streams side by side
    exact(found.layers, US, {("conv", "conv1"): 2, ("conv", "captured pass"): 4})
    exact(found.kernels, US, {
        ("gemm_kernel",): 5, ("copy_kernel",): 1, ("Memcpy DtoH (Device -> Pinned)",): 0.5,
    })  # fmt: skip
    assert found.kernels["gemm_kernel",].multiply_adds == 1000
    assert found.kernels["gemm_kernel",].calls == 2


def test_replayed_kernels_belong_to_the_layers_that_were_captured(nsight):
    found = attribute(read_nsight(nsight))
    conv = ("sweep", "a category", "conv")
    exact(found.device, NS, {conv: 9500})
    exact(found.layers, NS, {("conv", "conv1"): 8000, ("conv", "captured pass"): 1000})
    one, rest = found.layers["conv", "conv1"], found.layers["conv", "captured pass"]
    assert (one.calls, one.multiply_adds, one.bytes) == (3, 1500, 120)  # run once, replayed twice
    assert (rest.calls, rest.multiply_adds) == (2, 0)  # counted with the layers
    exact(found.kernels, NS, {("gemm_kernel",): 8000, ("copy_kernel",): 1000, ("[memcpy]",): 500})
    assert found.kernels["gemm_kernel",].multiply_adds == 1500
    exact(found.levels, NS, {("conv", "4"): 7000})
    assert (found.wall, found.uncovered) == (pytest.approx(1e-4), pytest.approx(1.2e-5))
    exact(found.beside, NS, {("commit",): 50000})  # open to the end


def test_a_report_of_a_known_gpu_has_the_roofline_of_its_data_sheet(nsight):
    assert device_name(nsight) == "NVIDIA H100 80GB HBM3"
    found = read_profile(nsight)
    (layer,) = [row for row in found.layers if row.name == "conv1"]
    assert layer.roofline == pytest.approx(120 / 3.35e12 / 8e-6, rel=1e-3)
    assert found.profiler == "nsys" and found.gaps == []


def test_a_trace_that_begins_inside_the_run_is_told_whole():
    """Nsight Systems may begin to record behind the start of the range that it waits for."""
    ranges = [
        Range(1.0, 3.0, 1, "stage", "plan"),
        Range(2.0, 2.5, 1, "operation", "aten::mm"),
        Range(3.0, 5.0, 1, "stage", "report"),
        Range(0.9, 1.1, 2, "stage", "decode"),
    ]
    found = attribute(Trace(ranges, [Mark(2.1, 1, "bytes", 3)]))
    assert (found.wall, found.uncovered) == (pytest.approx(4.1), pytest.approx(0.1))
    exact(found.stages, 1, {("plan",): 2.0, ("report",): 2.0})


def test_ranges_that_touch_or_overlap_by_rounding_nest_all_the_same():
    ranges = [
        Range(0.0, 10.0, 1, "run", "sweep"),
        Range(0.0, 5.0 + 1e-9, 1, "stage", "a"),
        Range(5.0, 10.0 + 1e-9, 1, "stage", "b"),
        Range(0.0, 5.0, 1, "layer", "fc"),
    ]
    found = attribute(Trace(ranges, [Mark(5.0, 1, "bytes", 7)]))
    expected = {("sweep",): 10, ("sweep", "a"): 5, ("sweep", "b"): 5}
    assert seconds(found.stages) == pytest.approx(expected, abs=3e-9)
    assert found.layers["a", "fc"].bytes == 7
    assert found.uncovered == pytest.approx(0.0)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no trace of torch's profiler"),
        ("{}", "no trace of torch's profiler"),
        ('{"traceEvents": [3]}', "no trace of torch's profiler"),
        ('{"traceEvents": []}', "no range of circuitcore"),
        (json.dumps({"traceEvents": [], "circuitcore": {"peaks": 3}}), "damaged"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, text, said):
    path = tmp_path / "it.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_profile(path)


def test_a_file_that_is_no_export_is_refused(tmp_path, nsight):
    path = tmp_path / "it.sqlite"
    path.write_text("no database, and long enough to be looked at as one" * 40)
    with pytest.raises(InputError, match="nsys export"):
        read_profile(path)
    with sqlite3.connect(nsight) as file:
        file.execute("DELETE FROM NVTX_EVENTS WHERE eventType = 75")
    file.close()
    with pytest.raises(InputError, match="no NVTX ranges of circuitcore"):
        read_profile(nsight)
    with pytest.raises(InputError, match="no such file"):
        read_profile(tmp_path / "none.json")


def test_the_roofline_is_the_higher_of_two_bounds():
    peaks = Peaks(device="x", precision="float32", multiply_adds=1e9, bytes=1e8, source="made up")
    assert peaks.least(2e9, 1e7) == (2.0, "matrix")
    assert peaks.least(1e8, 1e8) == (1.0, "memory")

"""Whole runs on a device: the CPU's circuits, the same ones twice, and no waiting in between."""

import device_checks as checks
import pytest
import torch
from sweeps import swept

from circuitcore.kernels import selftest

pytestmark = pytest.mark.gpu
ANOTHER = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def test_every_kernel_passes_the_self_test():
    outcomes = selftest.run(torch.device("cuda:0"), selftest.collect())
    assert not [o for o in outcomes if o.state != "passed"]


@pytest.mark.parametrize("device", ["cuda:0", pytest.param("cuda:1", marks=ANOTHER)])
def test_a_bundled_sweep(device, on_cpu, tmp_path):
    checks.a_sweep_gives_the_cpus_circuits(device, on_cpu, tmp_path / "run")


@ANOTHER
def test_the_second_gpu_by_number(on_cpu, tmp_path):
    checks.the_command_line_takes_a_gpu_by_number(1, on_cpu, tmp_path / "run")


def test_twice_the_same_masks(tmp_path):
    checks.twice_the_same("cuda:0", tmp_path)


def test_little_memory_asked_for(on_cpu, tmp_path):
    checks.a_sweep_gives_the_cpus_circuits("cuda:0", on_cpu, tmp_path / "run", memory="100M")


@pytest.mark.parametrize("megabytes", [30, 60, 120])
def test_memory_that_runs_out(megabytes, on_cpu, tmp_path):
    checks.a_full_memory_is_no_wrong_circuit("cuda:0", on_cpu, tmp_path / "run", megabytes * 10**6)


@pytest.mark.parametrize("ablate", ["zero", "mean"])
def test_captured_passes(ablate, layer_masks):
    checks.captured_passes_are_the_cpus("cuda:0", layer_masks, ablate=ablate)


def test_a_sweep_to_the_mean(tmp_path):
    there = swept(tmp_path / "cpu", "cpu", impl="torch", ablate="mean")
    checks.a_sweep_gives_the_cpus_circuits("cuda:0", there, tmp_path / "run", ablate="mean")


def test_captured_scoring():
    checks.captured_scoring_is_what_it_captured("cuda:0", lambda: None)


@pytest.mark.parametrize(("memory", "ablate"), [(None, "zero"), ("100M", "zero"), (None, "mean")])
def test_chunks_wait_for_nothing(memory, ablate, layer_masks):
    checks.chunks_wait_for_nothing("cuda:0", layer_masks, memory=memory, ablate=ablate)


def test_targets_other_than_categories(tmp_path):
    checks.targets_have_the_cpus_circuits("cuda:0", tmp_path)

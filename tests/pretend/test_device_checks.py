"""What `tests/gpu/test_sweeps.py` asks of a real device, on a pretended one."""

import device_checks as checks
import pytest
from pretend.device import pretended


def test_the_second_gpu_by_number(on_cpu, tmp_path):
    with pretended() as cuda:
        checks.the_command_line_takes_a_gpu_by_number(1, on_cpu, tmp_path / "run")
    assert cuda.touched == {1}


def test_twice_the_same_masks(tmp_path):
    with pretended():
        checks.twice_the_same("cuda:0", tmp_path)


@pytest.mark.parametrize("megabytes", [8, 24])
def test_memory_that_runs_out(megabytes, on_cpu, tmp_path):
    with pretended():
        enough = checks.a_full_memory_is_no_wrong_circuit(
            "cuda:0", on_cpu, tmp_path / "run", megabytes * 10**6
        )
    assert enough == (megabytes > 8)


@pytest.mark.parametrize("ablate", ["zero", "mean"])
def test_captured_passes(ablate, layer_masks):
    with pretended() as cuda:
        checks.captured_passes_are_the_cpus("cuda:1", layer_masks, ablate=ablate)
        assert cuda.counts.captures and cuda.counts.replays > cuda.counts.captures


def test_captured_scoring():
    with pretended() as cuda:
        checks.captured_scoring_is_what_it_captured("cuda:1", lambda: cuda.counts.captures)


@pytest.mark.parametrize(("memory", "ablate"), [(None, "zero"), ("100M", "zero"), (None, "mean")])
def test_chunks_wait_for_nothing(memory, ablate, layer_masks):
    with pretended():
        checks.chunks_wait_for_nothing("cuda:0", layer_masks, memory=memory, ablate=ablate)


def test_targets_other_than_categories(tmp_path):
    with pretended():
        checks.targets_have_the_cpus_circuits("cuda:0", tmp_path)

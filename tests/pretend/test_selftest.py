"""The self-test of the kernels on a pretended device, and what a kernel that is wrong leads to."""

import json
import warnings

import pytest
import torch
from command import call
from pretend import answers
from pretend.device import pretended
from pretend.ghosts import zeros
from sweeps import same, swept

from circuitcore.kernels import compilers, selftest, tune, verdicts
from circuitcore.kernels.dispatch import choose_on
from circuitcore.kernels.masked.gpu_cost import MaskedShape
from circuitcore.kernels.masked.paths import tuned
from circuitcore.machine.device import machine
from circuitcore.options import Options

OF = {  # the launching operation that is made wrong -> the operation of the self-test
    "first_conv": "first_conv", "levels_histogram": "levels", "levels_bytes": "levels",
    "levels_refine": "levels", "levels_range": "levels", "masked_linear": "masked_linear",
    "masked_weights": "masked_weights",
    "overlap": "overlap", "random_masks": "random_masks", "score_conv": "score_conv",
    "score_linear": "score_linear",
}  # fmt: skip
GPU = torch.device("cuda:1")


@pytest.fixture
def cuda(tmp_path, monkeypatch):
    """A device whose verdicts are kept in a folder of the test's own."""
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path / "cache"))
    forgotten = (verdicts.failed, compilers.warn_of, tuned)
    for cached in forgotten:
        cached.cache_clear()
    with pretended() as made:
        yield made
    for cached in forgotten:
        cached.cache_clear()


@pytest.fixture
def small(monkeypatch):
    """The self-test without the sizes of real networks, which take a CPU too long."""
    chosen = [each for each in selftest.collect() if not each[1].real]
    monkeypatch.setattr(selftest, "collect", lambda: chosen)
    return chosen


def spoil(monkeypatch, *names):
    """Have the first element of what these operations give be wrong from now on."""
    right = answers._answer

    def answer(name, schema, body):
        found = right(name, schema, body)
        return (lambda *values: spoilt(found, values)) if name in names else found

    monkeypatch.setattr(answers, "_answer", answer)


def spoilt(answer, values):
    found = answer(*values)
    if found is None:  # level histograms and bytes, and masked weights, are written to an argument
        values[5 if len(values) > 5 else 3].view(-1)[0] += 1
    else:
        first = found[0] if isinstance(found, tuple | list) else found
        first.view(-1)[0] += 1
    return found


def test_every_kernel_passes(cuda, small):
    outcomes = selftest.check(GPU)
    assert [o for o in outcomes if o.state != "passed"] == []
    assert verdicts.states(GPU) == dict.fromkeys(verdicts.operations(), "passed")
    assert {o.operation for o in outcomes} == set(verdicts.operations()) == set(OF.values())
    launched = {taken.kernel.split("_kernel")[0] for taken in cuda.counts.launches}
    assert launched == {
        "masked_linear", "first_conv_blocks", "score_linear", "score_conv_wgrad",
        "score_conv_map", "levels_range", "levels_histogram", "levels_byte", "overlap_pairs",
        "levels_rows", "levels_nodes", "levels_search", "random_masks_count", "masked_weights",
        "random_masks_search", "random_masks_write",
    }  # fmt: skip
    assert not cuda.memory.now.total() and cuda.touched == {1}


def test_real_sizes_are_launched(tmp_path):
    """Shapes alone: every launch is one that a device takes.  Those of levels look at numbers."""
    real = [each for each in selftest.collect() if each[1].real]
    assert {name for name, _ in real} == set(verdicts.operations())
    real = [each for each in real if each[0] != "levels"]
    with pretended(host=zeros) as cuda:
        for _, trial in real:
            cuda.counts.clear()
            with torch.inference_mode(), selftest.float32_products(trial.dtype):
                trial.kernel(**trial.arguments(GPU))
            assert cuda.counts.triton.total(), trial.what


@pytest.mark.parametrize("wrong", OF)
def test_a_wrong_kernel_fails(wrong, cuda, small, monkeypatch):
    spoil(monkeypatch, wrong)
    own = [each for each in small if each[0] == OF[wrong]]
    assert selftest.judged(selftest.run(GPU, own)) == {OF[wrong]: "failed"}


def test_what_a_launch_raises_is_its_failure(cuda, small, monkeypatch):
    monkeypatch.setattr(answers, "MOST_PROGRAMS", (0, 65535, 65535))
    (name, trial), *_ = small
    (outcome,) = selftest.run(GPU, [(name, trial)])
    assert outcome.state == "failed" and "invalid argument" in outcome.found


def test_memory_that_others_use_is_no_failure(cuda, small):
    cuda.memory.limit[1] = 10
    assert selftest.judged(selftest.run(GPU, small[:1])) == {small[0][0]: "not tested"}


def test_nothing_is_asked_of_a_device_that_faulted(cuda, small, monkeypatch):
    def faulted(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    spoil(monkeypatch, small[0][0])
    monkeypatch.setattr(torch.cuda, "synchronize", faulted)
    first, second = selftest.run(GPU, [small[0], small[-1]])
    assert (first.state, second.state) == ("failed", "not tested")
    assert "illegal memory access" in second.found


@pytest.mark.filterwarnings("ignore:.*score_conv failed")
def test_a_failing_kernel_is_not_used(cuda, small, on_cpu, monkeypatch, tmp_path):
    """Doctor finds it, the next sweep runs torch instead and gives the CPU's circuit."""
    spoil(monkeypatch, "levels_bytes", "score_conv")
    said = json.loads(call("doctor", "--format", "json", code=5).stdout)
    failed = {row["what"] for row in said if row["state"] == "failed"}
    assert failed == {"kernel levels", "kernel score_conv"}
    cuda.counts.clear()
    with pytest.warns(UserWarning, match="levels failed the self-test on cuda:1"):
        run = swept(tmp_path / "run", "cuda:1")
    same(run, on_cpu)
    launched = {name for name, _ in cuda.counts.triton}
    assert launched and not [n for n in launched if n.startswith(("levels", "score_conv"))]
    states = run.manifest["kernels"]
    assert states == {**dict.fromkeys(verdicts.operations(), "passed"), **{
        "levels": "failed", "score_conv": "failed",
    }}  # fmt: skip


def test_forced_it_runs_with_a_warning(cuda):
    verdicts.keep(GPU, {"overlap": "failed", "levels": "passed"})
    assert choose_on("auto", GPU, operation="levels") == "triton"
    with pytest.warns(UserWarning, match="overlap failed"):
        assert choose_on("auto", GPU, operation="overlap") == "torch"
    assert choose_on("triton", GPU, operation="overlap") == "triton"
    with pytest.warns(UserWarning, match="--impl triton uses what failed the self-test: overlap"):
        machine(Options(impl="triton", device="cuda:1"))


def test_a_verdict_holds_for_what_it_was_found_with(cuda, monkeypatch):
    verdicts.keep(GPU, dict.fromkeys(verdicts.operations(), "failed"))
    untested = dict.fromkeys(verdicts.operations(), "not tested")
    assert verdicts.failed(GPU) == verdicts.failed(torch.device("cuda:0")) != frozenset()
    for owner, name, new in (
        (torch, "__version__", "9"), (verdicts, "_driver", lambda: "1"),
        (verdicts, "_sources", lambda: "2"), (cuda, "name", "another"),
    ):  # fmt: skip
        with monkeypatch.context() as other:
            other.setattr(owner, name, new)
            assert verdicts.states(GPU) == untested
    assert verdicts.states(torch.device("cpu")) == {}


@pytest.mark.parametrize("text", ["", "[]", "{nan", '{"KEY": 3}', '{"KEY": {"levels": ["a"]}}'])
def test_a_broken_file_is_none(text, cuda, tmp_path):
    file = tmp_path / "cache" / verdicts.FILE
    file.parent.mkdir()
    file.write_text(text.replace("KEY", verdicts.key(GPU)))
    assert set(verdicts.states(GPU).values()) == {"not tested"} and not verdicts.failed(GPU)


@pytest.mark.parametrize("wrong", [(), ("masked_linear",)])
def test_tuning_never_chooses_a_failing_kernel(wrong, cuda, small, monkeypatch):
    """All paths are equally fast here, so that the first would be: the kernel."""
    spoil(monkeypatch, *wrong)
    table = tune.tune([MaskedShape(2, 16, 8, 32, "float16")])
    assert list(table.values()) == ["library" if wrong else "fused"]


def test_doctor_says_what_passed(cuda, small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = call("doctor")
    lines = [line for line in said.stdout.splitlines() if " kernel " in line]
    assert len(lines) == len(small) and all(line.startswith("ok") for line in lines)
    assert "65 x 33, 17 images, 3 levels of one input, bfloat16: error" in said.stdout

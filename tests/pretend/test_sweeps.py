"""Whole sweeps of the bundled network on pretended devices give the CPU's circuits."""

import json

import numpy as np
import pytest
from command import masks
from pretend.device import in_children, pretended
from sweeps import same, swept


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_bundled_sweep(device, on_cpu, tmp_path):
    with pretended() as cuda:
        run = swept(tmp_path / "run", device)
        kernels = {name for name, _ in cuda.counts.triton}
    same(run, on_cpu)
    assert {"levels_byte_kernel", "score_conv_wgrad_kernel"} <= kernels
    assert cuda.touched == {int(device[-1])}, "no other device is asked, or computes, anything"
    assert cuda.memory.now.total() == 0, "the run is over: nothing of it is on a device"


@pytest.mark.parametrize(("screen", "ablate"), [("on", "zero"), ("off", "zero"), ("on", "mean")])
def test_what_auto_runs_gives_the_circuits_of_float32(screen, ablate, tmp_path):
    """bfloat16, where what is recorded of the chosen levels is float32's."""
    both, how = ("Trouser", "Bag"), {"screen": screen, "ablate": ablate}
    with pretended():
        run = swept(tmp_path / "run", "cuda:0", both, dtype="auto", **how)
    other = swept(tmp_path / "cpu", "cpu", both, impl="torch", **how)
    for name in other:
        here, there = run[name].record, other[name].record
        for one, two in zip(here.stages, there.stages, strict=True):
            a, b = one.levels[one.chosen], two.levels[two.chosen]
            assert (a.level, a.kept_weights, a.hit, a.false_alarms) == (
                b.level, b.kept_weights, b.hit, b.false_alarms,
            )  # fmt: skip
            assert a.bias == pytest.approx(b.bias, abs=1e-5)
        for one, two in zip(here.circuit.heldout, there.circuit.heldout, strict=True):
            assert one == two or one[0] in ("bias", "csa_ratio_ci95", "csa_ratio_biased_ci95")
        assert here.circuit.heldout.false_alarms == there.circuit.heldout.false_alarms
    assert {u: p.name for u, p in run._run.units().items()} == {
        u: p.name for u, p in other._run.units().items()
    }, "the key is one: the same circuits"
    found, wanted = masks(run.folder), masks(other.folder)
    for key in wanted:
        assert np.array_equal(found[key], wanted[key]), key


def same_decisions(run, other):
    """The level chosen in each stage and what is kept there; for lower precisions."""
    here, there = run["Trouser"].record, other["Trouser"].record
    assert [s.chosen for s in here.stages] == [s.chosen for s in there.stages]
    assert here.circuit.kept_weights == there.circuit.kept_weights
    assert here.circuit.extraction.hit == there.circuit.extraction.hit


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "kernel", "bias": "exact", "false_alarm_norm": "target"},
        {"granularity": "filter", "criterion": "snip", "bias": "none"},
        {"criterion": "weight-magnitude", "stop": "sparsest-above", "screen": "on"},
        {"criterion": "random", "reference": "peak", "stop": "sparsest-above"},
        {"bias": "sgd", "normalise": "l1", "magnitude": "image"},
        {"screen": "on", "magnitude": "set", "ties": "snap"},
        {"ablate": "mean", "screen": "on"},
        {
            "reference": "faithful",
            "spatial": "mean",
            "normalise": "minmax",
            "impl": "torch",
            "memory": "200M",
        },
        {"impl": "triton", "magnitude": "signed", "normalise": "none"},
        {"magnitude": "position", "granularity": "kernel", "impl": "triton"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options, tmp_path):
    with pretended() as cuda:
        run = swept(tmp_path / "cuda", "cuda:1", **options)
    same(run, swept(tmp_path / "cpu", "cpu", **{**options, "impl": "torch"}))
    assert bool(cuda.counts.launches) == (options.get("impl") != "torch")


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision(dtype, impl, on_cpu, tmp_path):
    with pretended():
        run = swept(tmp_path / "run", "cuda:1", dtype=dtype, impl=impl)
    same_decisions(run, on_cpu)


def test_images_that_do_not_stay_on_the_device(on_cpu, tmp_path):
    """A device too small for all images at once gets them chunk by chunk."""
    with pretended(memory=60 * 10**6):
        run = swept(tmp_path / "run", "cuda:0")
    same(run, on_cpu)


def test_workers_take_a_device_each(on_cpu, tmp_path, monkeypatch):
    in_children(monkeypatch, tmp_path)
    with pretended():
        run = swept(tmp_path / "run", "auto", ("Trouser", "Bag"), workers=2)
    assert set(run) == {"Trouser", "Bag"}
    told = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert sorted(tuple(each["peak"]) for each in told) == [("0",), ("1",)]
    assert all(each["triton launches"] for each in told)
    assert np.array_equal(
        run["Trouser"].masks["features.0"].numpy(), on_cpu["Trouser"].masks["features.0"].numpy()
    )

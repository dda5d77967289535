"""Sweeps in low precision give the circuits of float32, and run hardly any image twice."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import TF32, Tf32, perturbed, rounded

from circuitcore.engine.prepare import prepare
from circuitcore.engine.runner import Runner
from circuitcore.extraction.accuracy import SLACK, worth
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.looks import Looks
from circuitcore.extraction.screening import Rule, Screening
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.machine.state import float32_products, undisturbed
from circuitcore.options import Options
from circuitcore.progress import Silent

SETTINGS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def settings():
    return [each.fp32_precision for each in SETTINGS]


@pytest.fixture(scope="module")
def inputs():
    return read_inputs(Options())


def extracted(inputs, how, units, monkeypatch, **asked):
    """Circuits of ``units`` swept as ``how`` says, and image runs in low precision and float32."""
    dtype = how if how in ("bfloat16", "float16") else "float32"
    options = Options(dtype=dtype, random_masks=0, impl="torch", **asked)
    on = machine(options)
    if how == "tf32":  # a CPU has no TF32: the machine of a GPU, and its rounding
        on = replace(on, precision="tf32")
    prepared = prepare(inputs, options, on, Silent())
    runs, plain = Counter(), Runner.run_chunks

    def counted(self, split, images, network, features, levels, run, precise=True):
        runs[precise or not on.low] += levels * len(images)
        return plain(self, split, images, network, features, levels, run, precise)

    with monkeypatch.context() as patch, Tf32() if how == "tf32" else nullcontext() as emulated:
        patch.setattr(Runner, "run_chunks", counted)
        found = [extract_circuit(prepared, unit, str(unit)) for unit in units]
    assert how != "tf32" or emulated.products
    return found, runs


def assert_same_circuits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.record.undefined == b.record.undefined
        for name, mask in b.kept.items():
            assert torch.equal(a.kept[name], mask)
        if b.record.circuit is None:
            continue
        for left, right in zip(a.record.stages, b.record.stages, strict=True):
            one, other = left.levels[left.chosen], right.levels[right.chosen]
            assert (one.level, one.hit, one.false_alarms) == (
                other.level, other.hit, other.false_alarms,
            )  # fmt: skip
            assert one.bias == pytest.approx(other.bias, abs=1e-5)
            assert one.hit_lo == one.hit_hi == one.hit
        ours_out, theirs_out = a.record.circuit.heldout, b.record.circuit.heldout
        assert (ours_out.hit, ours_out.false_alarms) == (theirs_out.hit, theirs_out.false_alarms)


def compare(inputs, how, units, monkeypatch, **asked):
    theirs, plain = extracted(inputs, "float32", units, monkeypatch, **asked)
    ours, runs = extracted(inputs, how, units, monkeypatch, **asked)
    print(f"{how} {asked}: low {runs[False]}, float32 {runs[True]}, float32 alone {plain[True]}")
    assert_same_circuits(ours, theirs)
    return runs, plain


@pytest.mark.parametrize("how", ["bfloat16", "tf32"])
def test_the_bundled_example_in_low_precision(inputs, how, monkeypatch):
    runs, plain = compare(inputs, how, [1, 6], monkeypatch)
    assert runs.total() <= 1.05 * plain[True]
    assert runs[True] <= 0.1 * runs.total()


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["matched", "exact", "none"])
@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
@pytest.mark.parametrize("screen", ["off", "on"])
@pytest.mark.parametrize("how", ["bfloat16", "tf32"])
def test_every_category_in_low_precision(inputs, how, screen, stop, bias, monkeypatch):
    units = [category.index for category in inputs.categories]
    runs, plain = compare(inputs, how, units, monkeypatch, screen=screen, stop=stop, bias=bias)
    if (screen, bias) == ("off", "matched"):
        assert runs.total() <= 1.05 * plain[True]
        assert runs[True] <= 0.1 * runs.total()


BITS = {"tf32": TF32, "bfloat16": 7}
CASES = [
    pytest.param(how, stop, id=f"{how}-{stop}")
    for how in BITS
    for stop in ("first-crossing", "sparsest-above")
]


@pytest.fixture(scope="module")
def thousand():
    """A made-up category of 1,000 by its seed, 20 target images in 20,000: its judge, and its
    activations [L, N] at the levels of a stage that begins where the last one left off.
    """
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "e2e"))
    from margins import load
    from thousand import category, moved

    recorded = load()

    def made(seed, norm):
        random = np.random.default_rng([seed, 1000])
        found, real = category(random), recorded[seed % len(recorded)]

        def rows(stage, start):
            real_rows = real.fc if stage == "fc" else real.conv[min(real.conv)]
            out = moved(random, start.double().numpy(), found.target, real_rows, real.target)
            out[0] = start
            return out

        return found.judge(norm), rows

    return made


def screened(sweep, exact):
    """The level chosen and its accuracy.  No image may be further off than its bound."""
    chosen = sweep.run()
    for t in sweep.judged:
        off = np.abs(sweep.activation[t] - exact[t].double().numpy())
        assert (off <= sweep.error(t) + 1e-9)[sweep.looked[t]].all()
    return chosen, sweep.judged[chosen].bounds.expected


def compare_made_up(judge, rows, how, seed, stop):
    """Both stages of a category, in float32 and in low precision: the same levels, hits, false
    alarms and biases; every bound holds; hardly more image runs, few of them in float32.
    """
    reference = worth(judge.fitted(judge.unpruned[None], "matched")[0], "matched")
    runs, start = Counter(), {low: (judge.unpruned, None) for low in (False, True)}
    for stage in ("fc", "conv"):
        exact = rows(stage, start[False][0])
        inexact = perturbed(exact, BITS[how], seed)
        found = {}
        for low in (False, True):

            def look(levels, images, precise, low=low, exact=exact, inexact=inexact):
                runs[low, precise] += len(levels) * len(images)
                return (exact if precise else inexact)[list(levels)][:, torch.from_numpy(images)]

            below = 0.9 * reference - SLACK
            rule = Rule(below, stop, "matched", stage == "fc", low=low, risk=1e-7)
            begin, error = start[low]
            sweep = Screening(judge, begin, len(exact), look, rule, start_error=error)
            found[low] = screened(sweep, exact)
            start[low] = sweep.at(found[low][0]), sweep.error(found[low][0]) if low else None
        assert found[True] == found[False]
    print(f"{how} {stop}: {runs}")
    assert runs[True, False] + runs[True, True] <= 1.05 * runs[False, True]
    assert runs[True, True] <= 0.1 * runs[True, False]


@pytest.mark.parametrize(("how", "stop"), CASES)
def test_made_up_categories_of_a_thousand(thousand, how, stop):
    for seed in range(2):
        compare_made_up(*thousand(seed, "other"), how, seed, stop)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["other", "target"])
@pytest.mark.parametrize(("how", "stop"), CASES)
def test_all_made_up_categories_of_a_thousand(thousand, how, stop, norm):
    for seed in range(24):
        compare_made_up(*thousand(seed, norm), how, seed, stop)


def test_a_bound_that_an_image_breaks_is_widened():
    """Seen where the image is run again: all others of the level are held to the wider bound."""
    truth = np.zeros((1, 100), np.float32)
    off = np.full(100, 0.001, np.float32)
    off[50] = 0.5

    def look(levels, images, precise):
        return torch.from_numpy(truth[:, images] + (0 if precise else off[images]))

    looks = Looks(look, 1, 100, low=True)
    looks.see([0], np.arange(100))
    assert looks.bound[0] == pytest.approx(0.004, rel=1e-3)
    looks.see([0], np.array([50]), precise=True)
    assert looks.bound[0] == pytest.approx(2.0, rel=1e-3)
    assert looks.error(0)[50] == 0 and looks.error(0)[49] == looks.bound[0]


def test_what_overflows_in_low_precision_is_run_in_float32():
    def look(levels, images, precise):
        values = torch.arange(60.0)[torch.from_numpy(images)][None]
        return values if precise else torch.where(values > 50, torch.inf, values)

    looks = Looks(look, 1, 60, low=True)
    looks.see([0], np.arange(60))
    assert looks.exact[0, 51:].all() and np.array_equal(looks.activation[0], np.arange(60))


def test_products_are_as_stated_and_the_settings_are_put_back():
    before = settings()
    with pytest.raises(ZeroDivisionError), float32_products("tf32"):
        assert settings() == ["tf32"] * 3
        with undisturbed():
            assert settings() == ["ieee"] * 3
        1 / 0  # noqa: B018
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # the older settings can be read


def test_threads_that_ask_side_by_side_leave_the_callers_settings():
    before, entered, leave = settings(), threading.Event(), threading.Event()

    def work():
        with float32_products("ieee"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=work)
    with float32_products("ieee"):
        thread.start()
        entered.wait()
    assert settings() == ["ieee"] * 3  # the other still computes
    leave.set()
    thread.join()
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32 in (True, False)


def test_a_cpu_multiplies_float32_in_full_whatever_its_caller_allows():
    """`set_float32_matmul_precision("medium")` allows a CPU that has it bfloat16."""
    own = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    before = [each.fp32_precision for each in own]
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(128, 512, generator=random) for _ in range(2))
    exact = torch.nn.functional.linear(x, weight)
    try:
        for each in own:
            each.fp32_precision = "bf16"
        with undisturbed():
            assert torch.equal(torch.nn.functional.linear(x, weight), exact)
            with float32_products("tf32"):
                assert [each.fp32_precision for each in own] == ["ieee"] * 2
        assert [each.fp32_precision for each in own] == ["bf16"] * 2
    finally:
        for each, value in zip(own, before, strict=True):
            each.fp32_precision = value


def test_a_cpu_has_no_tf32_and_the_key_names_it():
    from circuitcore.machine.device import resolve_dtype

    on = machine(Options(precision="tf32", device="cpu"))
    assert on.precision == "ieee" and not on.low and on.dtype == torch.float32
    assert resolve_dtype(Options(precision="tf32")) == "tf32"
    assert resolve_dtype(Options(precision="tf32", dtype="bfloat16")) == "bfloat16"
    assert resolve_dtype(Options()) == "float32"


def test_operands_are_rounded_to_ten_bits():
    one = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12, torch.inf])
    wanted = torch.tensor([1.0, 1 + 2**-10, 1.0, 1 + 2 * 2**-10, -1.0, torch.inf])
    assert torch.equal(rounded(one), wanted)

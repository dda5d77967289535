"""What an operation launches and allocates, counted, against what `roofline` and `cost` state."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from masked_layers import draw, levels_of
from triton.runtime.interpreter import GridExecutor

from circuitcore.kernels.aot import roofline
from circuitcore.kernels.levels import trie as levels_trie
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels, score_range
from circuitcore.kernels.masked_linear import operation as linear
from circuitcore.kernels.overlap import gpu as overlap_gpu
from circuitcore.kernels.overlap import operation as overlap
from circuitcore.kernels.score_conv import gpu as score_conv_triton
from circuitcore.kernels.score_conv.operation import score_conv
from circuitcore.kernels.score_linear.factors import linear_factors
from circuitcore.kernels.score_linear.operation import score_linear


@pytest.fixture
def seen(monkeypatch):
    """``launches`` by kernel; ``made``: (numel, dtype) of every tensor an operation asks for."""
    seen = SimpleNamespace(launches=Counter(), made=[])
    execute = GridExecutor.__call__

    def counted(self, *arguments, **options):
        seen.launches[self.fn.__name__] += 1
        return execute(self, *arguments, **options)

    def recorded(make):
        def made(*arguments, **options):
            new = make(*arguments, **options)
            if new.numel():  # the interpreter makes empty ones
                seen.made.append((new.numel(), new.dtype))
            return new

        return made

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    for owner, names in (
        (torch, ("empty", "zeros", "empty_like", "zeros_like")),
        (torch.Tensor, ("new_empty", "new_zeros")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, recorded(getattr(owner, name)))
    return seen


def test_score_linear_reads_once_and_writes_once(seen):
    score_linear(draw(9, 20), draw(3, 20), draw(3, 9), impl="triton")
    assert seen.launches == {"score_linear_kernel": 1}
    assert seen.made == [(9 * 20, torch.float32)]
    work = roofline.scoring(roofline.Layer(9, 20, 1, 20), images=3, item=4)
    assert work.moved == 4 * (9 * 20 + 9 * 20 + 3 * 20 + 3 * 9)  # weight, scores, x, g
    assert work.multiply_adds == 3 * 9 * 20


@pytest.mark.parametrize(("tied", "digits"), [(False, 2), (True, 4)])
def test_levels_passes_over_the_weights(tied, digits, seen):
    x, g = torch.ones(2, 30), torch.ones(2, 7)  # scores are |weight|, equal in 16 bits
    if tied:
        g[:] = 0  # every score is 0, and |weight| decides
    layers = []
    steps = torch.arange(420).view(2, 7, 30) * 2**-20
    for weight in 1 + steps:
        left, right, form = linear_factors(x, g)
        layers.append(LayerScores(weight, left=left, right=right, form=form))
    seen.made.clear()
    for layer in layers:
        score_range(layer, impl="triton")
    assign_levels(layers, [0, 100, 333], impl="triton")
    passes = Counter(  # of the four histograms two return at once where nothing is tied
        levels_range_kernel=len(layers),
        levels_histogram_kernel=levels_trie.KEY_DIGITS * len(layers),
        levels_byte_kernel=len(layers),
    )
    assert seen.launches == passes
    assert (roofline.KEY_DIGITS, roofline.SCORE_DIGITS) == (
        levels_trie.KEY_DIGITS, levels_trie.SCORE_DIGITS,
    )  # fmt: skip
    shape = roofline.Layer(7, 30, 1, 30)
    work = roofline.level_selection([shape, shape], images=2, digits=digits)
    reads = 2 + digits
    assert work.moved == 2 * (reads * 4 * (7 * 30 + 2 * 30 + 2 * 7) + 7 * 30)
    assert work.multiply_adds == 2 * reads * 2 * 7 * 30
    # of a weight's size only the level bytes are written: no score is
    assert not [n for n, dtype in seen.made if dtype == torch.float32]
    # all layers' together, each beginning at an address that 16 divides
    assert [n for n, dtype in seen.made if dtype == torch.uint8 and n > 1] == [2 * 14 * 16 + 1]


@pytest.mark.parametrize(
    ("options", "kernel", "size"),
    [
        ({"magnitude": "position"}, "score_conv_wgrad_kernel", 4 * 2 * 9),
        ({"magnitude": "image"}, "score_conv_wgrad_kernel", 4 * 2 * 9),
        ({"magnitude": "signed"}, "score_conv_wgrad_kernel", 4 * 2 * 9),
        ({"granularity": "kernel"}, "score_conv_map_kernel", 4 * 2),
    ],
)
def test_score_conv_holds_no_map_and_no_gradient_of_an_image(
    options, kernel, size, seen, monkeypatch
):
    monkeypatch.setattr(score_conv_triton, "PROGRAMS", 1)
    weight, x = draw(4, 2, 3, 3), draw(5, 2, 6, 6)
    score_conv(weight, x, draw(5, 4, 4, 4), impl="triton", **options)
    assert seen.launches == {kernel: 1}  # all five images
    assert seen.made == [(size, torch.float32)]  # one partial sum of the scores' own size


def test_masked_linear_is_one_launch_for_all_levels(seen):
    x, weight, ts = draw(6, 32), draw(9, 32), [0, 1, 3, 2, 1]
    linear.masked_linear(x, weight, levels_of(9, 32), ts, draw(9), relu=True, impl="triton")
    assert seen.launches == {"masked_linear_kernel": 1}
    outputs = sum(n for n, dtype in seen.made if dtype == torch.float32)
    assert outputs == len(ts) * 6 * 9  # no masked copy of the weight
    shape = linear.masked_shape(x, weight, ts)
    assert shape.needed() == 5 * 6 * 9 * 32
    assert shape.executed("fused", "sm_90") == 5 * 128 * 128 * 32


def test_overlap_reads_each_mask_once(seen, monkeypatch):
    packed = levels_of(3, 5000)
    step = overlap_gpu.CONFIG.words * 4
    monkeypatch.setattr(overlap_gpu, "BLOCK_BYTES", 3 * step)  # one step of columns a launch
    overlap.overlap_counts(packed, impl="triton")
    assert seen.launches == {"overlap_pairs_kernel": -(-5000 // step)}
    assert max(n for n, _ in seen.made) <= 3 * 3 * 3  # counts alone

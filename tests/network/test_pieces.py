"""Folding a batch norm into its convolution changes nothing but the order of rounding."""

import pytest
import torch
import torch.nn.functional as F

from circuitcore.network.compact.pieces import fold_norm

EPS = 1e-5


def layer(groups=1, dtype=torch.float64, seed=0):
    """(images, weight, bias, (mean, var, scale, shift)); a factor is negative, one variance 0."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    mean, scale, shift = normal(8), normal(8), normal(8)
    var = normal(8).square()
    var[0] = 0
    scale[1], scale[2] = -1.5, 0
    weight = normal(8, 6 // groups, 3, 3)
    weight[torch.rand(weight.shape, generator=random) < 0.5] = 0
    weight[3] = 0  # a unit whose weights are all pruned
    found = normal(5, 6, 9, 9), weight, normal(8), (mean, var, scale, shift)
    return tuple(
        tuple(each.to(dtype) for each in value) if isinstance(value, tuple) else value.to(dtype)
        for value in found
    )


def assert_close(found, expected, dtype, sums):
    """Within the rounding of sums of ``sums`` terms as large as the largest result there is."""
    bound = 4 * torch.finfo(dtype).eps * sums * float(expected.abs().max())
    assert float((found.double() - expected.double()).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("groups", "with_bias"), [(1, True), (1, False), (2, True)])
def test_one_convolution_does_what_both_do(groups, with_bias, dtype):
    x, weight, bias, norm = layer(groups, dtype)
    bias = bias if with_bias else None
    settings = {"stride": 2, "padding": 1, "groups": groups}
    mean, var, scale, shift = norm
    expected = F.conv2d(x, weight, bias, **settings)
    expected = F.batch_norm(expected, mean, var, scale, shift, False, 0.0, EPS)
    own, moved = fold_norm(weight, bias, norm, EPS)
    assert own.dtype == moved.dtype == dtype
    for unit in range(8):  # one channel's factor may be 300 times another's
        found = F.conv2d(x, own, moved, **settings)[:, unit]
        assert_close(found, expected[:, unit], dtype, weight[0].numel() + 1)


def test_a_bias_map_is_folded_place_by_place():
    x, weight, _, norm = layer()
    extra = torch.randn(8, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = F.conv2d(x, weight, padding=1) + extra
    expected = F.batch_norm(before, *norm, False, 0.0, EPS)
    own, moved = fold_norm(weight, extra, norm, EPS)
    torch.testing.assert_close(F.conv2d(x, own, padding=1) + moved, expected)


def test_what_is_pruned_stays_pruned_and_a_dead_unit_is_its_bias_normalised():
    _, weight, bias, norm = layer()
    mean, var, scale, shift = norm
    own, moved = fold_norm(weight, bias, norm, EPS)
    assert (own[weight == 0] == 0).all()
    assert (own[[0, 1, 4]] != 0).sum() == (weight[[0, 1, 4]] != 0).sum()
    expected = F.batch_norm(bias[None], *norm, False, 0.0, EPS)[0]
    torch.testing.assert_close(moved[3], expected[3])
    assert moved[2] == shift[2]  # a factor of 0


def test_the_weight_given_is_left_alone_and_its_layout_kept():
    _, weight, bias, norm = layer()
    weight = weight.contiguous(memory_format=torch.channels_last)
    before = weight.clone()
    own, _ = fold_norm(weight, bias, norm, EPS)
    assert torch.equal(weight, before)
    assert own.stride() == weight.stride()

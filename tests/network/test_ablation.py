"""Mean ablation of any layer, against its definition written out tap by tap, in float64.

There a pruned weight multiplies the mean of what it reads, found by unfolding the padded input; the
product moves a bias.  A small network ends in a Linear, or in a convolution that is pooled.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuitcore.engine.passes import circuit_override
from circuitcore.extraction.judging import empty_activation
from circuitcore.network.ablation import Sums, means_of
from circuitcore.network.compact.compaction import compact
from circuitcore.network.forward import Masks, forward, mean_outputs, target_row
from circuitcore.network.trace import trace

UNIT, TS = 1, (0, 1, 2)


def patches(module, x):
    """What each tap reads: [N, groups, in / groups * taps, positions]; of a Linear one position."""
    if isinstance(module, nn.Linear):
        return x[:, None, :, None]
    found = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    return found.unflatten(1, (module.groups, -1))


def mean_patches(model, images):
    """By layer the mean over images and positions of what each tap reads: [groups, in * taps]."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def hook(module, x, name=name):
                found[name] = patches(module, x[0]).mean((0, 3))

            hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def ablated(model, images, masks, means):
    """The model's output [N, K] where a pruned weight multiplies its tap's mean."""

    def hook(module, x, out, name):
        reads, groups = patches(module, x[0]), getattr(module, "groups", 1)
        weight = module.weight.flatten(1).unflatten(0, (groups, -1))
        kept = masks[name].flatten(1).unflatten(0, (groups, -1))
        y = torch.einsum("gok,ngkp->ngop", weight * kept, reads)
        y += torch.einsum("gok,gk->go", weight * ~kept, means[name])[None, :, :, None]
        y = y.flatten(1, 2)
        if module.bias is not None:
            y = y + module.bias[:, None]
        return y.view_as(out)

    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: hook(m, x, y, name))
        for name, module in model.named_modules()
        if name in masks
    ]
    with torch.no_grad():
        found = model(images)
    for handle in handles:
        handle.remove()
    return found


SETTINGS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "groups": st.sampled_from((1, 2, 6)),
        "bias": st.booleans(),
    }
)


def network(options, pooled, seed):
    """A module of a grouped or plain convolution, its trace with means, and images."""
    torch.manual_seed(seed)
    head = (
        [nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if pooled
        else [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 7, bias=False), nn.ReLU(),
              nn.Linear(7, 4)]
    )  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, **options), nn.ReLU(), *head,
    )  # fmt: skip
    model[1].running_mean.uniform_(-1, 1)
    model = model.double().eval()
    images = torch.randn(5, 2, 9, 8, dtype=torch.float64) + 0.5
    traced = trace(model)
    sums = [Sums(traced), Sums(traced)]
    with torch.inference_mode():
        for each, part in zip(sums, images.split([2, 3]), strict=True):
            forward(traced, {"input": part}, [traced.result], record=each)
    sums[0].add(sums[1])
    found = {name: total / len(images) for name, total in sums[0].sums.items()}
    return model, replace(traced, means=means_of(traced, found)), images


def levels_of(network, seed):
    random = torch.Generator().manual_seed(seed)
    levels = {}
    for name in network.layers():
        shape = network.relevant_shape(name)
        levels[name] = torch.randint(0, 4, shape, generator=random, dtype=torch.uint8)
        levels[name][: len(levels[name]) // 2, ..., :1] = 0
    return levels


def whole_masks(network, levels, t):
    """Masks of all weights, where those of other targets stay."""
    found = {}
    for name, level in levels.items():
        kept = torch.ones(network.weights[name].shape, dtype=torch.bool)
        rows = slice(UNIT, UNIT + 1) if name == network.last else slice(None)
        kept[rows] = level > t
        found[name] = kept
    return found


@settings(deadline=None, max_examples=40)
@given(options=SETTINGS, pooled=st.booleans(), seed=st.integers(0, 999))
def test_a_pruned_weight_carries_the_mean_of_what_it_reads(options, pooled, seed):
    model, network_, images = network(options, pooled, seed)
    means, levels = mean_patches(model, images), levels_of(network_, seed)
    for name, mean in means.items():
        torch.testing.assert_close(network_.means.inputs[name].reshape(mean.shape), mean)
    other = torch.randn_like(images)
    wanted = [ablated(model, other, whole_masks(network_, levels, t), means)[:, UNIT] for t in TS]
    blank = {"input": torch.zeros_like(images[:1])}
    with torch.inference_mode():
        for t, want in zip(TS, wanted, strict=True):
            kept = {name: level > t for name, level in levels.items()}
            _, override = circuit_override(network_, UNIT, kept)
            found = forward(network_, {"input": other}, [network_.result], override=override)[0]
            torch.testing.assert_close(found[:, 0], want)
            small = compact(network_, override, blank).gathered(override)
            torch.testing.assert_close(small.run({"input": other}).expand(5), want)
        row = target_row(network_, UNIT)
        biases = {**row.biases, **mean_outputs(network_, levels, UNIT)}
        masks = Masks(levels, TS, network_.means.inputs)
        found = forward(network_, {"input": other}, [network_.result], masks=masks, impl="torch",
                        override=replace(row, biases=biases))[0]  # fmt: skip
    torch.testing.assert_close(found[..., 0], torch.stack(wanted))


@settings(deadline=None, max_examples=15)
@given(options=SETTINGS, pooled=st.booleans(), seed=st.integers(0, 999))
def test_nothing_pruned_is_the_network_and_all_pruned_a_constant(options, pooled, seed):
    model, network_, images = network(options, pooled, seed)
    every = {n: torch.ones(network_.relevant_shape(n), dtype=torch.bool) for n in network_.layers()}
    with torch.inference_mode():
        _, override = circuit_override(network_, UNIT, every)
        found = forward(network_, {"input": images}, [network_.result], override=override)[0]
        torch.testing.assert_close(found[:, 0], model(images)[:, UNIT])
        _, override = circuit_override(network_, UNIT, {n: ~mask for n, mask in every.items()})
        found = forward(network_, {"input": images}, [network_.result], override=override)[0]
    single, pixels = network_.to("cpu", torch.float32), torch.zeros(5, 2, 9, 8).byte().numpy()

    class Split(SimpleNamespace):
        def __len__(self):
            return 5

    empty = empty_activation(single, UNIT, Split(pixels=pixels))
    torch.testing.assert_close(empty.double(), found[:, 0], rtol=1e-5, atol=1e-5)


def test_pruning_what_reads_a_constant_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)).double().eval()  # fmt: skip
    images = torch.randn(6, 3, 7, 7, dtype=torch.float64)
    images[:, 1] = 0.7
    sums, plain = Sums(traced := trace(model)), {}
    with torch.inference_mode():
        forward(traced, {"input": images}, [traced.result], record=sums)
        found = {name: total / len(images) for name, total in sums.sums.items()}
        traced = replace(traced, means=means_of(traced, found))
        for channel in (1, 2):
            kept = torch.ones(4, 3, 3, 3, dtype=torch.bool)
            kept[:, channel] = False
            _, override = circuit_override(traced, UNIT, {"0": kept})
            plain[channel] = forward(traced, {"input": images}, [traced.result], override=override)[
                0
            ][:, 0]
        own = model(images)[:, UNIT]
    torch.testing.assert_close(plain[1], own)
    assert (plain[2] - own).abs().max() > 1e-3  # a channel that varies is missed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_means_are_float32_whatever_the_weights_are(dtype):
    _, found, _ = network({"kernel_size": 3}, False, 0)
    low = found.to("cpu", torch.float32).to("cpu", dtype)
    assert all(mean.dtype == torch.float32 for mean in low.means.inputs.values())
    masked = {n: low.weights[n] for n in low.layers()}
    for name, weight in masked.items():
        bias = low.means.bias(name, weight)
        own = low.biases.get(name, torch.zeros(len(weight), dtype=dtype))
        assert bias.dtype == dtype
        near = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
        torch.testing.assert_close(bias, own, rtol=near, atol=near)

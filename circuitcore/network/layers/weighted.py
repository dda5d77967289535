"""Layers whose weights are scored and pruned: convolutions and linear layers; fixed filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.network.graph import Step
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.pooling import pad_call, padded_same, pair
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value, copied
from circuitcore.network.layers.shapes import Size, spatial_after


def _filter(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """One fixed filter a channel; every channel gives as many as the filters it has."""
    x, s = values[0], step.settings
    return F.conv2d(x, fixed[0], None, s["stride"], s["padding"], s["dilation"], len(fixed[0]))


def _across(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """A fixed filter that runs along an axis [N, 1, L]."""
    bias = fixed[1] if len(fixed) > 1 else None
    return F.conv1d(values[0], fixed[0], bias, **step.settings)


LAYERS = {"filter": Layer(_filter, "own"), "across": Layer(_across, "whole")}


def _take(r: Reading, label: str, weight: Tensor, bias: Tensor | None) -> None:
    if label in r.used:
        raise InputError(f"layer {label!r} is used twice: shared weights are not supported")
    r.used.add(label)
    r.network.weights[label] = copied(weight)
    if bias is not None:
        r.network.biases[label] = copied(bias)


def _padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, ...]:
    """Below and above, right and left: (top, bottom, left, right)."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        both = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (both[0] // 2, both[0] - both[0] // 2, both[1] // 2, both[1] - both[1] // 2)
    up, left = pair(padding)
    return (up, up, left, left)


def _convolved(
    r: Reading, label: str, x: Value, weight: Tensor, bias: Tensor | None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1, form: str = "",
) -> Value:  # fmt: skip
    x = r.plain(x)
    if len(x.shape) != 4:
        raise Refused("it is not given maps [images, channels, height, width]")
    kernel, stride, dilation = pair(tuple(weight.shape[2:])), pair(stride), pair(dilation)
    top, bottom, left, right = _padding(padding, kernel, dilation)
    if (top, left) != (bottom, right):
        x = pad_call(r, x, (left, right, top, bottom), name=f"{r.name}.pad")
        top = left = 0
    if isinstance(x.shape[1], int) and x.shape[1] != weight.shape[1] * groups:
        raise Refused(f"it is given {x.shape[1]} channels and reads {weight.shape[1] * groups}")
    _take(r, label, weight, bias)
    settings = {"stride": stride, "padding": (top, left), "dilation": dilation, "groups": groups}
    sizes = [
        spatial_after(x.shape[2 + k], kernel[k], stride[k], (top, left)[k], dilation[k])
        for k in (0, 1)
    ]
    shape: list[int | Size | None] = [weight.shape[0], *sizes]
    return r.emit("conv", [x], shape, settings, name=label, form=form)


def _conv_module(r: Reading, m: nn.Conv2d, input: Value) -> Value:
    padding: Any = m.padding
    if m.padding_mode != "zeros":
        top, bottom, left, right = _padding(padding, pair(m.kernel_size), pair(m.dilation))
        mode = m.padding_mode
        around = (left, right, top, bottom)
        input, padding = pad_call(r, input, around, mode, name=f"{r.name}.pad"), 0
    return _convolved(r, r.path, input, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)


def _conv_same(r: Reading, m: nn.Conv2d, input: Value) -> Value:
    x = padded_same(r, input, m.kernel_size, m.stride, m.dilation)
    return _convolved(r, r.path, x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def _standardised_same(r: Reading, m: Any, input: Value) -> Value:
    """timm's convolutions that standardise their weights and pad as TensorFlow does."""
    padding = m.padding
    if m.same_pad:
        input, padding = padded_same(r, input, m.kernel_size, m.stride, m.dilation), m.padding
    gain = (m.gain * m.scale).view(-1) if hasattr(m, "gain") else None
    rows = m.weight.reshape(1, m.out_channels, -1)
    weight = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=m.eps)
    weight = weight.reshape_as(m.weight)
    return _convolved(r, r.path, input, weight, m.bias, m.stride, padding, m.dilation, m.groups,
                      form="remade")  # fmt: skip


def _conv_call(
    r: Reading, input: Value, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if isinstance(r.module, nn.Conv2d):  # its own forward: with its weight, or one made of it
        form = "" if weight is r.module.weight else "remade"
        return _convolved(
            r, r.path, input, weight, bias, stride, padding, dilation, groups, form=form
        )
    if r.trained:
        raise Refused("its weight is a parameter, but of no Conv2d")
    x = r.plain(input)
    if groups != x.channels or len(weight) != groups or bias is not None:
        raise Refused("its fixed weight mixes channels")
    kernel, stride, dilation = pair(tuple(weight.shape[2:])), pair(stride), pair(dilation)
    top, bottom, left, right = _padding(padding, kernel, dilation)
    x = pad_call(r, x, (left, right, top, bottom))
    settings = {"stride": stride, "padding": (0, 0), "dilation": dilation}
    sizes = [spatial_after(x.shape[2 + k], kernel[k], stride[k], 0, dilation[k]) for k in (0, 1)]
    return r.emit("filter", [x], [x.channels, *sizes], settings, [weight])


def _linear(r: Reading, label: str, input: Value, weight: Tensor, bias: Tensor | None) -> Value:
    if len(input.shape) == 2:
        _take(r, label, weight, bias)
        return r.emit("linear", [input], [len(weight)], name=label)
    if input.view != "last":
        raise Refused("a Linear on values that are neither [N, C] nor [N, H, W, C]")
    n, c, *places = input.shape
    inside = Value(input.name, input.shape)
    found = _convolved(r, label, inside, weight[:, :, None, None], bias, form="linear")
    return Value(found.name, found.shape, "last")


def _linear_module(r: Reading, m: nn.Linear, input: Value) -> Value:
    return _linear(r, r.path, input, m.weight, m.bias)


def _linear_call(r: Reading, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    if not isinstance(r.module, nn.Linear) or weight is not r.module.weight:
        raise Refused("its weight is not that of a Linear")
    return _linear(r, r.path, input, weight, bias)


def _conv1d(r: Reading, m: nn.Conv1d, input: Value) -> Value:
    """Along channels laid out as positions (ECA): its few weights are kept whole."""
    if m.padding_mode != "zeros":
        raise Refused(f"padding mode {m.padding_mode!r}")
    x = r.plain(input)
    if len(x.shape) != 3 or isinstance(m.padding, str):
        raise Refused("it is not given [images, channels, places]")
    own = dict(m.named_parameters())
    settings = {"stride": m.stride, "padding": m.padding, "dilation": m.dilation,
                "groups": m.groups}  # fmt: skip
    length = spatial_after(x.shape[2], m.kernel_size[0], m.stride[0], m.padding[0], m.dilation[0])
    return r.emit("across", [x], [m.out_channels, length], settings, list(own.values()))


MODULES: dict[type[nn.Module] | str, Reader] = {
    nn.Conv2d: _conv_module,
    nn.Linear: _linear_module,
    nn.Conv1d: _conv1d,
    "Conv2dSame": _conv_same,
    "StdConv2dSame": _standardised_same,
    "ScaledStdConv2dSame": _standardised_same,
}
FUNCTIONS: dict[Any, Reader] = {
    F.conv2d: _conv_call,
    torch.conv2d: _conv_call,
    F.linear: _linear_call,
}
METHODS: dict[str, Reader] = {}

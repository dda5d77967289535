"""Windows over positions: pooling, padding, resampling.  Every channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.network.graph import Step
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value
from circuitcore.network.layers.shapes import Size, number, spatial_after


def pair(value: Any) -> tuple[int, int]:
    """A setting for height and width."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _pad_same(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """As much padding as gives ceil(size / stride) places, the odd one below and right."""
    s, x = step.settings, values[0]
    around: list[int] = []
    for size, kernel, stride, dilation in reversed(
        list(zip(x.shape[2:], s["kernel_size"], s["stride"], s["dilation"], strict=True))
    ):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        around += [total // 2, total - total // 2]
    return F.pad(x, around, value=s["value"])


def _pad(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    s = step.settings
    around = [number(each, values) for each in s["around"]]
    return F.pad(values[0], around, mode=s["mode"], value=s["value"])


def _interpolate(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    s = dict(step.settings)
    if s["size"] is not None:
        s["size"] = [number(each, values) for each in s["size"]]
    return F.interpolate(values[0], **s)


def _at_least(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """Maps smaller than a size are pooled to it, which repeats some of their positions."""
    x, least = values[0], step.settings["size"]
    if min(x.shape[2:]) >= least:
        return x
    height, width = (max(least, size) for size in x.shape[2:])
    return F.adaptive_avg_pool2d(x, (height, width))


LAYERS = {
    "maxpool": Layer(lambda s, v, f: F.max_pool2d(v[0], **s.settings), "own"),
    "avgpool": Layer(lambda s, v, f: F.avg_pool2d(v[0], **s.settings), "own"),
    "adaptive_avgpool": Layer(
        lambda s, v, f: F.adaptive_avg_pool2d(v[0], s.settings["output_size"]), "own"
    ),
    "adaptive_maxpool": Layer(
        lambda s, v, f: F.adaptive_max_pool2d(v[0], s.settings["output_size"]), "own"
    ),
    "at_least": Layer(_at_least, "own"),
    "pad": Layer(_pad, "own"),
    "pad_channels": Layer(_pad, "whole"),
    "pad_same": Layer(_pad_same, "own"),
    "interpolate": Layer(_interpolate, "own"),
}


def _windowed(r: Reading, op: str, x: Value, settings: dict[str, Any]) -> Value:
    x = _maps(r, x)
    sizes: list[int | Size | None] = [None, None]
    if not settings.get("ceil_mode"):
        dilation = settings.get("dilation", (1, 1))
        sizes = [
            spatial_after(x.shape[2 + k], settings["kernel_size"][k], settings["stride"][k],
                          settings["padding"][k], dilation[k])
            for k in (0, 1)
        ]  # fmt: skip
    return r.emit(op, [x], [x.channels, *sizes], settings)


def _maps(r: Reading, x: Value) -> Value:
    x = r.plain(x)
    if len(x.shape) != 4:
        raise Refused("it is not given maps [images, channels, height, width]")
    return x


def _maxpool(
    r: Reading, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    if return_indices:
        raise Refused("it gives indices too")
    settings = {
        "kernel_size": pair(kernel_size),
        "stride": pair(stride or kernel_size),
        "padding": pair(padding),
        "ceil_mode": bool(ceil_mode),
        "dilation": pair(dilation),
    }
    return _windowed(r, "maxpool", input, settings)


def _avgpool(
    r: Reading, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    settings = {
        "kernel_size": pair(kernel_size),
        "stride": pair(stride or kernel_size),
        "padding": pair(padding),
        "ceil_mode": bool(ceil_mode),
        "count_include_pad": bool(count_include_pad),
        "divisor_override": divisor_override,
    }
    return _windowed(r, "avgpool", input, settings)


def _maxpool_module(r: Reading, m: nn.MaxPool2d, input: Value) -> Value:
    return _maxpool(r, input, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode,
                    m.return_indices)  # fmt: skip


def _avgpool_module(r: Reading, m: nn.AvgPool2d, input: Value) -> Value:
    return _avgpool(r, input, m.kernel_size, m.stride, m.padding, m.ceil_mode,
                    m.count_include_pad, getattr(m, "divisor_override", None))  # fmt: skip


def padded_same(
    r: Reading, x: Value, kernel: Any, stride: Any, dilation: Any = 1, value: float = 0.0
) -> Value:
    """TensorFlow's padding: how much depends on the size of the image."""
    x = _maps(r, x)
    kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
    if all(k == 1 and d == 1 for k, d in zip(kernel, dilation, strict=True)) and stride == (1, 1):
        return x
    settings = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "value": value}
    return r.emit("pad_same", [x], [x.channels, None, None], settings, name=f"{r.name}.pad")


def _maxpool_same(r: Reading, m: nn.MaxPool2d, x: Value) -> Value:
    x = padded_same(r, x, m.kernel_size, m.stride, m.dilation, -float("inf"))
    return _maxpool(r, x, m.kernel_size, m.stride, 0, m.dilation, m.ceil_mode)


def _avgpool_same(r: Reading, m: nn.AvgPool2d, x: Value) -> Value:
    x = padded_same(r, x, m.kernel_size, m.stride)
    return _avgpool(r, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)


def _adaptive(op: str) -> Reader:
    def read(r: Reading, input: Value, output_size: Any) -> Value:
        x = _maps(r, input)
        sizes = (output_size,) * 2 if isinstance(output_size, int | None) else tuple(output_size)
        kept = [x.shape[2 + k] if size is None else size for k, size in enumerate(sizes)]
        return r.emit(op, [x], [x.channels, *kept], {"output_size": output_size})

    return read


def _adaptive_module(op: str) -> Reader:
    read = _adaptive(op)

    def of(r: Reading, module: Any, input: Value) -> Value:
        if getattr(module, "return_indices", False):
            raise Refused("it gives indices too")
        return read(r, input, module.output_size)

    return of


def pad_call(
    r: Reading,
    input: Value,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
    *,
    name: str | None = None,
) -> Value:
    around = tuple(pad)
    if not any(around):
        return input
    x = r.plain(input)
    axes = len(around) // 2
    if axes >= len(x.shape):
        raise Refused("it pads the images of a batch")
    op = "pad" if axes < len(x.shape) - 1 else "pad_channels"
    shape: list[int | Size | None] = list(x.shape[1:])
    for k in range(axes):
        extra = around[2 * k] + around[2 * k + 1]
        shape[-1 - k] = None if isinstance(extra, Size) else shape[-1 - k] + extra  # type: ignore[operator]
    settings = {"around": around, "mode": mode, "value": value}
    sizes = [s if isinstance(s, int) else None for s in shape]
    return r.emit(op, [x], sizes, settings, name=name)


def _pad_module(mode: str, value: Any = None) -> Reader:
    def read(r: Reading, module: Any, input: Value) -> Value:
        own = getattr(module, "value", value)
        return pad_call(r, input, module.padding, mode, own)

    return read


def _interpolate_call(
    r: Reading, input: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:  # fmt: skip
    x = _maps(r, input)
    if size is not None:
        size = (size, size) if isinstance(size, int | Size) else tuple(size)
    settings = {
        "size": size,
        "scale_factor": scale_factor,
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    return r.emit("interpolate", [x], [x.channels, *(size or (None, None))], settings)


def _upsample(r: Reading, m: nn.Upsample, input: Value) -> Value:
    return _interpolate_call(r, input, m.size, m.scale_factor, m.mode, m.align_corners,
                             m.recompute_scale_factor)  # fmt: skip


def _conv_mlp(r: Reading, m: Any, input: Value) -> Value:
    """The head of timm's VGG: convolutions of maps at least as large as the first's kernel."""
    x = _maps(r, input)
    settings = {"size": m.input_kernel_size}
    x = r.emit("at_least", [x], [x.channels, None, None], settings, name=f"{r.name}.grown")
    for part in ("fc1", "act1", "drop", "fc2", "act2"):
        x = r.part(r, f"{r.path}.{part}", x)
    return x


MODULES: dict[type[nn.Module] | str, Reader] = {
    nn.MaxPool2d: _maxpool_module,
    nn.AvgPool2d: _avgpool_module,
    "MaxPool2dSame": _maxpool_same,
    "AvgPool2dSame": _avgpool_same,
    nn.AdaptiveAvgPool2d: _adaptive_module("adaptive_avgpool"),
    nn.AdaptiveMaxPool2d: _adaptive_module("adaptive_maxpool"),
    nn.ZeroPad2d: _pad_module("constant", 0.0),
    nn.ConstantPad2d: _pad_module("constant"),
    nn.ReflectionPad2d: _pad_module("reflect"),
    nn.ReplicationPad2d: _pad_module("replicate"),
    nn.CircularPad2d: _pad_module("circular"),
    "timm.models.vgg.ConvMlp": _conv_mlp,  # another of that name is in timm.layers
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
}
FUNCTIONS: dict[Any, Reader] = {
    F.max_pool2d: _maxpool,
    torch.max_pool2d: _maxpool,
    F.avg_pool2d: _avgpool,
    F.adaptive_avg_pool2d: _adaptive("adaptive_avgpool"),
    F.adaptive_max_pool2d: _adaptive("adaptive_maxpool"),
    F.pad: pad_call,
    F.interpolate: _interpolate_call,
}
METHODS: dict[str, Reader] = {}

"""Normalisations: by running statistics, over channels, over groups, over neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.network.graph import Step
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value


def _batchnorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    mean, var, scale, shift = fixed
    return F.batch_norm(values[0], mean, var, scale, shift, False, 0.0, step.settings["eps"])


def _layernorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """Over the channels of each position."""
    x = values[0].movedim(1, -1)
    scale, shift = _affine(step, fixed)
    return F.layer_norm(x, x.shape[-1:], scale, shift, step.settings["eps"]).movedim(-1, 1)


def _layernorm_behind(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """Over the last axes, whatever they are."""
    scale, shift = _affine(step, fixed)
    return F.layer_norm(values[0], step.settings["over"], scale, shift, step.settings["eps"])


def _groupnorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    scale, shift = _affine(step, fixed)
    return F.group_norm(values[0], step.settings["groups"], scale, shift, step.settings["eps"])


def _instancenorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    scale, shift = fixed or (None, None)
    return F.instance_norm(values[0], None, None, scale, shift, eps=step.settings["eps"])


def _rmsnorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    x = values[0].movedim(1, -1)
    scale, _ = _affine(step, fixed)
    return F.rms_norm(x, x.shape[-1:], scale, step.settings["eps"]).movedim(-1, 1)


def _affine(step: Step, fixed: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) of a step that says which of them it has."""
    given = iter(fixed)
    which = step.settings["affine"]
    return tuple(next(given) if name in which else None for name in ("scale", "shift"))  # type: ignore[return-value]


LAYERS = {
    "batchnorm": Layer(_batchnorm, "own"),
    "layernorm": Layer(_layernorm, "whole", kernels=3),
    "layernorm_behind": Layer(_layernorm_behind, "whole", kernels=2),
    "groupnorm": Layer(_groupnorm, "whole", kernels=3),
    "instancenorm": Layer(_instancenorm, "own", kernels=3),
    "rmsnorm": Layer(_rmsnorm, "whole", kernels=4),
    "localresponse": Layer(
        lambda s, v, f: F.local_response_norm(v[0], **s.settings), "whole", kernels=8
    ),
}


def _read_batchnorm(
    r: Reading, x: Value, mean: Tensor | None, var: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, eps: float,
) -> Value:  # fmt: skip
    label = r.path or r.name
    if mean is None or var is None:
        raise InputError(f"layer {label!r}: a batch norm without running statistics")
    scale = torch.ones_like(mean) if scale is None else scale
    shift = torch.zeros_like(mean) if shift is None else shift
    x = r.plain(x)
    fixed = [mean, var, scale, shift]
    if label in r.used:
        raise InputError(f"layer {label!r} is used twice: shared weights are not supported")
    r.used.add(label)
    return r.emit("batchnorm", [x], x.shape[1:], {"eps": eps}, fixed, name=label)


def _batchnorm_module(r: Reading, module: nn.BatchNorm2d, input: Value) -> Value:
    return _read_batchnorm(
        r, input, module.running_mean, module.running_var, module.weight, module.bias, module.eps
    )


def _frozen(r: Reading, module: Any, x: Value) -> Value:
    return _read_batchnorm(
        r, x, module.running_mean, module.running_var, module.weight, module.bias, module.eps
    )


def _batchnorm_call(
    r: Reading, input: Value, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Value:  # fmt: skip
    if training:
        raise Refused("it normalises by the statistics of the images at hand")
    return _read_batchnorm(r, input, running_mean, running_var, weight, bias, eps)


def _given(scale: Tensor | None, shift: Tensor | None) -> tuple[tuple[str, ...], list[Tensor]]:
    pairs = [("scale", scale), ("shift", shift)]
    names = tuple(name for name, tensor in pairs if tensor is not None)
    return names, [tensor for _, tensor in pairs if tensor is not None]


def _layernorm_call(
    r: Reading, input: Value, normalized_shape: Any, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Value:  # fmt: skip
    over = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    names, fixed = _given(weight, bias)
    channels = input.view == "last" or len(input.shape) == 2
    if channels and over == (input.channels,):
        return r.like("layernorm", input, {"eps": eps, "affine": names}, fixed)
    x = r.plain(input)
    settings = {"eps": eps, "affine": names, "over": over}
    return r.emit("layernorm_behind", [x], x.shape[1:], settings, fixed)


def _layernorm_module(r: Reading, module: nn.LayerNorm, x: Value) -> Value:
    return _layernorm_call(r, x, module.normalized_shape, module.weight, module.bias, module.eps)


def _rmsnorm_call(
    r: Reading, x: Value, normalized_shape: Any, weight: Tensor | None = None,
    eps: float | None = None,
) -> Value:  # fmt: skip
    names, fixed = _given(weight, None)
    if x.view != "last" and len(x.shape) != 2:
        raise Refused("it is not over channels")
    return r.like("rmsnorm", x, {"eps": eps, "affine": names}, fixed)


def _groupnorm_call(
    r: Reading, input: Value, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Value:  # fmt: skip
    names, fixed = _given(weight, bias)
    x = r.plain(input)
    settings = {"eps": eps, "affine": names, "groups": num_groups}
    return r.emit("groupnorm", [x], x.shape[1:], settings, fixed)


def _groupnorm_module(r: Reading, module: nn.GroupNorm, x: Value) -> Value:
    return _groupnorm_call(r, x, module.num_groups, module.weight, module.bias, module.eps)


def _instancenorm_module(r: Reading, module: nn.InstanceNorm2d, x: Value) -> Value:
    if module.running_mean is not None:
        return _batchnorm_module(r, module, x)  # type: ignore[arg-type]
    fixed = [] if module.weight is None else [module.weight, module.bias]
    x = r.plain(x)
    return r.emit("instancenorm", [x], x.shape[1:], {"eps": module.eps}, fixed)


def _localresponse(
    r: Reading, input: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Value:
    x = r.plain(input)
    settings = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    return r.emit("localresponse", [x], x.shape[1:], settings)


def _localresponse_module(r: Reading, module: nn.LocalResponseNorm, x: Value) -> Value:
    return _localresponse(r, x, module.size, module.alpha, module.beta, module.k)


MODULES: dict[type[nn.Module] | str, Reader] = {
    nn.BatchNorm2d: _batchnorm_module,
    nn.BatchNorm1d: _batchnorm_module,
    "FrozenBatchNorm2d": _frozen,
    nn.LayerNorm: _layernorm_module,
    nn.GroupNorm: _groupnorm_module,
    nn.InstanceNorm2d: _instancenorm_module,
    nn.LocalResponseNorm: _localresponse_module,
}
FUNCTIONS: dict[Any, Reader] = {
    F.batch_norm: _batchnorm_call,
    F.layer_norm: _layernorm_call,
    F.rms_norm: _rmsnorm_call,
    F.group_norm: _groupnorm_call,
    F.local_response_norm: _localresponse,
}
METHODS: dict[str, Reader] = {}

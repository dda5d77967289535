"""Functions of every number by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value


def _unary(function: Callable[..., Tensor]) -> Layer:
    return Layer(lambda step, values, fixed: function(values[0], **step.settings), "own")


def reader(op: str, **defaults: Any) -> Reader:
    """Reads a call whose arguments behind the value are ``defaults``, in their order."""

    def read(r: Reading, *args: Any, **kwargs: Any) -> Value:
        own = {"input": None, **defaults, "inplace": False}
        given = dict(zip(own, args, strict=False)) | kwargs
        if len(args) > len(own) or not set(given) <= set(own):
            raise Refused("it is called with arguments that are not known")
        settings = {key: given.get(key, value) for key, value in defaults.items()}
        return r.like(op, _value(given["input"]), settings)

    return read


def _module(op: str, **names: Any) -> Reader:
    """Reads a module whose attributes are the settings of ``op``: {setting: attribute}."""

    def read(r: Reading, module: nn.Module, x: Value) -> Value:
        settings = {key: getattr(module, name) for key, name in names.items()}
        return r.like(op, _value(x), settings)

    return read


def _value(x: Any) -> Value:
    if not isinstance(x, Value):
        raise Refused("it is not given one value")
    return x


def _prelu(r: Reading, x: Value, weight: Tensor) -> Value:
    if weight.numel() == 1:
        return r.like("leaky_relu", _value(x), {"negative_slope": weight.item()})
    return r.like("prelu", _value(x), fixed=[weight])


def _prelu_module(r: Reading, module: nn.PReLU, x: Value) -> Value:
    return _prelu(r, x, module.weight)


def _same(r: Reading, x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


def _dropout(r: Reading, input: Value, p: float = 0.5, training: bool = False,
             inplace: bool = False) -> Value:  # fmt: skip
    if training and p:
        raise Refused("it drops at random, in eval mode too")
    return input


def _stochastic_depth(
    r: Reading, input: Value, p: float, mode: str, training: bool = True
) -> Value:
    return _dropout(r, input, p, training)


LAYERS = {
    "relu": Layer(lambda s, v, f: torch.relu(v[0]), "own"),
    "relu6": _unary(F.relu6),
    "silu": _unary(F.silu),
    "hardswish": _unary(F.hardswish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "sigmoid": _unary(torch.sigmoid),
    "logsigmoid": _unary(F.logsigmoid),
    "tanh": _unary(torch.tanh),
    "gelu": _unary(F.gelu),
    "elu": _unary(F.elu),
    "celu": _unary(F.celu),
    "selu": _unary(F.selu),
    "leaky_relu": _unary(F.leaky_relu),
    "prelu": Layer(lambda s, v, f: F.prelu(v[0], f[0]), "own"),
    "softplus": _unary(F.softplus),
    "softsign": _unary(F.softsign),
    "mish": _unary(F.mish),
    "hardtanh": _unary(F.hardtanh),
    "threshold": _unary(F.threshold),
    "clamp": _unary(torch.clamp),
    "abs": _unary(torch.abs),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "reciprocal": _unary(torch.reciprocal),
    "square": _unary(torch.square),
}

MODULES: dict[type[nn.Module] | str, Reader] = {
    nn.ReLU: _module("relu"),
    nn.ReLU6: _module("relu6"),
    nn.SiLU: _module("silu"),
    nn.Hardswish: _module("hardswish"),
    nn.Hardsigmoid: _module("hardsigmoid"),
    nn.Sigmoid: _module("sigmoid"),
    nn.LogSigmoid: _module("logsigmoid"),
    nn.Tanh: _module("tanh"),
    nn.GELU: _module("gelu", approximate="approximate"),
    nn.ELU: _module("elu", alpha="alpha"),
    nn.CELU: _module("celu", alpha="alpha"),
    nn.SELU: _module("selu"),
    nn.LeakyReLU: _module("leaky_relu", negative_slope="negative_slope"),
    nn.PReLU: _prelu_module,
    nn.Softplus: _module("softplus", beta="beta", threshold="threshold"),
    nn.Softsign: _module("softsign"),
    nn.Mish: _module("mish"),
    nn.Hardtanh: _module("hardtanh", min_val="min_val", max_val="max_val"),
    nn.Threshold: _module("threshold", threshold="threshold", value="value"),
    nn.Identity: lambda r, module, x, *args, **kwargs: x,
    **{kind: (lambda r, module, x: x) for kind in
       (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
        "StochasticDepth", "DropPath", "DropBlock2d", "Dropout")},
}  # fmt: skip

_SIMPLE = ("relu", "sigmoid", "tanh", "abs", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal")
_BOTH: dict[str, Reader] = {
    **{name: reader(name) for name in _SIMPLE},
    "selu": reader("selu"),
    "clamp": reader("clamp", min=None, max=None),
    "clip": reader("clamp", min=None, max=None),
}
METHODS = {
    **_BOTH,
    **{f"{name}_": read for name, read in _BOTH.items()},
    "clamp_min": reader("clamp", min=None),
    "clamp_max": lambda r, x, max: r.like("clamp", x, {"min": None, "max": max}),
    "contiguous": _same, "detach": _same, "clone": _same, "float": _same, "type_as": _same,
    "to": _same,
}  # fmt: skip
FUNCTIONS: dict[Any, Reader] = {
    **{getattr(torch, name): read for name, read in METHODS.items() if hasattr(torch, name)},
    F.relu: reader("relu"),
    F.relu_: reader("relu"),
    F.relu6: reader("relu6"),
    F.silu: reader("silu"),
    F.hardswish: reader("hardswish"),
    F.hardsigmoid: reader("hardsigmoid"),
    F.sigmoid: reader("sigmoid"),
    F.logsigmoid: reader("logsigmoid"),
    F.tanh: reader("tanh"),
    F.gelu: reader("gelu", approximate="none"),
    F.elu: reader("elu", alpha=1.0),
    F.elu_: reader("elu", alpha=1.0),
    F.celu: reader("celu", alpha=1.0),
    F.selu: reader("selu"),
    F.leaky_relu: reader("leaky_relu", negative_slope=0.01),
    F.leaky_relu_: reader("leaky_relu", negative_slope=0.01),
    F.prelu: _prelu,
    torch.prelu: _prelu,
    F.softplus: reader("softplus", beta=1, threshold=20),
    F.softsign: reader("softsign"),
    F.mish: reader("mish"),
    F.hardtanh: reader("hardtanh", min_val=-1.0, max_val=1.0),
    F.hardtanh_: reader("hardtanh", min_val=-1.0, max_val=1.0),
    F.threshold: reader("threshold", threshold=0.0, value=0.0),
    F.dropout: _dropout,
    F.dropout2d: _dropout,
    F.alpha_dropout: _dropout,
    "stochastic_depth": _stochastic_depth,
    "drop_path": _dropout,
}

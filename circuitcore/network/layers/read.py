"""What one node of a traced module computes: the layers that are supported, and their settings."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from circuitcore.errors import InputError

Read = tuple[str, list[torch.fx.Node], dict[str, Any]]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def read_module(node: torch.fx.Node, modules: dict[str, nn.Module], label: str) -> Read | None:
    """What a module computes: (operation, inputs, settings); None where it is not supported."""
    module = modules[label]
    source = [node.args[0]] if node.args else list(node.kwargs.values())
    inputs = [s for s in source if isinstance(s, torch.fx.Node)]
    match module:
        case nn.Conv2d():
            return "conv", inputs, _conv_settings(module, label)
        case nn.Linear():
            return "linear", inputs, {}
        case nn.BatchNorm2d():
            return "batchnorm", inputs, {"eps": module.eps}
        case nn.ReLU():
            return "relu", inputs, {}
        case nn.ReLU6():
            return "relu6", inputs, {}
        case nn.Dropout() | nn.Dropout2d() | nn.Identity():
            return "identity", inputs, {}
        case nn.MaxPool2d():
            settings = {**_window(module), "dilation": _pair(module.dilation)}
            return None if module.return_indices else ("maxpool", inputs, settings)
        case nn.AvgPool2d():
            names = ("count_include_pad", "divisor_override")
            own = {name: getattr(module, name) for name in names}
            return "avgpool", inputs, {**_window(module), **own}
        case nn.AdaptiveAvgPool2d():
            return "adaptive_avgpool", inputs, {"output_size": module.output_size}
        case nn.Flatten():
            if (module.start_dim, module.end_dim) != (1, -1):
                return None
            return "flatten", inputs, {}
    return None


def _conv_settings(module: nn.Conv2d, label: str) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise InputError(f"layer {label!r}: padding mode {module.padding_mode!r}")
    padding: Any = (0, 0) if module.padding == "valid" else module.padding
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(b % 2 for b in both):
            raise InputError(f"layer {label!r}: padding 'same' is uneven here")
        padding = tuple(b // 2 for b in both)
    return {
        "stride": _pair(module.stride),
        "padding": _pair(padding),
        "dilation": _pair(module.dilation),
        "groups": module.groups,
    }


def _window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding")
    return {name: _pair(getattr(module, name)) for name in names} | {"ceil_mode": module.ceil_mode}


def read_call(node: torch.fx.Node, modules: dict[str, nn.Module], label: str) -> Read | None:
    """What a called function or method computes, as `read_module` says it."""
    inputs = [a for a in node.args if isinstance(a, torch.fx.Node)]
    others = [a for a in node.args if not isinstance(a, torch.fx.Node)]
    target = node.target
    if node.op not in ("call_function", "call_method"):
        return None
    if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
        both = len(inputs) == 2 and not others and not node.kwargs
        return ("add", inputs, {}) if both else None
    if target in (torch.cat, torch.concat):
        parts = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim != 1 or not isinstance(parts, Sequence):
            return None
        nodes = [part for part in parts if isinstance(part, torch.fx.Node)]
        return ("cat", nodes, {}) if len(nodes) == len(parts) else None
    if target in (F.relu, torch.relu, torch.relu_, "relu", "relu_"):
        return "relu", inputs, {}
    if target is F.relu6:
        return "relu6", inputs, {}
    if target is F.dropout:
        return "identity", inputs, {}
    if target in (torch.flatten, "flatten"):
        start = others[0] if others else node.kwargs.get("start_dim", 0)
        end = others[1] if len(others) > 1 else node.kwargs.get("end_dim", -1)
        return ("flatten", inputs, {}) if (start, end) == (1, -1) else None
    if target in (F.avg_pool2d, F.max_pool2d):
        given = dict(zip(("kernel_size", "stride", "padding"), others, strict=False))
        settings = {**given, **node.kwargs}
        if len(others) > 3 or settings.get("return_indices"):
            return None
        settings.setdefault("stride", settings["kernel_size"])
        settings["kernel_size"] = _pair(settings["kernel_size"])
        settings["stride"] = _pair(settings["stride"] or settings["kernel_size"])
        settings["padding"] = _pair(settings.get("padding", 0))
        settings.pop("return_indices", None)
        return ("avgpool" if target is F.avg_pool2d else "maxpool"), inputs, settings
    if target is F.adaptive_avg_pool2d:
        size = others[0] if others else node.kwargs.get("output_size")
        return "adaptive_avgpool", inputs, {"output_size": size}
    if target in (torch.mean, "mean"):
        dims: Any = others[0] if others else node.kwargs.get("dim")
        keep = node.kwargs.get("keepdim", others[1] if len(others) > 1 else False)
        if keep or not isinstance(dims, Sequence) or sorted(d % 4 for d in dims) != [2, 3]:
            return None
        return "mean", inputs, {}
    return None

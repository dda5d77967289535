"""Read a torch module into a `Network`, or refuse it naming the layer that does not fit."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.network.graph import Network, Step, needed_steps


def trace(model: nn.Module) -> Network:
    """Read a module into a `Network`.

    Raises InputError naming the layer where it holds anything but Conv2d, Linear, BatchNorm2d,
    ReLU, ReLU6, pooling, flattening, dropout, additions and concatenations, uses a layer twice or
    shares a weight, does not end in a Linear, or has NaN or infinity in a weight.
    """
    model = aside(model)
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception as error:
        raise InputError(
            f"the model cannot be traced ({error}); its forward must not branch"
        ) from error
    modules = dict(model.named_modules())
    steps: list[Step] = []
    network = Network((), {}, {}, {})
    alias: dict[torch.fx.Node, str] = {}  # identities (dropout in eval mode) vanish
    used: set[str] = set()
    owners: dict[int, str] = {}
    result: str | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if alias:
                raise InputError(f"the model takes a second input, {node.name}: images only")
            alias[node] = "input"
            continue
        if node.op == "output":
            output = node.args[0]
            if not isinstance(output, torch.fx.Node):
                raise InputError("the model returns more than one tensor: one of logits is needed")
            result = alias[output]
            continue
        reader = _read_module if node.op == "call_module" else _read_call
        label = str(node.target) if node.op == "call_module" else node.name
        step = reader(node, modules, label)
        if step is None:
            raise InputError(
                f"layer {label!r} ({_kind(node, modules)}) is not supported: only Conv2d, Linear, "
                "BatchNorm2d, ReLU, ReLU6, pooling, flatten, dropout, addition, concatenation are"
            )
        op, sources, settings = step
        if _in_place(node, modules) and _readers(sources[0], modules) > 1:
            raise InputError(
                f"layer {label!r} overwrites a value that another layer reads: not supported"
            )
        if op == "identity":
            alias[node] = alias[sources[0]]
            continue
        if node.op == "call_module":
            if label in used:
                raise InputError(f"layer {label!r} is used twice: shared weights are not supported")
            if op in ("conv", "linear", "batchnorm"):
                used.add(label)
                _take_tensors(network, label, modules[label], owners)
        name = label if op in ("conv", "linear", "batchnorm") else node.name
        alias[node] = name
        steps.append(Step(name, op, tuple(alias[s] for s in sources), settings))
    kept = needed_steps(steps, {result}) if result else []
    if not kept or kept[-1].op != "linear" or kept[-1].name != result:
        end = kept[-1].name if kept else "its input"
        raise InputError(f"the model ends in {end!r}: its last layer must be a Linear")
    if any(kept[-1].name in s.inputs for s in kept):
        raise InputError(f"layer {kept[-1].name!r}: its output is read by another layer")
    names = {s.name for s in kept}
    return Network(
        tuple(kept),
        {k: v for k, v in network.weights.items() if k in names},
        {k: v for k, v in network.biases.items() if k in names},
        {k: v for k, v in network.norms.items() if k in names},
    )


def aside(model: nn.Module) -> nn.Module:
    """The module in eval mode and without hooks, sharing its tensors; the one given stays as it is.

    Its hooks would be called with the tracer's stand-ins for values.
    """
    tensors = [*model.parameters(), *model.buffers()]
    try:
        found = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise InputError(f"the model cannot be copied to be traced ({error})") from error
    for module in found.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return found.eval()


def _kind(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(node.target, "__name__", str(node.target))


def _is_view(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node hands on the memory of its input: dropout in eval mode, flatten."""
    if node.op in ("placeholder", "output", "get_attr"):
        return False
    reader = _read_module if node.op == "call_module" else _read_call
    step = reader(node, modules, str(node.target))
    return step is not None and step[0] in ("identity", "flatten")


def _readers(node: torch.fx.Node, modules: dict[str, nn.Module]) -> int:
    """How many layers read the memory a node's value lies in, under whatever name."""
    while _is_view(node, modules):
        node = node.all_input_nodes[0]
    same, count = [node], 0
    while same:
        for user in same.pop().users:
            if _is_view(user, modules):
                same.append(user)
            else:
                count += 1
    return count


def _in_place(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    by_place = node.target in (F.relu, F.relu6) and node.args[1:] == (True,)
    asked = by_place or bool(node.kwargs.get("inplace", False))
    return name == "iadd" or name.endswith("_") or asked


def _take_tensors(network: Network, name: str, module: nn.Module, owners: dict[int, str]) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"layer {name!r}: {key} holds NaN or infinity; use a checkpoint without"
            )
        if owners.setdefault(tensor.data_ptr(), name) != name:
            raise InputError(
                f"layer {name!r} shares {key} with {owners[tensor.data_ptr()]!r}: "
                "shared weights are not supported"
            )

    def values(tensor: Tensor) -> Tensor:
        exact = tensor.detach()
        return exact.clone() if exact.dtype == torch.float64 else exact.float().clone()

    if isinstance(module, nn.BatchNorm2d):
        mean, var = module.running_mean, module.running_var
        if mean is None or var is None:
            raise InputError(f"layer {name!r}: a batch norm without running statistics")
        scale = torch.ones_like(mean) if module.weight is None else module.weight
        shift = torch.zeros_like(mean) if module.bias is None else module.bias
        network.norms[name] = (values(mean), values(var), values(scale), values(shift))
        return
    assert isinstance(module, nn.Conv2d | nn.Linear)
    network.weights[name] = values(module.weight)
    if module.bias is not None:
        network.biases[name] = values(module.bias)


Read = tuple[str, list[torch.fx.Node], dict[str, Any]]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _read_module(node: torch.fx.Node, modules: dict[str, nn.Module], label: str) -> Read | None:
    module = modules[label]
    source = [node.args[0]] if node.args else list(node.kwargs.values())
    inputs = [s for s in source if isinstance(s, torch.fx.Node)]
    match module:
        case nn.Conv2d():
            if module.padding_mode != "zeros":
                raise InputError(f"layer {label!r}: padding mode {module.padding_mode!r}")
            padding: Any = module.padding
            if padding == "valid":
                padding = (0, 0)
            if padding == "same":
                both = [
                    d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)
                ]
                if any(b % 2 for b in both):
                    raise InputError(f"layer {label!r}: padding 'same' is uneven here")
                padding = tuple(b // 2 for b in both)
            settings = {
                "stride": _pair(module.stride),
                "padding": _pair(padding),
                "dilation": _pair(module.dilation),
                "groups": module.groups,
            }
            return "conv", inputs, settings
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
            if module.return_indices:
                return None
            return (
                "maxpool",
                inputs,
                {
                    "kernel_size": _pair(module.kernel_size),
                    "stride": _pair(module.stride),
                    "padding": _pair(module.padding),
                    "dilation": _pair(module.dilation),
                    "ceil_mode": module.ceil_mode,
                },
            )
        case nn.AvgPool2d():
            return (
                "avgpool",
                inputs,
                {
                    "kernel_size": _pair(module.kernel_size),
                    "stride": _pair(module.stride),
                    "padding": _pair(module.padding),
                    "ceil_mode": module.ceil_mode,
                    "count_include_pad": module.count_include_pad,
                    "divisor_override": module.divisor_override,
                },
            )
        case nn.AdaptiveAvgPool2d():
            return "adaptive_avgpool", inputs, {"output_size": module.output_size}
        case nn.Flatten():
            if (module.start_dim, module.end_dim) != (1, -1):
                return None
            return "flatten", inputs, {}
    return None


def _read_call(node: torch.fx.Node, modules: dict[str, nn.Module], label: str) -> Read | None:
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

"""Read a torch module into a `Network`, or refuse it naming the layer that does not fit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from threading import Lock

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from circuitcore.errors import InputError
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers import read_call, read_module

_tracing = Lock()  # torch.fx puts its own functions in place of the process's meanwhile


def trace(model: nn.Module) -> Network:
    """Read a module into a `Network`.

    Raises InputError naming the layer where it holds anything but Conv2d, Linear, BatchNorm2d,
    ReLU, ReLU6, pooling, flattening, dropout, additions and concatenations, uses a layer twice or
    shares a weight, does not end in a Linear, or has NaN or infinity in a weight.
    """
    for inner in ("_orig_mod", "module"):  # torch.compile's and DataParallel's wrappers
        if isinstance(getattr(model, inner, None), nn.Module) and len(list(model.children())) == 1:
            raise InputError(f"{type(model).__name__} wraps the network: give its .{inner}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            check_own_tensors(name, module, parametrised=True)
    model = aside(model)
    try:
        with _tracing:
            graph = torch.fx.symbolic_trace(model).graph
    except Exception as error:
        raise InputError(
            f"the model cannot be traced ({error}); its forward must not branch"
        ) from error
    found = _Found(dict(model.named_modules()))
    result: str | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if found.alias:
                raise InputError(f"the model takes a second input, {node.name}: images only")
            found.alias[node] = "input"
        elif node.op == "output":
            output = node.args[0]
            if not isinstance(output, torch.fx.Node):
                raise InputError("the model returns more than one tensor: one of logits is needed")
            result = found.alias[output]
        else:
            _take(found, node)
    kept = needed_steps(found.steps, {result}) if result else []
    if not kept or kept[-1].op != "linear" or kept[-1].name != result:
        end = kept[-1].name if kept else "its input"
        raise InputError(f"the model ends in {end!r}: its last layer must be a Linear")
    if any(kept[-1].name in s.inputs for s in kept):
        raise InputError(f"layer {kept[-1].name!r}: its output is read by another layer")
    names, network = {s.name for s in kept}, found.network
    return Network(
        tuple(kept),
        {k: v for k, v in network.weights.items() if k in names},
        {k: v for k, v in network.biases.items() if k in names},
        {k: v for k, v in network.norms.items() if k in names},
    )


@dataclass
class _Found:
    """What was read so far.  ``alias``: the value a node gives, identities vanish; ``used``: layers
    with tensors; ``owners``: whose a tensor is, by its address.
    """

    modules: dict[str, nn.Module]
    steps: list[Step] = field(default_factory=list)
    network: Network = field(default_factory=lambda: Network((), {}, {}, {}))
    alias: dict[torch.fx.Node, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    owners: dict[int, str] = field(default_factory=dict)


def _take(found: _Found, node: torch.fx.Node) -> None:
    """Read one node as a step, with its tensors, or refuse it."""
    modules = found.modules
    reader = read_module if node.op == "call_module" else read_call
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
        found.alias[node] = found.alias[sources[0]]
        return
    owns = op in ("conv", "linear", "batchnorm")
    if node.op == "call_module":
        if label in found.used:
            raise InputError(f"layer {label!r} is used twice: shared weights are not supported")
        if owns:
            found.used.add(label)
            _take_tensors(found.network, label, modules[label], found.owners)
    name = label if owns else node.name
    found.alias[node] = name
    found.steps.append(Step(name, op, tuple(found.alias[s] for s in sources), settings))


def aside(model: nn.Module, hooks: bool = False) -> nn.Module:
    """The module in eval mode, sharing its tensors; the one given stays as it is.

    Without ``hooks``: they would be called with the tracer's stand-ins for values.
    """
    tensors = [*model.parameters(), *model.buffers()]
    try:
        found = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise InputError(f"the model cannot be copied to be traced ({error})") from error
    for module in [] if hooks else found.modules():
        for each in (module._forward_hooks, module._forward_pre_hooks):
            each.clear()
    return found.eval()


def check_own_tensors(name: str, module: nn.Module, parametrised: bool = False) -> None:
    """Refuse a layer whose weight or bias is made anew at every call, or by a hook.

    ``parametrised``: whether what `torch.nn.utils.parametrize` makes may stand in for it.
    """
    for key in ("weight", "bias"):
        own = key in module._parameters
        if not own and not (parametrised and is_parametrized(module, key)):
            raise InputError(
                f"layer {name!r}: its {key} is made by a hook or a parametrisation (pruning, "
                "weight or spectral norm): make it permanent first, with "
                "torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
            )


def _kind(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(node.target, "__name__", str(node.target))


def _is_view(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node hands on the memory of its input: dropout in eval mode, flatten."""
    if node.op in ("placeholder", "output", "get_attr"):
        return False
    reader = read_module if node.op == "call_module" else read_call
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


@torch.no_grad()
def _take_tensors(network: Network, name: str, module: nn.Module, owners: dict[int, str]) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.is_meta:
            raise InputError(f"layer {name!r}: {key} is on the meta device: it has no values")
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

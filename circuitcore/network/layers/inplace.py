"""What a forward overwrites: steps give new values, and who reads the memory later reads those."""

from __future__ import annotations

import torch.fx
from torch import nn

VIEWS = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "unsqueeze",
    "squeeze", "split", "chunk", "unbind", "expand", "expand_as", "getitem", "contiguous",
    "detach", "to", "view_as", "reshape_as", "float", "type_as",
}  # fmt: skip
SAME = {"dropout", "dropout2d", "alpha_dropout", "stochastic_depth", "drop_path"}
SAME_MODULES = (nn.Dropout, nn.Dropout2d, nn.Identity)
SAME_KINDS = ("DropPath", "StochasticDepth", "DropBlock2d")
SETTABLE = {
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "mish", "selu", "leaky_relu", "elu",
    "celu", "hardtanh", "threshold",
}  # fmt: skip


def _name(node: torch.fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _same_module(module: nn.Module) -> bool:
    return isinstance(module, SAME_MODULES) or type(module).__name__ in SAME_KINDS


def in_place(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node overwrites its first input."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return bool(getattr(module, "inplace", False)) and not _same_module(module)
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    infix = name in ("iadd", "isub", "imul", "itruediv", "ipow")
    asked = name in SETTABLE and (bool(node.kwargs.get("inplace")) or True in node.args[1:])
    return infix or asked or (name.endswith("_") and not name.endswith("__"))


def _hands_on(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    """Whether a node gives its first input's memory: ``same``, a ``view`` of it, or neither."""
    if in_place(node, modules):
        return "same"
    if node.op == "call_module":
        module = modules[str(node.target)]
        return "same" if _same_module(module) else "view" if isinstance(module, nn.Flatten) else ""
    if node.op not in ("call_function", "call_method"):
        return ""
    name = _name(node)
    return "same" if name in SAME else "view" if name in VIEWS else ""


def overwritten(
    node: torch.fx.Node, modules: dict[str, nn.Module], place: dict[torch.fx.Node, int]
) -> set[torch.fx.Node] | None:
    """The nodes that from here on mean what a node in place gives.

    None where a part or another shape of that memory, made before, is read behind the node: what
    is in it then is not followed.  ``place``: of every node in the graph.
    """
    source, now = node.all_input_nodes[0], place[node]
    found, waiting = {source: "same"}, [source]
    while waiting:
        one = waiting.pop()
        kind = _hands_on(one, modules)
        around = [(one.all_input_nodes[0], kind)] if kind and one.all_input_nodes else []
        for user in one.users:
            first = user.all_input_nodes[0] is one and place[user] < now
            if first and (kind := _hands_on(user, modules)):
                around.append((user, kind))
        for other, kind in around:
            if other not in found:
                found[other] = "view" if "view" in (kind, found[one]) else "same"
                waiting.append(other)
    for one, kind in found.items():
        if kind == "view" and any(place[user] > now for user in one.users):
            return None
    return {one for one, kind in found.items() if kind == "same"}

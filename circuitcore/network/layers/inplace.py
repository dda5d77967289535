"""What a forward overwrites: steps give new values, so that nobody may read the old one."""

from __future__ import annotations

import torch.fx
from torch import nn

VIEWS = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze",
    "split", "chunk", "unbind", "expand", "expand_as", "getitem", "contiguous", "detach", "to",
    "dropout", "dropout2d", "stochastic_depth", "drop_path", "view_as", "reshape_as", "float",
}  # fmt: skip
IDENTITIES = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)


def _name(node: torch.fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def in_place(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node overwrites its first input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False)) and not _hands_on(
            node, modules
        )
    name = _name(node)
    positional = name in ("relu", "relu6", "silu", "hardswish", "mish") and node.args[1:] == (True,)
    infix = name in ("iadd", "isub", "imul", "itruediv", "ipow")
    asked = bool(node.kwargs.get("inplace", False))
    return infix or positional or (name.endswith("_") and not name.endswith("__")) or asked


def _hands_on(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node gives the memory of its input, or part of it."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        named = type(module).__name__ in ("DropPath", "StochasticDepth", "DropBlock2d")
        return isinstance(module, IDENTITIES) or named
    return node.op in ("call_function", "call_method") and _name(node) in VIEWS


def read_later(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node behind this one reads the memory of its first input by another name."""
    source = node.all_input_nodes[0]
    while _hands_on(source, modules) and source.all_input_nodes:
        source = source.all_input_nodes[0]
    place = {each: k for k, each in enumerate(node.graph.nodes)}
    same, seen = [source], {source}
    while same:
        for user in same.pop().users:
            if user is node or user in seen:
                continue
            seen.add(user)
            if _hands_on(user, modules):
                same.append(user)
            elif user.op == "output" or place[user] > place[node]:
                return True
    return False

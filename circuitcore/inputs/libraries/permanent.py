"""Pruning masks of `torch.nn.utils.prune` applied once and for all; norms are the tracer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from circuitcore.network.trace import aside


@torch.no_grad()
def permanent(module: nn.Module) -> nn.Module:
    """The module in eval mode with pruned tensors as parameters; itself where none is pruned.

    A copy that shares all other tensors: the one given stays pruned as it is.
    """
    if not any(_masks(each) for each in module.modules()):
        return module
    copied = aside(module, hooks=True)
    for layer in copied.modules():
        for number, mask in _masks(layer):
            name: str = mask._tensor_name
            pruned = mask.apply_mask(layer).detach().clone()
            del layer._forward_pre_hooks[number]
            for part in (f"{name}_orig", f"{name}_mask", name):
                delattr(layer, part)
            layer.register_parameter(name, nn.Parameter(pruned, requires_grad=False))
    return copied


def _masks(layer: nn.Module) -> list[tuple[int, Any]]:
    hooks = layer._forward_pre_hooks.items()
    return [(n, hook) for n, hook in hooks if isinstance(hook, BasePruningMethod)]

"""Weights that hooks make anew at every call, made once: masks, weight norm, spectral norm."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from circuitcore.errors import InputError

MAKERS = (BasePruningMethod, SpectralNorm, WeightNorm)


def permanent(module: nn.Module) -> nn.Module:
    """The module with the weights that such hooks make held as parameters; itself without hooks.

    A copy where there are some, sharing all other tensors; the one given stays as it is.  What
    `torch.nn.utils.parametrize` makes is read by the tracer as it is.
    """
    if not any(_makers(each) for each in module.modules()):
        return module
    copied = shallow(module)
    for layer in copied.modules():
        for number, hook in _makers(layer):
            value = _made(layer, hook)
            name: str = hook.name if not isinstance(hook, BasePruningMethod) else hook._tensor_name
            del layer._forward_pre_hooks[number]
            vars(layer).pop(name, None)
            for own in [k for k in layer._parameters if k.startswith(f"{name}_")]:
                del layer._parameters[own]
            for own in [k for k in layer._buffers if k.startswith(f"{name}_")]:
                del layer._buffers[own]
            layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return copied


def shallow(module: nn.Module) -> nn.Module:
    """A copy of the module that shares every tensor, those that hooks made last included."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise InputError(f"the model cannot be copied to be traced ({error})") from error


def _makers(layer: nn.Module) -> list[tuple[int, Any]]:
    return [(n, h) for n, h in layer._forward_pre_hooks.items() if isinstance(h, MAKERS)]


@torch.no_grad()
def _made(layer: nn.Module, hook: Any) -> Tensor:
    """The tensor as eval mode has it."""
    if isinstance(hook, BasePruningMethod):
        made: Tensor = hook.apply_mask(layer)
    elif isinstance(hook, SpectralNorm):
        made = hook.compute_weight(layer, do_power_iteration=False)
    else:
        made = hook.compute_weight(layer)
    return made.detach().clone()

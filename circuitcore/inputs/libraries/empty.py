"""Modules built for weights that come from elsewhere: without values, or without drawing any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from circuitcore.errors import InputError
from circuitcore.network.trace import trace


class Valueless(TorchFunctionMode):
    """Parameters made in it have shapes alone; numbers that a builder computes with are real.

    ``torch.device("meta")`` takes those too: a network that computes its widths cannot be built.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Send ``torch.empty``, by which layers ask for their weights, to the meta device."""
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class Undrawn(TorchFunctionMode):
    """Parameters made in it are not filled by ``torch.nn.init`` where that lets a mode see it.

    Drawing numbers takes longer than loading those that replace them.  Tensors' own methods draw
    as ever: initialisations that draw until all numbers lie within bounds would never end.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Leave out torch.nn.init's own functions, which pass their tensor by its name."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" and "tensor" in kwargs:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def check_structure(build: Callable[[], nn.Module], name: str) -> None:
    """Refuse an architecture that cannot be swept whatever its weights, before these are fetched.

    Raises InputError naming the layer that does not fit.
    """
    with Valueless():
        module = build()
    state = module.state_dict()  # with the versions that some loaders ask for
    for key, value in list(state.items()):
        state[key] = torch.zeros(value.shape, dtype=value.dtype)
    module.load_state_dict(state, assign=True)
    for layer in module.modules():
        for key, buffer in layer.named_buffers(recurse=False):  # those that no state holds too
            if buffer.is_meta:
                setattr(layer, key, torch.zeros(buffer.shape, dtype=buffer.dtype))
    try:
        trace(module)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None

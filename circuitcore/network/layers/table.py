"""Every kind of layer that networks are made of, in one table.

A family (a file beside this one) says in ``LAYERS`` what its steps do, and in ``MODULES``,
``FUNCTIONS`` and ``METHODS`` how they are read from a traced graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from circuitcore.network.graph import Network, Step
from circuitcore.network.layers import (
    activations,
    arithmetic,
    moving,
    norms,
    parts,
    pooling,
    weighted,
)
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader

_FAMILIES: tuple[Any, ...] = (activations, arithmetic, moving, norms, parts, pooling, weighted)

LAYERS: dict[str, Layer] = {op: each for family in _FAMILIES for op, each in family.LAYERS.items()}
_MODULES: dict[Any, Reader] = {k: v for family in _FAMILIES for k, v in family.MODULES.items()}
_FUNCTIONS: dict[Any, Reader] = {k: v for family in _FAMILIES for k, v in family.FUNCTIONS.items()}
METHODS: dict[str, Reader] = {k: v for family in _FAMILIES for k, v in family.METHODS.items()}


def module_reader(module: nn.Module) -> Reader | None:
    """How a module is read whole; None where its forward is to be looked into.

    Only a class itself is known, not what derives from it: that may compute something else.
    Those of torchvision and timm go by their names, so that neither is needed here.
    """
    kind = type(module)
    if kind in _MODULES:
        return _MODULES[kind]
    if kind.__module__.partition(".")[0] not in ("timm", "torchvision"):
        return None
    return _MODULES.get(kind.__name__) or _MODULES.get(f"{kind.__module__}.{kind.__name__}")


def function_reader(function: Any) -> Reader | None:
    """How a called function is read."""
    found = _FUNCTIONS.get(function)
    return found or _FUNCTIONS.get(getattr(function, "__name__", ""))


def apply_step(network: Network, step: Step, inputs: Sequence[Tensor]) -> Tensor:
    """Run one step that has no weights to mask: everything but conv and linear."""
    return LAYERS[step.op].run(step, inputs, network.fixed.get(step.name, ()))


def channelwise(op: str) -> bool:
    """Whether a channel of a step's output depends on that channel of its one input alone."""
    return op in LAYERS and LAYERS[op].reach in ("own", "flatten")

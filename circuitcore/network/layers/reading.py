"""The network as far as it has been read: values, their shapes, and the steps that give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.network.graph import Network, Step
from circuitcore.network.layers.shapes import IMAGES, Size, located

Shape = tuple["int | Size", ...]


class Refused(Exception):
    """Why a node cannot be read; the tracer says which layer it belongs to."""


@dataclass(frozen=True)
class Value:
    """What a step gives, as the module's code sees it.

    ``shape``: of what is stored, [images, channels, ...].  ``view``: how the code sees it instead,
    while nothing is moved: ``last``, channels behind [N, H, W, C]; ``split``, channels in
    ``groups`` [N, G, C / G, H, W]; ``swapped``, [N, C / G, G, H, W]; or ``plain``.
    """

    name: str
    shape: Shape
    view: str = "plain"
    groups: int = 1

    @property
    def seen(self) -> Shape:
        """The shape that the module's code sees."""
        if self.view == "plain":
            return self.shape
        n, c, *rest = self.shape
        if self.view == "last":
            return (n, *rest, c)
        each = c // self.groups
        middle = (self.groups, each) if self.view == "split" else (each, self.groups)
        return (n, *middle, *rest)

    @property
    def channels(self) -> int:
        """Raises Refused where their number depends on the image."""
        if not isinstance(self.shape[1], int):
            raise Refused("its number of channels depends on the image")
        return self.shape[1]


@dataclass
class Reading:
    """What was read so far.

    ``owners``: whose a tensor is, by its address; ``used``: layers with weights; ``name``, ``path``
    and ``module`` are the node's that is being read and of the module it belongs to, ``part(r,
    path, value)`` reads one inside it; ``trained``: whether a parameter is among the arguments.
    """

    modules: dict[str, nn.Module]
    part: Callable[..., Any]
    steps: list[Step] = field(default_factory=list)
    network: Network = field(default_factory=lambda: Network((), {}, {}, {}))
    values: dict[str, Value] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    owners: dict[int, str] = field(default_factory=dict)
    name: str = ""
    path: str = ""
    trained: bool = False

    @property
    def module(self) -> nn.Module:
        """The module the node belongs to."""
        return self.modules[self.path]

    def fresh(self, wanted: str) -> str:
        """A name no step has yet."""
        taken, name, k = {step.name for step in self.steps}, wanted, 0
        while name in taken:
            name, k = f"{wanted}.{k}", k + 1
        return name

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Sequence[int | Size | None],
        settings: dict[str, Any] | None = None,
        fixed: Sequence[Tensor] = (),
        *,
        name: str | None = None,
        form: str = "",
    ) -> Value:
        """A step; ``shape``: of what it gives without the images, None where that is to be seen.

        Sizes in the settings refer to the step's inputs; those that need another value read it.
        """
        name = self.fresh(name or self.name)
        own: dict[str, Any] = dict(settings or {})
        sized = {key: value for key, value in own.items() if _sizes(value)}
        if sized:
            inputs = list(inputs)
            known = {value.name for value in inputs}
            places = self._places(inputs)
            for wanted in sorted({n for v in sized.values() for d in _sizes(v) for n in _atoms(d)}):
                if wanted not in places:
                    if wanted[0] not in known:
                        inputs.append(self.values[wanted[0]])
                        known.add(wanted[0])
                    places = self._places(inputs)
            own |= {key: _located(value, places) for key, value in sized.items()}
        self.steps.append(Step(name, op, tuple(v.name for v in inputs), own, form))
        if fixed:
            self.network.fixed[name] = tuple(copied(tensor) for tensor in fixed)
        dims = [Size(1, ((name, k + 1),)) if d is None else d for k, d in enumerate(shape)]
        found = Value(name, (IMAGES, *dims))
        self.values[name] = found
        return found

    @staticmethod
    def _places(inputs: Sequence[Value]) -> dict[tuple[str, int], tuple[int, int]]:
        """Where among the inputs a size is found: that of a value, or one known to equal it."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for k, value in enumerate(inputs):
            for axis, dim in enumerate(value.shape):
                if axis == 1:  # what is left of it where channels are pruned away
                    continue
                found.setdefault((value.name, axis), (k, axis))
                if isinstance(dim, Size) and dim.factor == 1 and len(dim.atoms) == 1:
                    atom = dim.atoms[0]
                    if len(atom) == 2:
                        found.setdefault((str(atom[0]), int(str(atom[1]))), (k, axis))
        return found

    def plain(self, value: Value) -> Value:
        """The value with what the code sees in memory."""
        if value.view == "plain":
            return value
        n, *seen = value.seen
        settings: dict[str, Any] = {"view": value.view}
        if value.view != "last":
            settings["groups"] = value.groups
        return self.emit("arranged", [value], seen, settings, name=f"{value.name}.{value.view}")

    def like(self, op: str, value: Value, settings: dict[str, Any] | None = None,
             fixed: Sequence[Tensor] = ()) -> Value:  # fmt: skip
        """A step on every number, or every channel, by itself: shape and view stay."""
        found = self.emit(op, [value], value.shape[1:], settings, fixed)
        return replace(found, view=value.view, groups=value.groups)


def _sizes(value: Any) -> list[Size]:
    parts = value if isinstance(value, tuple | list) else (value,)
    return [part for part in parts if isinstance(part, Size)]


def _atoms(dim: Any) -> set[tuple[str, int]]:
    if not isinstance(dim, Size):
        return set()
    found: set[tuple[str, int]] = set()
    for atom in dim.atoms:
        if len(atom) == 2 and atom[0] != "images":
            found.add((str(atom[0]), int(str(atom[1]))))
        elif len(atom) == 3:
            found |= _atoms(atom[1]) | _atoms(atom[2])
    return found


def _located(value: Any, places: dict[tuple[str, int], tuple[int, int]]) -> Any:
    if isinstance(value, tuple | list):
        return tuple(located(part, places) for part in value)
    return located(value, places)


def copied(tensor: Tensor) -> Tensor:
    """A tensor's values for a network: float32, or float64 where it is that."""
    exact = tensor.detach()
    return exact.clone() if exact.dtype == torch.float64 else exact.float().clone()


@torch.no_grad()
def claim(r: Reading, label: str, tensors: dict[str, Tensor]) -> None:
    """Check a layer's own tensors: with finite values, and nobody else's."""
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if tensor.is_meta:
            raise InputError(f"layer {label!r}: {key} is on the meta device: it has no values")
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"layer {label!r}: {key} holds NaN or infinity; use a checkpoint without"
            )
        if r.owners.setdefault(tensor.data_ptr(), label) != label:
            raise InputError(
                f"layer {label!r} shares {key} with {r.owners[tensor.data_ptr()]!r}: "
                "shared weights are not supported"
            )


Reader = Callable[..., Any]
"""(reading, arguments as the node's) -> Value, values, or what needs no step; raises Refused."""

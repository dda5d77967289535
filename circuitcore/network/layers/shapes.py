"""Sizes that are known only when images run: products and sums of a value's height and width.

A network is read once and runs on images of any size, so that what its forward does with
``x.shape`` is kept as it says it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """``factor`` times the product of ``atoms``, sorted.

    An atom is (name, axis), the size of a value; ("images", 0), how many there are; or
    (operation, left, right) of `OPERATIONS` on two sizes or numbers.
    """

    factor: int
    atoms: tuple[tuple[object, ...], ...]

    def __mul__(self, other: object) -> Size | int:
        if isinstance(other, int):
            return _size(self.factor * other, self.atoms)
        if isinstance(other, Size):
            return _size(self.factor * other.factor, (*self.atoms, *other.atoms))
        return NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Size | int:
        by = (
            other
            if isinstance(other, Size)
            else Size(other, ())
            if isinstance(other, int)
            else None
        )
        if by is None:
            return NotImplemented
        left = list(self.atoms)
        for atom in by.atoms:
            if atom not in left:
                return Size(1, (("floordiv", self, other),))
            left.remove(atom)
        if self.factor % by.factor:
            return Size(1, (("floordiv", self, other),))
        return _size(self.factor // by.factor, tuple(left))

    def __add__(self, other: object) -> Size:
        return _combined("add", self, other)

    def __radd__(self, other: object) -> Size:
        return _combined("add", other, self)

    def __sub__(self, other: object) -> Size:
        return _combined("sub", self, other)

    def __rsub__(self, other: object) -> Size:
        return _combined("sub", other, self)

    def __mod__(self, other: object) -> Size:
        return _combined("mod", self, other)

    def __neg__(self) -> Size | int:
        return self * -1

    def __truediv__(self, other: object) -> Size:
        return _combined("truediv", self, other)

    def __int__(self) -> int:
        raise TypeError("a size that depends on the image is not a number yet")

    __bool__ = __index__ = __int__


OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "floordiv": operator.floordiv,
    "add": operator.add,
    "sub": operator.sub,
    "mod": operator.mod,
    "truediv": operator.truediv,
}
IMAGES = Size(1, (("images", 0),))


def _size(factor: int, atoms: tuple[tuple[object, ...], ...]) -> Size | int:
    return Size(factor, tuple(sorted(atoms, key=repr))) if atoms and factor else factor


def _combined(how: str, left: object, right: object) -> Size:
    if not all(isinstance(each, int | float | Size) for each in (left, right)):
        return NotImplemented
    return Size(1, ((how, left, right),))


def product(dims: Sequence[int | Size]) -> int | Size:
    """Of sizes, as far as they are known."""
    found: int | Size = 1
    for dim in dims:
        found = found * dim
    return found


def quotient(whole: int | Size, part: int | Size) -> int | Size:
    """What a size is divided by another into."""
    if isinstance(whole, Size):
        return whole // part
    return whole // part if isinstance(part, int) else Size(whole, ()) // part


def number(dim: object, values: Sequence[Tensor]) -> int:
    """A size on these inputs: its atoms are ("images", 0) or ("of", input, axis)."""
    return int(_number(dim, values))


def _number(dim: object, values: Sequence[Tensor]) -> float:
    if not isinstance(dim, Size):
        assert isinstance(dim, int | float)
        return dim
    found: float = dim.factor
    for kind, left, right in (atom if len(atom) == 3 else (*atom, None) for atom in dim.atoms):
        if kind == "images":
            found *= values[0].shape[0]
        elif kind == "of":
            assert isinstance(left, int) and isinstance(right, int)
            found *= values[left].shape[right]
        else:
            found *= OPERATIONS[str(kind)](_number(left, values), _number(right, values))
    return found


def located(dim: object, places: dict[tuple[str, int], tuple[int, int]]) -> object:
    """The size with every (name, axis) said as ("of", input, axis)."""
    if not isinstance(dim, Size):
        return dim
    atoms: list[tuple[object, ...]] = []
    for atom in dim.atoms:
        if atom == ("images", 0):
            atoms.append(atom)
        elif len(atom) == 2:
            atoms.append(("of", *places[str(atom[0]), int(str(atom[1]))]))
        else:
            atoms.append((atom[0], located(atom[1], places), located(atom[2], places)))
    return Size(dim.factor, tuple(atoms))


def spatial_after(
    size: int | Size, kernel: int, stride: int, padding: int, dilation: int
) -> int | Size | None:
    """What a convolution or pooling gives of a size, where that can be said without the image."""
    reach = dilation * (kernel - 1)
    if stride == 1 and 2 * padding == reach:
        return size
    if isinstance(size, int):
        return math.floor((size + 2 * padding - reach - 1) / stride) + 1
    return None

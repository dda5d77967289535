"""Where layers' masks lie among the places of all layers."""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 2048  # places a program; a layer's mask begins at a multiple of it


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each layer's mask begins, and the end of the last."""
    found = [0]
    for size in sizes:
        found.append(found[-1] + -(-size // BLOCK) * BLOCK)
    return found

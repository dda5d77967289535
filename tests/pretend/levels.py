"""The passes of level selection in plain torch, as `circuitcore.kernels.levels.gpu` asks for them.

Each takes what its operation takes, on the CPU; keys are (normalised score, |weight|), 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from circuitcore.kernels.levels.gpu_select import refine_told
from circuitcore.kernels.score_linear.factors import FORM_CODES, score_from_factors

FORMS = {code: form for form, code in FORM_CODES.items()}
DIGITS = 1 << 16


SAMPLE = 1 << 13  # scores that stand for those of a ghost layer


def sample(weight: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(weight, scores, copies): of a ghost layer so many random ones, each for ``copies`` weights.

    The copies of one are next to each other and tie; ``copies`` is None of a layer that is there.
    """
    if weight.device.type != "meta" and right.device.type != "meta":
        return weight, right, None
    total = weight.numel()
    drawn = min(total, SAMPLE)
    generator = torch.Generator().manual_seed(total)
    own, scores = torch.rand(2, drawn, generator=generator)
    copies = torch.full((drawn,), total // drawn)
    copies[: total % drawn] += 1
    return own, scores, copies


def raw(weight: Tensor, left: Tensor, right: Tensor, layout: Sequence[int]) -> Tensor:
    """Scores as they are, float32, flat; given ones are ``right``."""
    if layout[3] == 0:
        return right.flatten()
    whole = weight.reshape(layout[0], layout[1])
    return score_from_factors(whole, left, right, FORMS[layout[3]]).flatten()


def keys(weight: Tensor, scores: Tensor, norm: Tensor) -> Tensor:
    """Digits int64 [4, weights], most significant first."""
    offset, scale = norm
    bits = ((scores - offset) * scale + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    negative = bits >= 1 << 31
    ordered = torch.where(negative, bits ^ 0xFFFFFFFF, bits ^ (1 << 31))
    magnitude = weight.flatten().view(torch.int32).long() & 0x7FFFFFFF
    return torch.stack([ordered >> 16, ordered & 0xFFFF, magnitude >> 16, magnitude & 0xFFFF])


def walked(digits: Tensor, table: Tensor, first: Tensor, depth: int) -> Tensor:
    """Entries of the trie after ``depth`` digits, int64 [weights]; below 0 is undecided: ~node."""
    entry = table[0, digits[0]].long()
    for at in range(1, depth):
        undecided = entry < 0
        row = first[at] + ~entry[undecided]
        entry[undecided] = table[row.long(), digits[at][undecided]].long()
    return entry


def _many(values: Tensor, copies: Tensor | None) -> Tensor:
    return values if copies is None else values * copies


def range_of(weight: Tensor, left: Tensor, right: Tensor, layout: Sequence[int]) -> Tensor:
    """float64 [programs, 3]: all of it in the first program, nothing in the others."""
    own, drawn, copies = sample(weight, right)
    scores = (raw(weight, left, right, layout) if copies is None else drawn).double()
    blocks = -(-layout[0] // layout[4]) * -(-layout[1] // layout[5])
    out = torch.tensor([[torch.inf, -torch.inf, 0.0]], dtype=torch.float64).repeat(blocks, 1)
    out[0] = torch.stack([scores.min(), scores.max(), _many(scores.abs(), copies).sum()])
    return out


def histogram(
    weight: Tensor, left: Tensor, right: Tensor, table: Tensor, first: Tensor, out: Tensor,
    zeros: Tensor, norm: Tensor, layout: Sequence[int], depth: int,
) -> None:  # fmt: skip
    """Add to ``out`` int32 [nodes, 65536] and, at depth 0, to ``zeros`` [1]."""
    own, drawn, copies = sample(weight, right)
    scores = raw(weight, left, right, layout) if copies is None else drawn
    digits = keys(own, scores, norm)
    if depth == 0:
        at = digits[0]
        zeros += int(_many((scores == 0).long(), copies).sum())
    else:
        entry = walked(digits, table, first, depth)
        mine = entry < 0
        at = ~entry[mine] * DIGITS + digits[depth][mine]
        copies = copies if copies is None else copies[mine]
    counted = torch.bincount(at, copies, minlength=out.numel())
    out += counted.view(out.shape).int()


def level_bytes(
    weight: Tensor, left: Tensor, right: Tensor, table: Tensor, first: Tensor, level: Tensor,
    index: Tensor, node: Tensor, count: Tensor, norm: Tensor, layout: Sequence[int], start: int,
) -> None:  # fmt: skip
    """Level bytes; index and node of the full ties, and how many; ties come last index first."""
    own, drawn, copies = sample(weight, right)
    scores = raw(weight, left, right, layout) if copies is None else drawn
    entry = walked(keys(own, scores, norm), table, first, 4)
    if copies is not None:
        entry = entry.short().repeat_interleave(copies)
    level[: weight.numel()] = (entry & 0xFF).to(torch.uint8)
    ties = (entry < 0).nonzero()[:, 0].flip(0)
    at = slice(int(count), int(count) + len(ties))
    listed = ties[: max(0, len(index) - at.start)]  # what there is room for
    index[at], node[at] = listed + start, ~entry[listed].int()
    count += len(ties)


def refined(
    histogram: Tensor, wanted: Tensor, rows: Tensor, told: Tensor, first: Tensor, depth: int,
    snap: bool,
) -> list[Tensor]:  # fmt: skip
    """What is returned, and what is written in place."""
    return [refine_told(histogram, wanted, rows, told, first, depth, snap), rows, told, first]


ANSWERS: dict[str, Callable[..., Any]] = {
    "levels_refine": refined,
    "levels_range": range_of,
    "levels_histogram": histogram,
    "levels_bytes": level_bytes,
}

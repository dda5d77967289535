"""The plain meaning of `random_masks`: hashes of 32 bits in 64-bit integers, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

ROUND = (16, 0x85EBCA6B), (13, 0xC2B2AE35)  # shift and factor, twice; then a shift by 16


def hashes(size: int, words: Sequence[int], device: torch.device) -> torch.Tensor:
    """The hash of each place, int64 [size], all different: the finaliser of MurmurHash3 a word."""
    x = torch.arange(size, dtype=torch.int64, device=device)
    for word in words:
        x.bitwise_xor_(word)
        for shift, factor in ROUND:
            x.bitwise_xor_(x >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
        x.bitwise_xor_(x >> 16)
    return x


def random_mask_reference(
    size: int, count: int, words: Sequence[int], device: torch.device
) -> torch.Tensor:
    """``count`` of ``size`` places, those of the smallest hashes: bool [size].

    16 bytes a place are held, some 440 moved.
    """
    if count in (0, size):
        return torch.full((size,), count > 0, device=device)
    # by the shorter side's extreme: selecting is many programs' work, where a k-th value is one's
    keys = hashes(size, words, device).sub_(1 << 31).int()
    if 2 * count <= size:
        return keys <= keys.topk(count, largest=False, sorted=False).values.max()
    return keys < keys.topk(size - count, largest=True, sorted=False).values.min()

"""Random masks that keep given numbers of places, of all layers together.

Of a layer's places i = 0 .. size - 1, count are kept:

    kept[i] = rank of h(i) among h(0) .. h(size - 1) < count
    h(i) = m(m(i xor word_0) xor word_1)      m: the finaliser of MurmurHash3, a bijection

No two hashes are equal, so exactly count places are kept, and every choice of two words gives
another mask.  Nothing waits for the device, which holds no more than the mask: each of three passes
computes the hashes anew, and two histograms of 16 bits find the count-th of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.random_masks.layout import starts
from circuitcore.kernels.random_masks.reference import random_mask_reference


def random_masks(
    counts: torch.Tensor, sizes: Sequence[int], words: Sequence[int], *, impl: str = "auto"
) -> list[torch.Tensor]:
    """bool [size] for each of ``sizes``, with ``counts`` int64 [L] places kept, on its device.

    ``words``: two 32-bit numbers a layer.  With Triton six launches for all layers.  Raises
    ValueError for a layer of 2^31 places or more, or another number of counts or words.
    """
    if tuple(counts.shape) != (len(sizes),) or len(words) != 2 * len(sizes):
        raise ValueError("a count and two words a layer")
    if any(size >= 2**31 for size in sizes):
        raise ValueError("the GPU's counters hold fewer than 2^31 places a layer")
    chosen = choose(impl, counts, operation="random_masks")
    flat = _random_masks(counts, list(sizes), list(words), chosen).view(torch.bool)
    return [flat[at : at + size] for at, size in zip(starts(sizes), sizes, strict=False)]


@torch.library.custom_op("circuitcore::random_masks", mutates_args=())
def _random_masks(
    counts: torch.Tensor, sizes: list[int], words: list[int], impl: str
) -> torch.Tensor:
    if impl == "triton":
        from circuitcore.kernels.random_masks.gpu import launch_masks

        return launch_masks(counts, sizes, words)
    first, device = starts(sizes), counts.device
    out = torch.zeros(first[-1], dtype=torch.uint8, device=device)
    for k, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        kept = random_mask_reference(size, count, words[2 * k : 2 * k + 2], device)
        out[first[k] : first[k] + size] = kept
    return out


@_random_masks.register_fake
def _(counts: torch.Tensor, sizes: list[int], words: list[int], impl: str) -> torch.Tensor:
    return counts.new_empty(starts(sizes)[-1], dtype=torch.uint8)

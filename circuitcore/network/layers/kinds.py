"""What a kind of layer says of itself, once: how it runs, its costs, what it leaves constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from circuitcore.network.graph import Step

Run = Callable[[Step, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(step, values [N, ...], its fixed tensors) -> value [N, ...].

Every image on its own, differentiable by autograd, and nothing given is written to.
"""

Reach = Literal["own", "pairs", "cat", "pick", "flatten", "whole"]
"""Which channels (axis 1) of its inputs one channel of a layer's output depends on.

``own``: that channel alone, of one input; fixed tensors, if any, are [channels].  ``pairs``: that
channel of every input.  ``cat``: inputs are laid one behind the other.  ``pick``: one channel, that
`run` copies.  ``flatten``: a channel's positions become channels.  ``whole``: any of them; what is
pruned away is filled in again, so that nothing has to be known of the layer.
"""


@dataclass(frozen=True)
class Layer:
    """One kind of step that has no weights to mask.

    ``reach`` is all that compaction asks; ``kernels``: launches a run takes on a GPU; ``absorbs``:
    whether an input whose channel is 0 everywhere makes that channel 0 (products).
    """

    run: Run
    reach: Reach
    kernels: int = 1
    absorbs: bool = False

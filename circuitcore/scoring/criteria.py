"""What a criterion makes scores of: inputs and gradients of every layer, by ``--criterion``.

``actgrad``, ``snip``, ``weight-magnitude`` and ``random`` take x and g of the scoring images.

``lrp`` is layer-wise relevance propagation: see `scoring.relevance`.
``ensemble`` takes what each of its members does: see `scoring.ensemble`.

``ig``, integrated gradients (Sundararajan, Taly & Yan 2017), takes them along the straight path of
the network's *input* from the baseline x0 to the image.  The baseline is 0 in normalised space: the
mean image, each channel at its mean.  For image n a weight w has at a position

    integral over u in [0, 1] of |a g| du,  a = w x(u),  g = dz_c / d(pre-activation)(u),

x(u) and g(u) the layer's own input and gradient where the network is given x0 + u (x_n - x0); by
the midpoint rule, u = (s + 1/2) / steps.  The absolute value stands where ``--magnitude`` puts it,
at each point of the path as at each image: ``set`` and ``signed`` are w times the path's mean of
dz/dw.  So it is activation times gradient of N steps images, all of one weight, with all of its
factors and kernels.  The integral is of a g, not of g da (conductance): only the input's own
integrated gradients add up to z(x) - z(x0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from circuitcore.network.forward import Override, target_row
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.scoring.ensemble import RANKED_BYTES
from circuitcore.scoring.relevance import check_rules, relevances
from circuitcore.scoring.scores import Contribution, contributions_to

MANY = 10_000_000  # units of a stage whose ranks by several criteria take long


def scored_by(
    network: Network, images: Tensor, unit: int, options: Options
) -> dict[str, Contribution]:
    """What the criterion's scores of every layer are made of, for the raw logit of ``unit``.

    ``images`` float [N, channels, height, width], the scoring set of the category.  Cost:
    `Options.scoring_passes` forward and backward passes of them, inputs and gradients kept.
    """
    return scored_to(network, images, target_row(network, unit), options)


def scored_to(
    network: Network, images: Tensor, target: Override, options: Options
) -> dict[str, Contribution]:
    """`scored_by` for the one row of the last layer that is ``target``."""
    if options.criterion == "lrp":
        return relevances(network, images, target)
    if options.criterion == "ensemble":
        found = contributions_to(network, images, target)
        others = {
            member: scored_to(network, images, target, options.member(member))
            for member in options.members()
            if member in ("ig", "lrp")
        }
        return {
            name: replace(each, members={member: own[name] for member, own in others.items()})
            for name, each in found.items()
        }
    if options.criterion != "ig":
        return contributions_to(network, images, target)
    found = contributions_to(network, path_images(images, options.steps), target)
    return {name: replace(each, per_image=options.steps) for name, each in found.items()}


def check_criterion(
    network: Network, options: Options, note: Callable[[str], None] = lambda message: None
) -> None:
    """Raises UsageError where the criterion is not defined for a layer of this network.

    ``note`` is told where a category's ranks take minutes.
    """
    if "lrp" in options.criteria():
        check_rules(network)
    units = max(network.relevant(stage) for stage in network.stages)
    if options.criterion == "ensemble" and units >= MANY:
        note(
            f"--criterion ensemble sorts up to {units / 1e6:,.0f} million scores "
            f"{1 + len(options.members())} times a category, in "
            f"{units * RANKED_BYTES / 1e9:,.1f} GB: minutes on a CPU"
        )


def path_images(images: Tensor, steps: int) -> Tensor:
    """Midpoints of the path from the mean image to each image, [N * steps, ...], image by image."""
    at = (torch.arange(steps, device=images.device, dtype=images.dtype) + 0.5) / steps
    return (images[:, None] * at.view(-1, *[1] * (images.dim() - 1))).flatten(0, 1)

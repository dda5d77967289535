"""Scores: each weight's estimated contribution to the target unit (Weight scoring).

For image n the contribution of a weight at a position is its activation a = w x times the gradient
g = dz_c / d(pre-activation); Andrade & Konkle (2025) average it over the scoring images.  One
forward and one backward pass of the unpruned network give x and g of every layer; the scores of a
Linear layer stay factored (they are recomputed wherever they are read), those of convolutions and
of coarser units are small and written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.kernels.levels.layer import LayerScores, raw_scores
from circuitcore.kernels.levels.operation import NotFinite, normalised_by
from circuitcore.kernels.score_conv.operation import score_conv
from circuitcore.kernels.score_linear.factors import linear_factors
from circuitcore.network.forward import Override, forward, target_row
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.scoring.seeds import layer_seed


@dataclass(frozen=True)
class Contribution:
    """What a layer's scores are made of, for one target unit.

    ``weight``: the relevant weights; ``x``: the layer's input [N, ...]; ``g``: dz_c/d(output),
    [N, ...], of N scoring images, or of ``per_image`` rows for each of them, image by image.
    ``sign`` [O], of relevance in a convolution: a product w x counts where it has this sign (plus
    if None).  ``members``: what other criteria of an ensemble are made of, by name.
    """

    weight: Tensor
    x: Tensor
    g: Tensor
    per_image: int = 1
    sign: Tensor | None = None
    members: Mapping[str, Contribution] = field(default_factory=dict)

    def of(self, images: Tensor) -> Contribution:
        """That of some of the images, int64 [n]."""
        within = torch.arange(self.per_image, device=images.device)
        rows = (images[:, None] * self.per_image + within).flatten()
        members = {name: each.of(images) for name, each in self.members.items()}
        return replace(self, x=self.x[rows], g=self.g[rows], members=members)


@dataclass(frozen=True)
class UnitScores:
    """Scores of one layer's units, from finest to coarsest granularity.

    ``layer``: raw scores with normalisation; ``shape``: the relevant weights' shape, whose leading
    ``unit_shape`` counts the units (all of it at weight granularity).
    """

    layer: LayerScores
    shape: tuple[int, ...]
    unit_shape: tuple[int, ...]

    @property
    def per_unit(self) -> int:
        """Weights a unit holds: 1 at weight granularity."""
        return math.prod(self.shape) // math.prod(self.unit_shape)


def contributions(network: Network, images: Tensor, unit: int) -> dict[str, Contribution]:
    """Inputs and gradients of every layer for the raw logit z_c of unit ``unit``.

    ``images`` float [N, channels, height, width], the scoring set of the category.
    """
    return contributions_to(network, images, target_row(network, unit))


def contributions_to(network: Network, images: Tensor, target: Override) -> dict[str, Contribution]:
    """`contributions` to the one row of the last layer that is ``target``."""
    result = [network.result]
    record: dict[str, tuple[Tensor, Tensor]] = {}
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logit = forward(network, {"input": leaf}, result, override=target, record=record)[0]
        names = [name for name in network.layers() if name in record]
        gradients = torch.autograd.grad(logit.sum(), [record[name][1] for name in names])
    return {
        name: Contribution(
            target.weights.get(name, network.weights[name]), record[name][0].detach(), gradient
        )
        for name, gradient in zip(names, gradients, strict=True)
    }


def layer_scores(
    network: Network, name: str, contribution: Contribution, unit: int, options: Options
) -> UnitScores:
    """Raw scores of one layer's units with the stage's normalisation.

    The units are single weights, kernels (the taps of one 2-D filter plane; in a Linear layer a
    single weight), or filters (all weights into one channel or unit; in the last layer, whose
    only relevant row is the target itself, single weights).  Raises InputError naming the layer
    where a score is NaN or infinite.
    """
    conv = network.step(name).op == "conv"
    weight = contribution.weight
    shape = tuple(weight.shape)
    granularity = options.granularity
    if (not conv and granularity == "kernel") or (name == network.last and granularity == "filter"):
        granularity = "weight"
    unit_dims = {"weight": len(shape), "kernel": 2, "filter": 1}[granularity]
    per_unit = math.prod(shape[unit_dims:])
    if options.criterion in ("actgrad", "ig") or (options.criterion == "lrp" and not conv):
        make: Callable[..., LayerScores] = _conv_actgrad if conv else _linear_actgrad
        layer = make(network, name, contribution, granularity, options)
    else:
        values = _other_criterion(network, name, contribution, unit, options)
        values = values.flatten(unit_dims).sum(-1) if per_unit > 1 else values
        layer = LayerScores(_tie_weights(weight, unit_dims, per_unit), values=values)
    return UnitScores(_normalise(layer, network, name, options), shape, shape[:unit_dims])


def positive_parts(weight: Tensor, x: Tensor, sign: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """(weight, input) whose products, added, are the positive ones of ``weight`` and ``x``.

    ``sign``: of what each output channel is multiplied by, [O].  Negative inputs make a second
    pair, which is not there without them.
    """
    own = weight if sign is None else weight * sign.view(-1, *[1] * (weight.dim() - 1))
    parts = [(own.relu(), x.relu())]
    if bool((x.detach() < 0).any()):
        parts.append((-(-own).relu(), -(-x).relu()))
    return parts


def _tie_weights(weight: Tensor, unit_dims: int, per_unit: int) -> Tensor:
    """What breaks ties: |w| of a weight, its sum over a coarser unit's weights."""
    return weight if per_unit == 1 else weight.abs().flatten(unit_dims).sum(-1)


def _linear_actgrad(
    network: Network, name: str, c: Contribution, granularity: str, options: Options
) -> LayerScores:
    if granularity == "filter":  # the row's activation before its bias, times the gradient
        product = (c.x @ c.weight.T) * c.g
        if options.magnitude in ("position", "image"):
            product = product.abs()
        row = product.mean(0)
        row = row.abs() if options.magnitude == "set" else row
        return LayerScores(_tie_weights(c.weight, 1, c.weight.shape[1]), values=row)
    left, right, form = linear_factors(c.x, c.g, options.magnitude)
    return LayerScores(c.weight, left=left, right=right, form=form)


def _conv_actgrad(
    network: Network, name: str, c: Contribution, granularity: str, options: Options
) -> LayerScores:
    values = score_conv(
        c.weight,
        c.x,
        c.g,
        **network.step(name).settings,
        magnitude=options.magnitude,
        granularity=granularity,
        spatial=options.spatial,
        impl=options.impl,
    )
    per_unit = c.weight.numel() // values.numel()
    return LayerScores(_tie_weights(c.weight, values.dim(), per_unit), values=values)


def _other_criterion(
    network: Network, name: str, c: Contribution, unit: int, options: Options
) -> Tensor:
    """Per weight: SNIP |w dz/dw| (mean over images before abs), |w|, uniform noise, or a
    convolution's relevance."""
    if options.criterion == "weight-magnitude":
        return c.weight.abs()
    if options.criterion == "random":
        layer = network.weighted().index(name)
        generator = torch.Generator().manual_seed(layer_seed(options.seed, unit, layer))
        return torch.rand(c.weight.shape, generator=generator).to(c.weight.device)
    if network.step(name).op == "linear":
        left, right, form = linear_factors(c.x, c.g, "set")
        scores = LayerScores(c.weight, left=left, right=right, form=form)
        return raw_scores(scores).view(c.weight.shape)
    settings = network.step(name).settings
    if options.criterion == "snip":
        return score_conv(c.weight, c.x, c.g, **settings, magnitude="set", impl=options.impl)
    parts = positive_parts(c.weight, c.x, c.sign)  # of a weight all but one are 0
    return torch.stack([
        score_conv(w, x, c.g, **settings, magnitude=options.magnitude, spatial=options.spatial,
                   impl=options.impl) for w, x in parts
    ]).sum(0)  # fmt: skip


def _normalise(layer: LayerScores, network: Network, name: str, options: Options) -> LayerScores:
    """Per-layer min-max to [0, 1] for fc and nothing for conv (the paper), or as asked for.

    A stage of layers of the classifier or head alone is such as fc; any other is as conv: its
    layers' scores are estimates of one thing, in one unit.
    """
    how = options.normalise
    if how == "paper":
        (stage,) = (names for names in network.stages.values() if name in names)
        how = "minmax" if network.head.issuperset(stage) else "none"
    try:
        return normalised_by(layer, how, impl=options.impl)
    except NotFinite:
        raise overflow(name) from None


def overflow(name: str) -> InputError:
    """What a layer whose scores are not finite is refused with."""
    return InputError(
        f"layer {name!r}: its scores are NaN or infinite; the network's activations or "
        "gradients overflow on the scoring images"
    )

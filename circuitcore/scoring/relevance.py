"""Layer-wise relevance propagation (Bach et al. 2015): what every weight passes on of the logit.

The relevance of the result is the raw logit z_c.  Every step passes its output's relevance R on to
its inputs, in proportion to what they contributed to it:

    Linear    epsilon-rule   w x / (y + e sign y), e = 0.01 x root mean square of y over the image's
              units: what the bias and e have of the sum is lost
    Conv2d    z+ rule        (w x)+ / sum of (w x)+, positive products alone (of positive inputs
              with positive weights, of negative with negative ones); nothing is lost but where no
              product is positive
    batch norm   behind a layer that nothing else reads: one layer with it, whose weights are scaled
              (of the z+ rule only the scale's sign is left); elsewhere scaling by the epsilon-rule
    activations with f(0) = 0   all of it is passed on
    pooling, sums, parts, other arrangements   each summand by its share, a maximum to the largest

(Montavon et al. 2019, "Layer-wise relevance propagation: an overview").  y is the layer's output
with its bias.  A weight's relevance is its share of the relevance that flows through it: for image
n at a position |share R|, summed as ``--magnitude`` says.

Relevance is everywhere a value times a factor, R = y c, and all but three rules above are the
gradient's for c: so one backward pass of a network with other derivatives gives all of it, with
g = R / (what R is divided by) at each layer, and a Linear's scores are |w x g|, factors of rank N,
a convolution's two weight gradients.  Anything else, such as products of values (gates, attention),
layer and group norms, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.errors import UsageError
from circuitcore.network.forward import Override
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers.table import apply_step
from circuitcore.scoring.scores import Contribution, positive_parts

EPSILON = 0.01
ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "silu", "gelu", "mish",
    "hardswish", "tanh", "softsign",
}  # fmt: skip
SHARED = {  # linear in their inputs, or a choice among them: shares are the gradient's
    "add", "subtract", "cat", "joined", "channels", "indexed", "indexed_places", "flatten",
    "arranged", "shuffled", "reshaped", "reshaped_places", "permuted", "permuted_places", "flipped",
    "rolled", "pixel_shuffle", "pixel_unshuffle", "mean", "maxpool", "avgpool", "adaptive_avgpool",
    "adaptive_maxpool", "at_least", "pad", "pad_channels", "pad_same", "filter",
}  # fmt: skip
REDUCED = ("mean", "sum", "amax")


def check_rules(network: Network) -> None:
    """Raises UsageError naming the first layer, and its operation, that has no rule."""
    for step in needed_steps(network.steps, {network.result}):
        known = step.op in {"conv", "linear", "batchnorm", *ACTIVATIONS, *SHARED}
        if not known and not (step.op == "reduced" and step.settings["how"] in REDUCED):
            raise UsageError(
                f"--criterion lrp: no rule passes relevance through {step.name!r} ({step.op}); "
                "networks of convolutions, linear layers, batch norms, activations, pooling and "
                "sums have one: take --criterion actgrad or ig"
            )


def relevances(network: Network, images: Tensor, target: Override) -> dict[str, Contribution]:
    """Every layer's x and g for one row of the last layer, ``target``: relevance is w x g.

    ``images`` float [N, channels, height, width].  Convolutions: of positive products alone, see
    `Contribution.sign`.  Raises UsageError where a layer has no rule.  Cost: one forward and one
    backward pass, two of convolutions whose inputs are not all positive.
    """
    check_rules(network)
    network = target.normed(network)
    steps = needed_steps(network.steps, {network.result})
    norms = _folded(network, steps)
    values: dict[str, Tensor] = {"input": images.detach().requires_grad_()}
    made: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    with torch.enable_grad():
        for step in steps:
            inputs = [values[name] for name in step.inputs]
            if step.op in ("conv", "linear"):
                y, weight = _plain(network, step, inputs[0], target)
                norm = norms.get(step.name)
                scale = None if norm is None else _scale(network, norm)
                y = y if norm is None else apply_step(network, norm, [y])
                values[step.name], through = _weighted(step, inputs[0], weight, y, scale)
                sign = scale.sign() if scale is not None and step.op == "conv" else None
                made[step.name] = inputs[0], through, sign
            elif step in norms.values():
                values[step.name] = inputs[0]  # the layer before it has its output already
            else:
                values[step.name] = _passed(network, step, inputs)
        names = [name for name in network.layers() if name in made]
        sums = [made[name][1] for name in names]
        gradients = torch.autograd.grad(values[network.result].sum(), sums)
    weights = {**network.weights, **target.weights}
    return {
        name: Contribution(weights[name], made[name][0].detach(), g, sign=made[name][2])
        for name, g in zip(names, gradients, strict=True)
    }


def _folded(network: Network, steps: list[Step]) -> Mapping[str, Step]:
    """Batch norms by the layer before, where that is read by them alone."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    layers = {step.name for step in steps if step.op in ("conv", "linear")}
    return {
        name: read[0]
        for name, read in readers.items()
        if name in layers and len(read) == 1 and read[0].op == "batchnorm"
    }


def _scale(network: Network, norm: Step) -> Tensor:
    """What a batch norm multiplies each channel by, [channels]."""
    _, variance, scale, _ = network.fixed[norm.name]
    return scale / (variance + norm.settings["eps"]).sqrt()


def _plain(network: Network, step: Step, x: Tensor, target: Override) -> tuple[Tensor, Tensor]:
    """A layer's output, which nothing is derived from, and its weights."""
    weight = target.weights.get(step.name, network.weights[step.name])
    bias = target.biases.get(step.name, network.biases.get(step.name))
    x = x.detach()
    if step.op == "linear":
        return F.linear(x, weight, bias), weight
    return F.conv2d(x, weight, bias, **step.settings), weight


def _weighted(
    step: Step, x: Tensor, weight: Tensor, y: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A layer's value ``y`` with the derivatives of its rule, and the sum that R is derived to."""
    if step.op == "linear":
        through = F.linear(x, weight)
        scaled = through if scale is None else through * scale
        return _with_value(scaled * _of(y, _stabilised(y)), y), through
    sign = None if scale is None else scale.sign()
    through = sum(
        F.conv2d(part, own, **step.settings) for own, part in positive_parts(weight, x, sign)
    )  # type: ignore[assignment]
    return _with_value(through * _of(y, through.detach()), y), through


def _passed(network: Network, step: Step, inputs: list[Tensor]) -> Tensor:
    """A step without weights to mask."""
    if step.op == "batchnorm":  # on its own: the products with its scale, by the epsilon-rule
        y = apply_step(network, step, inputs).detach()
        scale = _scale(network, step).view(-1, *[1] * (y.dim() - 2))
        return _with_value(inputs[0] * scale * _of(y, _stabilised(y)), y)
    if step.op in ACTIVATIONS and step.op != "relu":  # whose derivative does that already
        x, y = inputs[0], apply_step(network, step, inputs).detach()
        return _with_value(x * _of(y, x.detach()), y)
    return apply_step(network, step, inputs)


def _with_value(derived: Tensor, y: Tensor) -> Tensor:
    """``y`` with the derivatives of another value."""
    return derived + (y - derived).detach()


def _of(y: Tensor, whole: Tensor) -> Tensor:
    """y / whole, 0 where there is nothing to divide by."""
    return torch.where(whole == 0, torch.zeros_like(y), y / whole)


def _stabilised(y: Tensor) -> Tensor:
    """y + e sign y."""
    e = EPSILON * y.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (y.dim() - 1))
    return y + torch.where(y < 0, -e, e)

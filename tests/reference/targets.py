"""Circuits of units, channels and directions in float64, as plainly as `method` has categories'.

Nothing here comes from circuitcore.  Networks are AlexNet-shaped modules, as `method` says.  A
target is a module's dotted name ``end`` (a Conv2d or Linear, or the ReLU behind one), and a unit or
a direction over its channels; the modules behind ``end`` are not run.
"""

from dataclasses import dataclass

import method
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import nn


@dataclass
class Aim:
    """``unit`` or ``direction`` float64 [channels] of what module ``end`` gives, over positions."""

    end: str
    unit: int | None = None
    direction: torch.Tensor | None = None
    pool: str = "max"


def modules(network, end):
    """(name, module) of what leads to ``end``, in order; between the two parts it is flattened."""
    for part in ("features", "classifier"):
        for name, module in network.get_submodule(part).named_children():
            yield f"{part}.{name}", module
            if f"{part}.{name}" == end:
                return


def layers(network, aim):
    """Names of the Conv2d and Linear layers that lead to the target."""
    return [n for n, m in modules(network, aim.end) if isinstance(m, nn.Conv2d | nn.Linear)]


def relevant(network, aim, layer):
    """The weights of a layer that can reach the target: a unit's own row of the last layer."""
    weight = network.get_submodule(layer).weight.detach()
    own = aim.unit is not None and layer == layers(network, aim)[-1]
    return weight[aim.unit : aim.unit + 1] if own else weight


def values(network, x, aim, masks=None, record=None, means=None):
    """The target's value on each image: [N].  Weights that ``masks[layer]`` drops are 0.

    With ``means[layer]`` [in * taps] they multiply these instead of what they read.
    """
    last, flat = layers(network, aim)[-1], False
    for name, module in modules(network, aim.end):
        if name.startswith("classifier") and not flat:
            x, flat = torch.flatten(x, 1), True
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight, bias = relevant(network, aim, name), module.bias
            if name == last and aim.unit is not None:
                bias = bias[aim.unit : aim.unit + 1]
            if masks is not None and name in masks:
                if means is not None:
                    bias = bias + torch.where(masks[name], 0.0, weight).flatten(1) @ means[name]
                weight = torch.where(masks[name], weight, 0.0)
            source = x
            if isinstance(module, nn.Conv2d):
                x = F.conv2d(x, weight, bias, module.stride, module.padding)
            else:
                x = F.linear(x, weight, bias)
            if record is not None:
                record[name] = (source, x)
        elif isinstance(module, nn.ReLU):
            x = torch.relu(x)
        elif not isinstance(module, nn.Dropout):
            x = module(x)
    x = x[:, 0] if aim.unit is not None else torch.einsum("nc...,c->n...", x, aim.direction)
    if x.dim() == 1:
        return x
    if aim.pool == "centre":
        return x[:, x.shape[1] // 2, x.shape[2] // 2]
    return x.amax((1, 2)) if aim.pool == "max" else x.mean((1, 2))


def mean_inputs(network, images, aim):
    """By layer the mean input [in * taps], over images and positions, padding counted."""
    record, means = {}, {}
    with torch.no_grad():
        values(network, images, aim, record=record)
        for name, (x, _) in record.items():
            module = network.get_submodule(name)
            if isinstance(module, nn.Conv2d):
                x = F.unfold(x, module.kernel_size, 1, module.padding, module.stride).mean(2)
            means[name] = x.mean(0)
    return means


def most_active(network, pool, aim, count):
    """The ``count`` images of ``pool`` in which the target is the most active, the most first."""
    with torch.no_grad():
        order = values(network, pool, aim).argsort(descending=True, stable=True)
    return pool[order[:count]]


def layer_score(weight, x, gradient, module):
    """Mean over images of sum over positions |a g|, a = w x: shaped like the weight."""
    total = torch.zeros_like(weight)
    for source, g in zip(x, gradient, strict=True):
        if isinstance(module, nn.Linear):
            patches = source[:, None, None]
        else:
            patches = F.unfold(source[None], module.kernel_size, 1, module.padding)
            patches = patches.view(weight.shape[1], -1, patches.shape[-1])
        products = weight.flatten(2)[..., None] if weight.dim() == 4 else weight[..., None, None]
        products = products * patches * g.reshape(len(weight), 1, 1, -1)
        total += products.abs().sum(-1).view(weight.shape) / len(x)
    return total


def score(network, x, aim):
    """Scores of the relevant weights by layer."""
    record = {}
    total = values(network, x.requires_grad_(True), aim, record=record).sum()
    gradients = torch.autograd.grad(total, [out for _, out in record.values()])
    x.requires_grad_(False)
    return {
        layer: layer_score(
            relevant(network, aim, layer), source.detach(), g, network.get_submodule(layer)
        )
        for (layer, (source, _)), g in zip(record.items(), gradients, strict=True)
    }


def masks_at(network, aim, scores, fraction):
    """Masks without the lowest scored ``fraction`` of a stage's weights; of equal ones the smaller,
    then the first.
    """
    keys = np.concatenate([values.reshape(-1).numpy() + 0.0 for values in scores.values()])
    weights = {layer: relevant(network, aim, layer) for layer in scores}
    sizes = np.concatenate([weight.reshape(-1).abs().numpy() for weight in weights.values()])
    order = np.lexsort((np.arange(len(keys)), sizes, keys))
    keep = np.ones(len(keys), bool)
    keep[order[: round(fraction * len(keys))]] = False
    parts = torch.from_numpy(keep).split([weight.numel() for weight in weights.values()])
    pairs = zip(weights.items(), parts, strict=True)
    return {layer: part.view(weight.shape) for (layer, weight), part in pairs}


def agreement(judge, found, unpruned):
    """How well values [N] follow the unpruned network's; None where that is not defined."""
    found, unpruned = found.numpy(), unpruned.numpy()
    if judge == "error":
        lost = ((found - unpruned) ** 2).sum()
        return 1 - lost / ((unpruned - unpruned.mean()) ** 2).sum()
    if np.ptp(found) == 0:
        return None
    return (pearsonr if judge == "correlation" else spearmanr)(found, unpruned).statistic


def extract(network, splits, aim, grid, judge="correlation", threshold=0.9, scoring=4, means=None):
    """Every level of both stages, from dense to sparse, and the circuit before the first crossing.

    ``splits``: images float64 of the scoring ``pool``, of ``extraction`` and ``heldout``.
    """
    images = most_active(network, splits["pool"], aim, scoring)
    scores = score(network, images, aim)
    with torch.no_grad():
        unpruned = {name: values(network, splits[name], aim) for name in ("extraction", "heldout")}
    masks, found = {}, {"images": images, "unpruned": unpruned, "stages": {}}
    for stage, kind in (("fc", nn.Linear), ("conv", nn.Conv2d)):
        own = {n: s for n, s in scores.items() if isinstance(network.get_submodule(n), kind)}
        if not own:
            continue
        own = method.normalise(own, "paper", stage)
        curve = []
        for fraction in grid:
            level = masks_at(network, aim, own, fraction)
            with torch.no_grad():
                at = values(network, splits["extraction"], aim, {**masks, **level}, means=means)
            value = agreement(judge, at, unpruned["extraction"])
            curve.append({"masks": level, "activation": at, "value": value})
        above = [c["value"] is not None and c["value"] >= threshold - method.SLACK for c in curve]
        chosen = max(above.index(False) - 1, 0) if False in above else len(curve) - 1
        masks |= curve[chosen]["masks"]
        found["stages"][stage] = {"curve": curve, "chosen": chosen}
    with torch.no_grad():
        at = values(network, splits["heldout"], aim, masks, means=means)
    return {**found, "masks": masks, "heldout": agreement(judge, at, unpruned["heldout"])}

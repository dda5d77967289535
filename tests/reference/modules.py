"""The method in float64 on any module, by hooks: scores, ranking, levels, judging.

As plainly as `method.py`, which it shares its judging with, but with nothing assumed of how layers
follow one another; and, for networks of many million weights, with the one thing multiplied out
less plainly: the sum over positions of |w x g| is |w| times a weight gradient of |x| and |g|.
Nothing here comes from circuitcore.
"""

from dataclasses import dataclass

import torch
from method import SLACK, csa_at, other_maximum
from torch import nn
from torch.func import functional_call

LAYERS = nn.Conv2d | nn.Linear


def called(module, x):
    """Names of the Conv2d and Linear layers in the order they are called."""
    names, hooks = [], []
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS):
            hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: names.append(name)))
    with torch.no_grad():
        module(x[:1])
    for hook in hooks:
        hook.remove()
    return names


def scores_of(module, x, category, names):
    """Sum over positions of |w x g|, mean over images, by layer; the last layer's row alone."""
    inputs, outputs, hooks = {}, {}, []

    def keep(name):
        def hook(_, given, z):
            inputs[name], outputs[name] = given[0].detach().abs(), z
            return z.clone()  # what follows may work in place

        return hook

    for name in names:
        hooks.append(module.get_submodule(name).register_forward_hook(keep(name)))
    logits = module(x.clone().requires_grad_(True))
    gradients = torch.autograd.grad(logits[:, category].sum(), [outputs[n] for n in names])
    for hook in hooks:
        hook.remove()
    found = {}
    for name, gradient in zip(names, gradients, strict=True):
        layer, a, g = module.get_submodule(name), inputs[name], gradient.abs()
        if isinstance(layer, nn.Linear):
            rows = g.reshape(-1, g.shape[-1]).T @ a.reshape(-1, a.shape[-1])
        else:
            rows = torch.nn.grad.conv2d_weight(
                a, layer.weight.shape, g, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        found[name] = layer.weight.detach().abs() * rows / len(x)
    last = names[-1]
    found[last] = found[last][category : category + 1]
    return found


def order_of(scores, weights, minmax):
    """All weights of a stage from lowest to highest scored, those of score 0 by |w| before."""
    keys = []
    for values in scores.values():
        low, high = values.min(), values.max()
        keys.append(((values - low) / (high - low) if minmax else values).reshape(-1))
    key, size = torch.cat(keys), torch.cat([w.abs().reshape(-1) for w in weights])
    none, some = (key == 0).nonzero()[:, 0], (key != 0).nonzero()[:, 0]
    return torch.cat([none[size[none].argsort(stable=True)], some[key[some].argsort(stable=True)]])


@dataclass
class Level:
    """All masks, target activations [N] and the bracket of hits that their rounding leaves."""

    kept: int
    masks: dict
    activation: torch.Tensor
    low: int
    high: int


def pruned(module, x, category, masks):
    """Target activations [N] of the pruned network."""
    weights = {}
    for name, mask in masks.items():
        weight = module.get_submodule(name).weight.detach()
        whole = torch.ones_like(weight, dtype=torch.bool)
        whole[slice(None) if len(mask) == len(weight) else slice(category, category + 1)] = mask
        weights[f"{name}.weight"] = weight * whole
    with torch.no_grad():
        return functional_call(module, weights, x)[:, category]


def hits_at(activation, margin, is_target, most, slack):
    """Hits under the matched bias where every step is ``slack`` lower for targets than it is."""
    steps = margin - activation
    others = steps[~is_target].sort().values
    limit = others[most] if most < len(others) else torch.inf
    return int((steps[is_target] < limit + slack).sum())


def sweep(module, splits, category, head, grid, threshold, rounding, follow):
    """Levels and chosen one by stage, the circuit's masks, the unpruned activation's spread.

    ``head``: how many of the layers, in the order they are called, are the stage fc.
    ``follow(stage, t, masks)`` gives the masks to go on with at level t.
    ``rounding``: how far float32 may move an activation, of the unpruned one's spread.
    """
    images, labels = splits["extraction"]
    names = called(module, images)
    stages = {"fc": names[-head:], "conv": names[:-head]}
    scores = scores_of(module, splits["scoring"], category, names)
    with torch.no_grad():
        logits = module(images)
    margin, is_target = other_maximum(logits, category), labels == category
    own = logits[:, category]
    spread = float(own.std())
    unpruned = csa_at(own, margin, is_target, 0.0)
    most, targets = unpruned.false_alarms, unpruned.targets
    least = threshold * hits_at(own, margin, is_target, most, 0.0) / targets
    fixed, found = {}, {}
    for stage, layers in stages.items():
        mine = {name: scores[name] for name in layers}
        weights = [module.get_submodule(name).weight.detach() for name in layers]
        if layers[-1] == names[-1]:
            weights[-1] = weights[-1][category : category + 1]
        order = order_of(mine, weights, minmax=stage == "fc")
        curve = []
        for t, fraction in enumerate(grid):
            gone = round(fraction * len(order))
            keep = torch.ones(len(order), dtype=torch.bool)
            keep[order[:gone]] = False
            parts = keep.split([values.numel() for values in mine.values()])
            masks = {n: p.view(mine[n].shape) for n, p in zip(layers, parts, strict=True)}
            masks = {**fixed, **follow(stage, t, masks)}
            activation = pruned(module, images, category, masks)
            low, high = (
                hits_at(activation, margin, is_target, most, s * spread * rounding) for s in (-1, 1)
            )
            curve.append(Level(len(order) - gone, masks, activation, low, high))
        chosen = chosen_of([level.low / targets for level in curve], least)
        assert chosen == chosen_of([level.high / targets for level in curve], least)
        fixed |= curve[chosen].masks
        found[stage] = (curve, chosen)
    return found, fixed, spread


def chosen_of(worths, least):
    """The last level before the first below the threshold."""
    above = [value >= least - SLACK for value in worths]
    return max((above.index(False) if False in above else len(above)) - 1, 0)

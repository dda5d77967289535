"""The whole method in float64, one function a step, as plainly as the paper reads.

Andrade & Konkle 2025, "Isolating sparse, category-computing circuits in deep neural networks".
Nothing here comes from circuitcore and nothing is fast: contributions are multiplied out for every
position, weights are sorted, every level is a forward pass.  It serves to hold the product against.

Networks are AlexNet-shaped modules: ``features`` (convolutions), flatten, ``classifier`` (Linear
layers); or sequences that end in a Linear or in a convolution that is pooled.  "Layer" is the
dotted name of a Conv2d or Linear; a mask is True where a weight is kept.
"""

import copy
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SLACK = 1e-9  # thresholds are often met exactly and lost in rounding


# --- images ---------------------------------------------------------------------------------------


def load_images(root, categories, mean, std, scoring=4, extraction=20, heldout=30):
    """Three splits of (images float64 [N, 1, H, W], category index [N]), in order of category.

    Sorted by name, the first of train/ score, the first of val/ choose, the next ones judge.
    """
    splits = {"scoring": ([], []), "extraction": ([], []), "heldout": ([], [])}
    for index, category in enumerate(categories):
        train = sorted((Path(root) / "train" / category).glob("*.png"))
        val = sorted((Path(root) / "val" / category).glob("*.png"))
        for split, files in (
            ("scoring", train[:scoring]),
            ("extraction", val[:extraction]),
            ("heldout", val[extraction : extraction + heldout]),
        ):
            for file in files:
                pixels = torch.from_numpy(np.array(Image.open(file).convert("L"))).double()
                splits[split][0].append((pixels[None] / 255 - mean[0]) / std[0])
                splits[split][1].append(index)
    return {name: (torch.stack(x), torch.tensor(y)) for name, (x, y) in splits.items()}


# --- the network ----------------------------------------------------------------------------------


def double(network):
    """A float64 copy in eval mode."""
    return copy.deepcopy(network).double().eval()


def parts(network):
    """(name, module) of everything that is computed, in order."""
    if not hasattr(network, "features"):
        return list(network.named_children())
    named = {p: network.get_submodule(p).named_children() for p in ("features", "classifier")}
    found = {p: [(f"{p}.{n}", m) for n, m in each] for p, each in named.items()}
    return [*found["features"], ("flatten", nn.Flatten()), *found["classifier"]]


def weighted(network):
    """Names of the Conv2d and Linear layers, in order."""
    return [name for name, module in parts(network) if isinstance(module, nn.Conv2d | nn.Linear)]


def default_stages(network):
    """fc: the Linear layers behind the last convolution, or the 1 x 1 convolutions at the end."""
    names = weighted(network)
    kinds = [network.get_submodule(name) for name in names]
    first = len(names)
    while first and (
        isinstance(kinds[first - 1], nn.Linear)
        or (isinstance(kinds[-1], nn.Conv2d) and kinds[first - 1].kernel_size == (1, 1))
    ):
        first -= 1
    return {"fc": names[first:], "conv": names[:first]}


def layers(network, stage):
    """Names of the layers of a default stage, in module order."""
    return default_stages(network)[stage]


def last_layer(network):
    """Name of the last layer, whose rows are the categories."""
    return weighted(network)[-1]


def relevant(network, layer, category):
    """The weights of a layer that can reach the category's unit: in the last layer its row."""
    weight = network.get_submodule(layer).weight.detach()
    return weight[category : category + 1] if layer == last_layer(network) else weight


def run(network, x, masks=None, category=None, record=None, begin=0, end=None, means=None):
    """Logits [N, K], or the category's [N, 1]; weights that ``masks[layer]`` drops are 0.

    With ``means[layer]`` (`mean_inputs`) they multiply the mean of what they read instead.
    Only parts ``begin`` to ``end`` are run, from the value ``x`` before them.  ``record[layer]``
    receives (input, pre-activation).
    """
    for layer, module in parts(network)[begin:end]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight, bias = module.weight, module.bias
            if category is not None and layer == last_layer(network):
                weight, bias = weight[category : category + 1], bias[category : category + 1]
            if masks is not None and layer in masks:
                if means is not None:
                    carried = torch.where(masks[layer], 0.0, weight).flatten(1) @ means[layer]
                    bias = carried if bias is None else bias + carried
                weight = torch.where(masks[layer], weight, 0.0)
            source = x
            if isinstance(module, nn.Conv2d):
                x = F.conv2d(x, weight, bias, module.stride, module.padding)
            else:
                x = F.linear(x, weight, bias)
            if record is not None:
                record[layer] = (source, x)
        elif isinstance(module, nn.ReLU):
            x = torch.relu(x)
        elif not isinstance(module, nn.Dropout):
            x = module(x)
    return x


def mean_inputs(network, images):
    """By layer the mean input [in * taps], over images and positions, padding counted."""
    record, means = {}, {}
    with torch.no_grad():
        run(network, images, record=record)
        for layer, (x, _) in record.items():
            module = network.get_submodule(layer)
            if isinstance(module, nn.Conv2d):
                x = F.unfold(x, module.kernel_size, 1, module.padding, module.stride)
                x = x.mean(2)  # [N, in * taps]
            means[layer] = x.mean(0)
    return means


# --- weight scoring -------------------------------------------------------------------------------


def contributions(weight, x, gradient, module):
    """Yield, for every image and output unit, its a*g: [inputs, taps, positions].

    a = w_k x at every position p, g = the gradient at the pre-activation there.
    """
    for n in range(len(x)):
        if isinstance(module, nn.Linear):
            values = x[n][:, None, None]
        else:
            patches = F.unfold(x[n : n + 1], module.kernel_size, 1, module.padding, module.stride)
            values = patches.reshape(weight.shape[1], -1, patches.shape[-1])
        for unit in range(weight.shape[0]):
            w = weight[unit].reshape(*values.shape[:2], 1)
            g = gradient[n, unit].reshape(1, 1, -1)
            yield n, unit, w * values * g


def combine(total, magnitude, part, images):
    """Add one image's a*g [..., positions] to a running score, the abs where it belongs."""
    if magnitude == "position":
        return total + part.abs().sum(-1) / images
    if magnitude == "image":
        return total + part.sum(-1).abs() / images
    return total + part.sum(-1) / images


def layer_scores(weight, x, gradient, module, magnitude, granularity, spatial):
    """Scores of one layer: [O, I, taps] (weight), [O, I] (kernel) or [O] (filter), float64."""
    units, inputs = weight.shape[0], weight.shape[1]
    taps = weight[0, 0].numel()
    shape = {"weight": (units, inputs, taps), "kernel": (units, inputs), "filter": (units,)}
    scores = torch.zeros(shape[granularity], dtype=torch.float64)
    for _, unit, product in contributions(weight, x, gradient, module):
        if granularity == "kernel":
            product = product.sum(1)
        if granularity == "filter":
            product = product.sum((0, 1))
        scores[unit] = combine(scores[unit], magnitude, product, len(x))
    if magnitude == "set":
        scores = scores.abs()
    if spatial == "mean":
        scores = scores / gradient[0, 0].numel()
    return scores


def score(network, x, category, magnitude="position", granularity="weight", spatial="sum"):
    """Scores of all relevant weights by layer, from the scoring images of the category.

    Linear layers have no 2-D kernels: there a kernel is a weight.  In the last layer, whose one row
    is the unit itself, a filter is a weight too.
    """
    record = {}
    logits = run(network, x.requires_grad_(True), record=record)
    outputs = [record[layer][1] for layer in record]
    gradients = torch.autograd.grad(logits[:, category].sum(), outputs)
    x.requires_grad_(False)
    scores = {}
    for layer, gradient in zip(record, gradients, strict=True):
        source = record[layer][0].detach()
        if layer == last_layer(network):
            gradient = gradient[:, category : category + 1]
        last = layer == last_layer(network)
        scores[layer] = layer_scores(
            relevant(network, layer, category),
            source,
            gradient,
            network.get_submodule(layer),
            magnitude,
            "weight" if last and granularity == "filter" else granularity,
            spatial,
        )
    return scores


def rounding(network, x, category):
    """How far rounding may move each score, for an epsilon of 1, by layer: [O, I, taps].

    An activation or gradient is a sum, rounded relative to the largest of its image and layer
    rather than to itself: sum over positions of |w| (max|x| |g| + |x| max|g|).
    """
    record = {}
    logits = run(network, x.requires_grad_(True), record=record)
    gradients = torch.autograd.grad(
        logits[:, category].sum(), [record[layer][1] for layer in record]
    )
    x.requires_grad_(False)
    bounds = {}
    for layer, g in zip(record, gradients, strict=True):
        weight, module = relevant(network, layer, category), network.get_submodule(layer)
        source = record[layer][0].detach()
        if layer == last_layer(network):
            g = g[:, category : category + 1]
        highest = [
            v.abs().flatten(1).max(1).values.view(-1, *[1] * (v.dim() - 1)).expand_as(v)
            for v in (source, g)
        ]
        bounds[layer] = sum(
            layer_scores(weight, a, b, module, "position", "weight", "sum")
            for a, b in ((highest[0], g), (source, highest[1]))
        )
    return bounds


def normalised(scores, how):
    """Scores of one layer, brought to a common scale."""
    if how == "minmax":
        low, high = scores.min(), scores.max()
        return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
    if how == "l1":
        return scores / scores.abs().sum()
    return scores


def normalise(scores, rule, stage):
    """Normalised scores by layer; the paper: min-max for the stage fc only."""
    if rule == "paper":
        rule = "minmax" if stage == "fc" else "none"
    return {layer: normalised(values, rule) for layer, values in scores.items()}


# --- levels ---------------------------------------------------------------------------------------


def geometric_grid(count=32, sparsest=0.001):
    """Pruned fractions, geometric in the kept fraction from 1 to ``sparsest``."""
    return [1 - sparsest ** (i / (count - 1)) for i in range(count)]


@dataclass
class Ranking:
    """All units (weights, kernels or filters) of a stage from lowest to highest scored."""

    layers: list  # names, in module order
    shapes: list  # of the relevant weights
    order: np.ndarray  # unit numbers, lowest first
    keys: np.ndarray  # normalised score of each unit
    sizes: np.ndarray  # weights of each unit
    reached: np.ndarray  # weights in the first 0, 1, 2, ... units of the order
    first: list  # first unit number of each layer


def rank(network, category, scores):
    """Rank jointly: by normalised score, then summed |w|, then module order, then row-major."""
    keys, ties, sizes, first, shapes = [], [], [], [], []
    count = 0
    for layer, values in scores.items():
        weight = relevant(network, layer, category)
        units = values.numel()
        per_unit = weight.numel() // units
        keys.append(values.reshape(-1).numpy() + 0.0)
        ties.append(weight.reshape(units, per_unit).abs().sum(1).numpy())
        sizes.append(np.full(units, per_unit))
        first.append(count)
        shapes.append(tuple(weight.shape))
        count += units
    keys, ties, sizes = np.concatenate(keys), np.concatenate(ties), np.concatenate(sizes)
    order = np.lexsort((np.arange(count), ties, keys))
    reached = np.concatenate([[0], np.cumsum(sizes[order])])
    return Ranking(list(scores), shapes, order, keys, sizes, reached, first)


def pruned_units(ranking, fraction, ties="weight"):
    """How many units a level prunes: the number of weights nearest to round(fraction * weights)."""
    target = round(fraction * int(ranking.reached[-1]))
    units = int(np.argmin(np.abs(ranking.reached - target)))
    if ties == "snap" and units > 0:
        threshold = ranking.keys[ranking.order[units - 1]]
        units = int((ranking.keys <= threshold).sum())
    return units


def masks_of(ranking, units):
    """Masks by layer with the ``units`` lowest-ranked units dropped."""
    keep = np.ones(len(ranking.order), dtype=bool)
    keep[ranking.order[:units]] = False
    masks = {}
    ends = [*ranking.first[1:], len(keep)]
    for layer, shape, begin, end in zip(
        ranking.layers, ranking.shapes, ranking.first, ends, strict=True
    ):
        whole = np.repeat(keep[begin:end], ranking.sizes[begin:end])
        masks[layer] = torch.from_numpy(whole.reshape(shape))
    return masks


# --- circuit substitution accuracy ----------------------------------------------------------------


def other_maximum(logits, category):
    """m_n: the highest logit of any other category, unpruned."""
    rest = logits.clone()
    rest[:, category] = -torch.inf
    return rest.max(1).values


@dataclass
class Outcome:
    """Counts and CSA at one bias; ``intervals`` are all maximising (lo, hi], if it was sought."""

    hits: int
    false_alarms: int
    targets: int
    others: int
    csa: float
    bias: float
    intervals: list


def csa_fraction(hits, false_alarms, targets, others, norm):
    """Hit rate minus false alarms over the norm, as an exact fraction."""
    if norm == "target":
        below = targets
    elif norm == "other":
        below = others
    else:
        below = hits + false_alarms
    corrected = Fraction(false_alarms, below) if below else Fraction(0)
    return Fraction(hits, targets) - corrected


def csa_at(activation, margin, is_target, bias, norm="target"):
    """CSA where the category is predicted iff activation + bias exceeds the others' maximum."""
    predicted = bias > margin - activation
    hits = int((predicted & is_target).sum())
    false_alarms = int((predicted & ~is_target).sum())
    targets, others = int(is_target.sum()), int((~is_target).sum())
    value = csa_fraction(hits, false_alarms, targets, others, norm)
    return Outcome(hits, false_alarms, targets, others, float(value), float(bias), [])


def best_bias(activation, margin, is_target, norm="target", most=None):
    """The bias of highest CSA nearest to 0, by trying every interval between steps.

    ``most``: of those with no more false alarms than these, the bias of most hits (matched).
    """
    steps = margin - activation
    edges = [-np.inf, *sorted(set(steps.tolist())), np.inf]
    targets, others = int(is_target.sum()), int((~is_target).sum())
    best, intervals = None, []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        predicted = steps <= low  # b > step for every b in (low, high]
        hits = int((predicted & is_target).sum())
        false_alarms = int(predicted.sum()) - hits
        value = csa_fraction(hits, false_alarms, targets, others, norm)
        if most is not None:
            value = hits if false_alarms <= most else -1
        if best is None or value > best:
            best, intervals = value, []
        if value == best:
            intervals.append((low, high))
    if best <= 0:  # no image is said to be the category
        bias = min(0.0, edges[1])
    elif any(low < 0 <= high for low, high in intervals):
        bias = 0.0
    else:
        low, high = min(intervals, key=lambda i: max(i[0], -i[1]))
        bias = low + 1 if high == np.inf else (low + high) / 2
    outcome = csa_at(activation, margin, is_target, bias, norm)
    outcome.intervals = intervals
    return outcome


def fitted(activation, margin, is_target, norm, bias, most):
    """The outcome at the best bias; at 0 with ``bias="none"``; matched: see `best_bias`."""
    if bias == "none":
        return csa_at(activation, margin, is_target, 0.0, norm)
    return best_bias(activation, margin, is_target, norm, most if bias == "matched" else None)


def worth(outcome, bias):
    """What a level is judged by: hits under a matched bias, else CSA."""
    return outcome.hits / outcome.targets if bias == "matched" else outcome.csa


# --- circuit extraction ---------------------------------------------------------------------------


def activations(network, x, category, masks, begin=0, means=None):
    """Target activations [N] of the pruned network."""
    with torch.no_grad():
        return run(network, x, masks, category, begin=begin, means=means)[:, 0]


def sweep_stage(network, category, x, margin, is_target, ranking, grid, fixed, options):
    """Outcome, masks and activations at every level of a stage, from dense to sparse.

    ``fixed`` are the masks of the stages before.  What precedes all masked layers is the same at
    every level and computed once.  The first-crossing rule looks no further than
    the first level below the threshold; ``options["whole"]`` goes on all the same.
    """
    names = [name for name, _ in parts(network)]
    begin = min(names.index(layer) for layer in [*ranking.layers, *fixed])
    with torch.no_grad():
        x = run(network, x, end=begin)
    curve = []
    for fraction in grid:
        units = pruned_units(ranking, fraction, options.get("ties", "weight"))
        masks = masks_of(ranking, units)
        kept, means = {**fixed, **masks}, options["means"]
        activation = activations(network, x, category, kept, begin, means)
        norm, bias, most = options["norm"], options["bias"], options["most"]
        outcome = fitted(activation, margin, is_target, norm, bias, most)
        curve.append({"masks": masks, "units": units, "activation": activation, "at": outcome})
        crossed = worth(outcome, bias) < options["least"] - SLACK
        if options["stop"] == "first-crossing" and crossed and not options["whole"]:
            break
    return curve


def choose(curve, stop, least, bias):
    """The level taken: the last before it first drops below, or the sparsest still above."""
    above = [worth(level["at"], bias) >= least - SLACK for level in curve]
    if stop == "first-crossing":
        return max((above.index(False) if False in above else len(above)) - 1, 0)
    return max((i for i, yes in enumerate(above) if yes), default=0)


def extract(network, splits, category, **changes):
    """The whole method for one category; None as ``masks`` where its reference is <= 0."""
    options = {
        "magnitude": "position",
        "granularity": "weight",
        "spatial": "sum",
        "normalise": "paper",
        "ties": "weight",
        "stages": default_stages(network),  # names of layers by name of the stage, in order
        "skip": (),  # layers left whole
        "fc": geometric_grid(),
        "conv": geometric_grid(),
        "norm": "other",
        "bias": "matched",
        "stop": "first-crossing",
        "threshold": 0.9,
        "reference": "unpruned-biased",
        "whole": False,
        "scores": None,  # by layer, of another criterion than activation times gradient
        "means": None,  # by layer, what a pruned weight reads; None where it is 0
        **changes,
    }
    images, labels = splits["scoring"]
    scores = options["scores"] or score(
        network,
        images[labels == category],
        category,
        options["magnitude"],
        options["granularity"],
        options["spatial"],
    )
    images, labels = splits["extraction"]
    with torch.no_grad():
        logits = run(network, images)
    margin, is_target = other_maximum(logits, category), labels == category
    unpruned = csa_at(logits[:, category], margin, is_target, 0.0, options["norm"])
    options["most"] = unpruned.false_alarms
    norm, bias = options["norm"], options["bias"]
    biased = fitted(logits[:, category], margin, is_target, norm, bias, options["most"])
    own = biased if options["reference"] == "unpruned-biased" else unpruned
    reference = worth(own, bias) if unpruned.hits else 0
    options["least"] = options["threshold"] * reference
    found = {"scores": scores, "margin": margin, "unpruned": unpruned, "biased": biased}
    if reference <= 0:
        return {**found, "masks": None}

    masks, outcome = {}, None
    for stage, names in options["stages"].items():
        own = {layer: scores[layer] for layer in names if layer not in options["skip"]}
        kind = "fc" if set(own) <= set(layers(network, "fc")) else "conv"
        ranking = rank(network, category, normalise(own, options["normalise"], kind))
        curve = sweep_stage(
            network, category, images, margin, is_target, ranking, options[stage], masks, options
        )
        chosen = choose(curve, options["stop"], options["least"], bias)
        masks, outcome = {**masks, **curve[chosen]["masks"]}, curve[chosen]["at"]
        found[stage] = {"ranking": ranking, "curve": curve, "chosen": chosen}
    heldout = evaluate(network, splits["heldout"], category, masks, outcome.bias, biased, options)
    return {**found, "masks": masks, "bias": outcome.bias, "extraction": outcome, **heldout}


def evaluate(network, split, category, masks, bias, biased, options):
    """Held-out images with the frozen bias, beside the unpruned network at 0 and at its own."""
    images, labels = split
    with torch.no_grad():
        logits = run(network, images)
    margin, is_target = other_maximum(logits, category), labels == category
    activation = activations(network, images, category, masks, means=options["means"])
    pruned = csa_at(activation, margin, is_target, bias, options["norm"])
    plain = csa_at(logits[:, category], margin, is_target, 0.0, options["norm"])
    own = csa_at(logits[:, category], margin, is_target, biased.bias, options["norm"])
    return {
        "heldout": pruned,
        "heldout_unpruned": plain,
        "heldout_biased": own,
        "csa_ratio": pruned.csa / plain.csa if plain.csa > 0 else None,
        "csa_ratio_biased": pruned.csa / own.csa if own.csa > 0 else None,
    }


# --- across categories ----------------------------------------------------------------------------


def jaccard(one, other, last):
    """(intersection, union) of two circuits of different categories: their last rows are apart."""
    shared, united = 0, 0
    for layer in one:
        a, b = one[layer], other[layer]
        if layer == last:
            united += int(a.sum()) + int(b.sum())
        else:
            shared += int((a & b).sum())
            united += int((a | b).sum())
    return shared, united


def chance(one, other, last):
    """Overlap expected of independent masks with the same densities per layer."""
    shared, united = 0.0, 0.0
    for layer in one:
        n = one[layer].numel()
        p, q = one[layer].double().mean().item(), other[layer].double().mean().item()
        both = 0.0 if layer == last else p * q
        shared += n * both
        united += n * (p + q - both)
    return shared / united if united else 0.0

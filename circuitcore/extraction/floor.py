"""The floor under a circuit: random masks of its own per-layer densities, judged beside it.

Only the question whether one does as well as the circuit is answered, on as few images as that
takes: all target images and the hardest others bound a mask's hits from above, and more are run
only where that bound is not below the circuit's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.passes import Kept, circuit_pass
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import SLACK, Judge, worth
from circuitcore.extraction.looks import Look
from circuitcore.extraction.screening import Rule, Screening
from circuitcore.kernels.random_masks.operation import random_masks as random_masks_of
from circuitcore.network.forward import Tally
from circuitcore.records import Accuracy, RandomMasks
from circuitcore.scoring.seeds import layer_seed


def random_masks(
    prepared: Prepared, unit: int, kept: Kept, judge: Judge, circuit: Accuracy, tally: Tally,
    whole: bool | None = None,
) -> RandomMasks | None:  # fmt: skip
    """``--random-masks`` masks held against a circuit on the extraction set; None for none.

    ``circuit``: its accuracy there, with its bias; each mask has its own best bias.  ``whole``:
    whether all its convolutions are, None where that is not known.  Cost: a look at the target
    images and the hardest others each, a pass over all images at most.
    """
    options = prepared.options
    rule = Rule(worth(circuit, options.bias) - SLACK, "sparsest-above", options.bias, at_once=False)
    found, as_good, images = [], 0, 0
    for draw in range(options.random_masks):
        mask = random_mask(prepared, unit, kept, draw)
        run = circuit_pass(
            prepared.runner, prepared.extraction, unit, mask, tally, early_whole=whole
        )

        screening = Screening(judge, judge.unpruned, 2, _look(run), rule)
        if options.bias == "sgd":  # has no bounds
            screening.judge_all()
            as_good += worth(screening.judged[1].bounds.expected, options.bias) >= rule.below
        else:
            as_good += screening.holds(1)
        judged = screening.judged[1]
        found.append(judged.bounds)
        images = max(images, judged.images)
    if not found:
        return None
    return RandomMasks(
        masks=len(found),
        as_good=as_good,
        hit_hi=max(each.high.hit for each in found),
        csa_hi=max(each.csa_interval(judge)[1] for each in found),
        images=images,
    )


def _look(run: Callable[[np.ndarray], Tensor]) -> Look:
    return lambda levels, images, precise: run(images)[None]


def random_mask(prepared: Prepared, unit: int, kept: Kept, draw: int = 0) -> dict[str, Tensor]:
    """The ``draw``-th mask that keeps as many weights of each layer as ``kept`` does, at random.

    On a GPU it is another mask than on a CPU: drawing there and sending it would take longer than
    all else that the host does for a category.
    """
    layers = prepared.runner.network.weighted()
    seeds = [[layer_seed(prepared.options.seed, unit, layers.index(name)), draw] for name in kept]
    counts = torch.stack([mask.count_nonzero() for mask in kept.values()])
    sizes = [mask.numel() for mask in kept.values()]
    if counts.device.type == "cpu":
        drawn = [
            torch.from_numpy(at_random(size, count, np.random.default_rng(seed)))
            for size, count, seed in zip(sizes, counts.tolist(), seeds, strict=True)
        ]
    else:
        words = [w for s in seeds for w in np.random.SeedSequence(s).generate_state(2).tolist()]
        drawn = random_masks_of(counts, sizes, words, impl=prepared.runner.machine.impl)
    return {name: one.view(kept[name].shape) for name, one in zip(kept, drawn, strict=True)}


def at_random(size: int, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` of ``size`` places, every choice equally likely: bool [size].  O(size), 2 B each.

    Each place is kept with a probability near count / size; then so many as are too many or too
    few, drawn from those kept or not kept, change sides.
    """
    chance = np.uint16(min(round(count / max(size, 1) * 65536), 65535))
    words = random.integers(0, 2**64 - 1, -(-size // 4), np.uint64, endpoint=True)
    mask = words.view(np.uint16)[:size] < chance
    surplus = int(np.count_nonzero(mask)) - count
    while surplus:
        side = surplus > 0
        sided = count + surplus if side else size - count - surplus
        at = random.integers(0, size, 2 * abs(surplus) * size // sided + 8)
        at = at[mask[at] == side]
        _, first = np.unique(at, return_index=True)
        changed = at[np.sort(first)][: abs(surplus)]
        mask[changed] = not side
        surplus += -len(changed) if side else len(changed)
    return mask

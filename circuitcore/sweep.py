"""Sweep one stage of one category: the target's activation at every level, and the level chosen.

The fc stage starts from the cached boundary values (the conv features), which no fc level changes,
and runs several levels in one pass; the conv stage starts from the images.  Level 0 is never run:
it is the unpruned network, or the circuit the stage began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitcore.accuracy import SLACK, Judge, choose_level
from circuitcore.compact import compact
from circuitcore.document import Accuracy, Level, Stage
from circuitcore.forward import Masks, Override, Tally, forward, target_row
from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked_linear import masked_chain, masked_chain_multiply_adds
from circuitcore.levels import StageLevels
from circuitcore.network import Network
from circuitcore.prepare import FORWARD_CHUNK, Prepared, Split

FC_LEVELS_AT_ONCE = 8


@dataclass(frozen=True)
class Swept:
    """A stage's curve and the target activation float32 [N] at its chosen level."""

    record: Stage
    level: int
    activation: Tensor

    @property
    def chosen(self) -> Level:
        """The curve's chosen level."""
        return self.record.levels[self.record.chosen]


def circuit_override(prepared: Prepared, unit: int, kept: Mapping[str, Tensor]) -> Override:
    """The network's weights with everything outside ``kept`` set to 0, one target row at the end.

    ``kept[layer]``: bool, shaped like the layer's relevant weights; layers not named stay whole.
    """
    target = target_row(prepared.network, unit)
    weights = dict(target.weights)
    zero = torch.zeros((), device=prepared.device)
    for name, mask in kept.items():
        whole = weights.get(name, prepared.network.weights[name])
        weights[name] = torch.where(mask, whole, zero)
    return Override(weights, target.biases)


@torch.inference_mode()
def activations(
    prepared: Prepared,
    split: Split,
    override: Override,
    masks: Masks | None = None,
    *,
    certify: bool = False,
    tally: Tally | None = None,
) -> Tensor:
    """Target activations float32 [T, N] (T = 1 without masks) of a circuit on a split, on the CPU.

    Runs in the sweep's precision, or in float32 to ``certify``.  Starts from the cached boundary
    values where no conv layer is masked or changed and the split has them, else from the images.
    """
    network = prepared.network if certify else prepared.sweep_network
    dtype = torch.float32 if certify else prepared.dtype
    if dtype != torch.float32:
        override = Override(
            {name: value.to(dtype) for name, value in override.weights.items()},
            {name: value.to(dtype) for name, value in override.biases.items()},
        )
    changed = {*override.weights, *(masks.levels if masks else ())}
    from_features = bool(split.features) and not changed & set(network.layers("conv"))
    levels = len(masks.ts) if masks else 1
    chain = _masked_chain(network, override, masks) if masks and from_features else None
    impl = prepared.options.impl
    out = torch.empty(levels, len(split))
    alone = (
        compact(network, override, _blank(prepared, split, from_features, dtype))
        if masks is None
        else None
    )

    def run(part: slice) -> None:
        if from_features:
            values = {
                name: torch.from_numpy(np.ascontiguousarray(stored[part])).to(prepared.device)
                for name, stored in split.features.items()
            }
        else:
            values = {"input": prepared.batch(split, part)}
        values = {name: value.to(dtype) for name, value in values.items()}
        if alone is not None:
            result = alone.run(values, tally)
        elif chain is not None and masks is not None:
            (x,) = values.values()
            result = masked_chain(x, chain, masks.ts, impl=impl)
            if tally is not None:
                tally.multiply_adds += masked_chain_multiply_adds(chain, masks.ts, len(x))
        else:
            result = forward(
                network, values, [network.last],
                override=override, masks=masks, impl=impl, tally=tally,
            )[0]  # fmt: skip
        out[:, part] = result.reshape(levels, -1).float().cpu()

    if from_features:
        size = prepared.chunk(levels * prepared.feature_bytes)
    else:
        size = min(prepared.chunk(levels * prepared.image_bytes), FORWARD_CHUNK)
    prepared.in_chunks(split, size, run)
    return out


def _blank(
    prepared: Prepared, split: Split, from_features: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Zeros in place of one image's values, to compact a circuit with."""
    if from_features:
        shapes = {name: stored.shape[1:] for name, stored in split.features.items()}
    else:
        shapes = {"input": split.pixels.shape[1:]}
    return {
        name: torch.zeros((1, *shape), device=prepared.device, dtype=dtype)
        for name, shape in shapes.items()
    }


def _masked_chain(
    network: Network, override: Override, masks: Masks
) -> list[tuple[Tensor, Tensor, Tensor | None, bool]] | None:
    """The fc layers as (weight, level, bias, ReLU follows), where they are one masked chain."""
    chain = network.fc_chain()
    if chain is None or any(name not in masks.levels for name, _ in chain):
        return None
    return [
        (
            override.weights.get(name, network.weights[name]),
            masks.levels[name],
            override.biases.get(name, network.biases.get(name)),
            relu,
        )
        for name, relu in chain
    ]


def sweep_stage(
    prepared: Prepared,
    unit: int,
    assigned: StageLevels,
    judge: Judge,
    *,
    fixed: Mapping[str, Tensor],
    start: Tensor,
    reference: float,
    dense: bool,
    tally: Tally,
) -> Swept:
    """The curve of one stage and the level its stop rule chooses.

    ``fixed``: masks that stay (the fc circuit, in the conv stage); ``start`` float32 [N]: the
    activation at level 0; ``reference``: CSA that the threshold is a fraction of; ``dense``: run
    every level, else only as far as the stop rule looks.  Cost: one pass over the extraction set
    a level, of the fc layers (fc stage) or the whole network (conv stage).
    """
    options = prepared.options
    override = circuit_override(prepared, unit, fixed)
    stage = assigned.stage
    count = len(assigned.pruned)
    fitted: dict[int, Accuracy] = {0: judge.fitted(start[None], options.bias)[0]}
    found: dict[int, Tensor] = {0: start}
    fraction = options.stage_threshold(stage)
    # On a CPU the library's convolutions on weights masked once a level beat any masked kernel.
    some = next(iter(assigned.levels.values()))
    together = stage == "fc" or choose(options.impl, some) == "triton"

    def run(ts: Sequence[int]) -> None:
        if together:
            masks = Masks(assigned.levels, ts)
            rows = activations(prepared, prepared.extraction, override, masks, tally=tally)
        else:
            each = [
                activations(
                    prepared,
                    prepared.extraction,
                    circuit_override(prepared, unit, {**fixed, **assigned.kept(t)}),
                    tally=tally,
                )
                for t in ts
            ]
            rows = torch.cat(each)
        fitted.update(zip(ts, judge.fitted(rows, options.bias), strict=True))
        found.update(zip(ts, rows, strict=True))

    def peak() -> float:
        return max(record.csa for record in fitted.values())

    at_once = count if dense and stage == "fc" else FC_LEVELS_AT_ONCE if stage == "fc" else 1
    below = fraction * reference - SLACK
    order = list(range(1, count))
    if not dense and options.stop == "sparsest-above":
        order, at_once = order[::-1], 1
    for first in range(0, len(order), at_once):
        ts = order[first : first + at_once]
        run(ts)
        if dense:
            continue
        above = [fitted[t].csa >= below for t in ts]
        if all(above) == (options.stop == "sparsest-above"):
            break
    if options.reference == "peak":
        reference = peak()
    ts = sorted(fitted)
    chosen = choose_level([fitted[t].csa for t in ts], fraction * reference, options.stop)
    levels = [
        Level(
            **fitted[t].model_dump(),
            level=t,
            pruned=assigned.fraction(t),
            kept_weights=assigned.relevant - assigned.pruned[t],
            images=len(prepared.extraction),
            csa_lo=fitted[t].csa,
            csa_hi=fitted[t].csa,
        )
        for t in ts
    ]
    record = Stage(
        stage=stage,  # type: ignore[arg-type]
        relevant_weights=assigned.relevant,
        tied_zero=assigned.tied_zero,
        reference_csa=reference,
        threshold_csa=fraction * reference,
        chosen=chosen,
        levels=levels,
    )
    return Swept(record, ts[chosen], found[ts[chosen]])

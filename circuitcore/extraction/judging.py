"""What a category's circuits are judged by, and the unpruned network they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Split
from circuitcore.extraction.accuracy import Judge, ratio, worth
from circuitcore.network.forward import forward, target_row
from circuitcore.network.graph import Network
from circuitcore.network.sizes import value_shapes
from circuitcore.options import Options
from circuitcore.records import Accuracy, Empty, Faithfulness, HeldOut, Unpruned
from circuitcore.runs.images.decisions import Decision

DENSE_UP_TO = 2000  # extraction images: --screen auto evaluates every level up to here
MOST_OWN, MOST_ALARMS = 64, 24  # images of and beside a category whose decisions are kept


def every_level(options: Options, images: int) -> bool:
    """Whether every level is evaluated on all of ``images`` extraction images.

    Else only as far as the stop rule looks, on as few images as it needs.
    """
    if options.target or options.reference == "peak" or options.bias == "sgd":
        return True  # none of them has bounds to stop by
    return options.screen == "off" or (options.screen == "auto" and images <= DENSE_UP_TO)


def judges(prepared: Prepared, unit: int) -> tuple[Judge, Judge]:
    """What category ``unit`` is judged by: on the extraction and on the held-out set."""
    norm = prepared.options.false_alarm_norm
    return judge_of(prepared.extraction, unit, norm), judge_of(prepared.heldout, unit, norm)


def judge_of(split: Split, unit: int, norm: str) -> Judge:
    """The judge of one category on one set of images."""
    return Judge(
        split.largest.others(unit).double(),
        split.labels == unit,
        split.logits[:, unit].clone(),
        norm,
    )


def unpruned_baseline(extraction: Judge, heldout: Judge, bias: str) -> Unpruned:
    """The unpruned network at bias 0 and at its own extraction bias, on both sets."""
    biased = extraction.fitted(extraction.unpruned[None], bias)[0]
    return Unpruned(
        extraction=extraction.at(extraction.unpruned, 0.0),
        extraction_biased=biased,
        heldout=heldout.at(heldout.unpruned, 0.0),
        heldout_biased=heldout.at(heldout.unpruned, biased.bias),
    )


@dataclass(frozen=True)
class Reference:
    """What levels are held against: `worth` 1 (``full``) and 0 (``floor``), and CSA beside it.

    ``why``: why there is no circuit, where there is none.
    """

    full: float
    floor: float
    csa: float
    why: str | None = None

    def threshold(self, fraction: float) -> float:
        """`worth` that a level must have."""
        return self.floor + fraction * (self.full - self.floor)

    def peak(self, values: Sequence[float]) -> Reference:
        """The same with the largest `worth` of a curve as 1."""
        return replace(self, full=max(values))


def reference_of(unpruned: Unpruned, empty: Accuracy, options: Options) -> Reference:
    """The reference of ``options`` (before ``peak`` is known)."""
    own = unpruned.extraction if options.reference == "unpruned" else unpruned.extraction_biased
    full, floor = worth(own, options.bias), 0.0
    if options.reference == "faithful":
        floor = worth(empty, options.bias)
    why = None
    if unpruned.extraction.hit == 0:
        why = "no hits of the unpruned network"
    elif full <= 0:
        why = "reference not positive"
    elif full <= floor:
        why = "reference no better than the empty circuit"
    return Reference(full, floor, own.csa, why)


def empty_activation(network: Network, unit: int, split: Split) -> Tensor:
    """The activation of the circuit without any weight: the last layer's bias, float32 [N].

    Its mean output where pruned weights carry the mean of their inputs.  Behind a convolution it is
    a map of them, which goes through what follows.
    """
    last = network.last
    bias = (network.biases if network.means is None else network.means.outputs).get(last)
    value = 0.0 if bias is None else float(bias[unit])
    if network.result != last:
        places = value_shapes(network, split.pixels.shape[1:])[last][1:]
        blank, row = torch.full((1, 1, *places), value), target_row(network, unit)
        value = float(forward(network, {last: blank}, [network.result], override=row)[0])
    return torch.full((len(split),), value)


def empty_circuit(prepared: Prepared, unit: int, extraction: Judge, heldout: Judge) -> Empty:
    """The empty circuit with its own bias.  Cost: one bias fit."""
    network, how = prepared.inputs.model.network, prepared.options.bias  # on the CPU
    activation = empty_activation(network, unit, prepared.extraction)
    fitted = extraction.fitted(activation[None], how)[0]
    activation = empty_activation(network, unit, prepared.heldout)
    return Empty(extraction=fitted, heldout=heldout.at(activation, fitted.bias))


def heldout_accuracy(
    judge: Judge, activation: Tensor, bias: float, biased: Accuracy | None, seed: int
) -> HeldOut:
    """An activation [N] on the held-out set at a frozen bias, beside the unpruned network there.

    ``biased``: the unpruned network's own at its extraction bias, where it is known; ``seed``: of
    the bootstrap intervals.
    """
    found = judge.at(activation, bias)
    unpruned = judge.at(judge.unpruned, 0.0)
    like = None
    if biased is not None and biased.csa > 0:
        like = judge.ratio_interval(activation, bias, seed, biased.bias)
    return HeldOut(
        **found.model_dump(),
        csa_ratio=ratio(found.csa, unpruned.csa),
        csa_ratio_ci95=judge.ratio_interval(activation, bias, seed) if unpruned.csa > 0 else None,
        csa_ratio_biased=ratio(found.csa, biased.csa) if biased else None,
        csa_ratio_biased_ci95=like,
    )


def faithfulness(
    judge: Judge,
    said: Sequence[Tensor],
    fitted: Accuracy,
    heldout: HeldOut,
    unpruned: Unpruned,
    empty: Empty,
    seed: int,
) -> Faithfulness:
    """Faithfulness on the extraction and on the held-out set.

    ``judge``: of the held-out set; ``said``: its images as predicted by the circuit, the unpruned
    network and the empty circuit, bool [N] each, for the interval there.
    """
    inside = ratio(
        fitted.csa - empty.extraction.csa, unpruned.extraction_biased.csa - empty.extraction.csa
    )
    outside = ratio(
        heldout.csa - empty.heldout.csa, unpruned.heldout_biased.csa - empty.heldout.csa
    )
    interval = judge.faithfulness_interval(said, seed) if outside is not None else None
    return Faithfulness(extraction=inside, heldout=outside, heldout_ci95=interval)


def decisions(
    judge: Judge, activation: Tensor, bias: float, unpruned_bias: float
) -> list[Decision]:
    """What an activation [N] at ``bias`` says of the category's images, and its false alarms.

    ``judge``: of the images; the first `MOST_OWN` of the category, in order, then the
    `MOST_ALARMS` surest false alarms, the surest first.
    """
    own = bias - (judge.margins - activation.double().numpy())
    whole = unpruned_bias - (judge.margins - judge.unpruned.double().numpy())
    others = np.where(judge.is_target.numpy(), -np.inf, own)
    surest = np.argsort(-others, kind="stable")[:MOST_ALARMS]
    images = [*judge.target_at[:MOST_OWN], *surest[others[surest] > 0]]
    return [
        Decision(int(n), bool(judge.is_target[n]), _four(own[n]), _four(whole[n])) for n in images
    ]


def _four(value: float) -> float:
    """To four digits: what is above 0 stays so."""
    return float(f"{value:.4g}")

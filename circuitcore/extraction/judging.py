"""What a category's circuits are judged by, and the unpruned network they are held against."""

from __future__ import annotations

from torch import Tensor

from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Split
from circuitcore.extraction.accuracy import Judge, ratio
from circuitcore.options import Options
from circuitcore.records import Accuracy, HeldOut, Unpruned

DENSE_UP_TO = 2000  # extraction images: --screen auto evaluates every level up to here


def every_level(options: Options, images: int) -> bool:
    """Whether every level is evaluated on all of ``images`` extraction images.

    Else only as far as the stop rule looks, on as few images as it needs.
    """
    if options.reference == "peak" or options.bias == "sgd":  # neither has bounds to stop by
        return True
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


def reference_csa(unpruned: Unpruned, reference: str) -> float:
    """The CSA that thresholds are fractions of (before ``peak`` is known)."""
    own = unpruned.extraction if reference == "unpruned" else unpruned.extraction_biased
    return own.csa


def heldout_accuracy(
    judge: Judge, activation: Tensor, bias: float, biased: Accuracy | None, seed: int
) -> HeldOut:
    """An activation [N] on the held-out set at a frozen bias, beside the unpruned network there.

    ``biased``: the unpruned network's own at its extraction bias, where it is known; ``seed``: of
    the bootstrap interval.
    """
    found = judge.at(activation, bias)
    unpruned = judge.at(judge.unpruned, 0.0)
    interval = judge.ratio_interval(activation, bias, seed) if unpruned.csa > 0 else None
    return HeldOut(
        **found.model_dump(),
        csa_ratio=ratio(found.csa, unpruned.csa),
        csa_ratio_ci95=interval,
        csa_ratio_biased=ratio(found.csa, biased.csa) if biased else None,
    )

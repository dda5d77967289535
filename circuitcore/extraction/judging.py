"""What a category's circuits are judged by, and the unpruned network they are held against."""

from __future__ import annotations

from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import Judge
from circuitcore.records import Unpruned

DENSE_UP_TO = 2000  # extraction images: --screen auto evaluates every level up to here


def is_dense(prepared: Prepared) -> bool:
    """Whether every level is evaluated, rather than only as far as the stop rule looks."""
    options = prepared.options
    if options.reference == "peak" or options.bias == "sgd":  # neither has bounds to stop by
        return True
    if options.screen == "auto":
        return len(prepared.extraction) <= DENSE_UP_TO
    return options.screen == "off"


def judges(prepared: Prepared, unit: int) -> tuple[Judge, Judge]:
    """What category ``unit`` is judged by: on the extraction and on the held-out set."""
    norm = prepared.options.false_alarm_norm
    extraction, heldout = prepared.extraction, prepared.heldout
    return (
        Judge.of(extraction.logits, extraction.labels, unit, norm),
        Judge.of(heldout.logits, heldout.labels, unit, norm),
    )


def unpruned_baseline(prepared: Prepared, unit: int) -> Unpruned:
    """The unpruned network at bias 0 and at its own extraction bias, on both sets."""
    extraction, heldout = judges(prepared, unit)
    biased = extraction.fitted(extraction.unpruned[None], prepared.options.bias)[0]
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

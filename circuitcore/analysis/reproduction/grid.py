"""What the published texts leave open, axis by axis, and the readings that follow.

A family is readings that share scores and levels: they differ in what chooses a level.  All of them
are crossed for the scores of the preset; other places of the absolute value are other scores, a
sweep of their own each: the preset with that one change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from circuitcore.options import Options

AXES = ("threshold", "magnitude", "false_alarm_norm", "stop", "reference", "bias")


@dataclass(frozen=True)
class Open:
    """What one text leaves open: values by axis, the preset's first of ``magnitude``."""

    threshold: tuple[float, ...]
    magnitude: tuple[str, ...]
    false_alarm_norm: tuple[str, ...]
    stop: tuple[str, ...]
    reference: tuple[str, ...]
    bias: tuple[str, ...]


OPEN = {
    "paper": Open(
        threshold=(0.8, 0.85, 0.9, 0.95),
        magnitude=("position", "image", "set", "signed"),
        false_alarm_norm=("other", "target"),
        stop=("first-crossing", "sparsest-above"),
        reference=("unpruned-biased", "unpruned", "faithful", "peak"),
        bias=("matched", "exact"),
    ),
    "vss": Open(
        threshold=(0.8, 0.85, 0.9),
        magnitude=("position", "image", "set", "signed"),
        false_alarm_norm=("other", "target"),
        stop=("sparsest-above", "first-crossing"),
        reference=("unpruned", "faithful", "peak"),
        bias=("none",),
    ),
}
WHY = {
    "threshold": "the paper says until accuracy falls below a threshold, not which one; the "
    "abstract has 0.85",
    "magnitude": "where the absolute value of activation times gradient is taken: at each "
    "position, over an image, over the set of images, or nowhere",
    "false_alarm_norm": "what false alarms are divided by before they are taken off the hit rate: "
    "the number of other images, or of the category's own",
    "stop": "the last level before accuracy first falls below the threshold, or the sparsest one "
    "still above it",
    "reference": "what the threshold is a fraction of: the unpruned network at its own bias or "
    "without one, the range from the empty circuit to it, or the curve's peak",
    "bias": "what the one free bias is fitted to: hits at no more false alarms than the unpruned "
    "network's, the accuracy itself, or there is none",
}


def readings(which: str, options: Options) -> list[list[Options]]:
    """Families of readings of ``paper`` or ``vss``, that of the preset's scores first.

    ``options``: the preset, with what else a call says; it is the first of all.
    """
    axes = OPEN[which]
    families = [list(_crossed(axes, options))]
    others: list[dict[str, Any]] = [{"magnitude": value} for value in axes.magnitude[1:]]
    families += [[replace(options, **change)] for change in others]
    families[0].sort(key=lambda reading: reading != options)  # stable: the preset comes first
    return families


def _crossed(axes: Open, options: Options) -> Iterator[Options]:
    """Every combination that means something of what chooses a level."""
    for threshold, norm, stop, reference, bias in product(
        axes.threshold, axes.false_alarm_norm, axes.stop, axes.reference, axes.bias
    ):
        if reference == "peak" and stop != "sparsest-above":
            continue  # the peak is known last
        changes: dict[str, Any] = {"threshold": threshold, "stop": stop, "reference": reference}
        if reference == "peak" and options.screen == "on":
            changes["screen"] = "auto"  # which runs every level
        changes |= {"false_alarm_norm": norm, "bias": bias}
        yield replace(options, **changes)


def named(reading: Options) -> dict[str, Any]:
    """What a reading says on each axis."""
    return {axis: getattr(reading, axis) for axis in AXES}

"""Circuits of other targets than categories, judged again: on other images, beside controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.analysis.summary import interval, mean
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.agreement import agreement_on, judged_masks
from circuitcore.machine.files import read_sealed
from circuitcore.records import Target


class TargetEvaluation(BaseModel):
    """How well one circuit's values follow the unpruned network's on ``images`` held-out images."""

    model_config = ConfigDict(frozen=True)

    target: str
    images: int
    judge: str
    heldout: float | None
    heldout_ci95: tuple[float, float] | None


class TargetControl(BaseModel):
    """One control (or the ``circuit`` itself) of one target: how well it follows, on both sets.

    ``overlap``: Jaccard with the circuit.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    control: str
    kept_weights: int
    overlap: float
    extraction: float | None
    heldout: float | None
    heldout_ci95: tuple[float, float] | None


def evaluated(prepared: Prepared, target: Target, kept: Mapping[str, Tensor]) -> TargetEvaluation:
    """A circuit on the held-out set of ``prepared``, which may be of other images."""
    masks = {layer: mask.to(prepared.runner.machine.device) for layer, mask in kept.items()}
    activation = activations(prepared.runner, prepared.heldout, target.index, masks)
    found = agreement_on(prepared, target.index, None, activation)
    return TargetEvaluation(
        target=target.category,
        images=len(prepared.heldout),
        judge=target.judge,
        heldout=found.heldout,
        heldout_ci95=found.heldout_ci95,
    )


def controlled(
    prepared: Prepared, target: Target, control: str, mask: Mapping[str, Tensor], overlap: float
) -> TargetControl:
    """A control of a target on both sets."""
    return TargetControl(
        target=target.category,
        control=control.replace("category", "target"),
        kept_weights=sum(int(m.sum()) for m in mask.values()),
        overlap=overlap,
        **judged_masks(prepared, target.index, mask).model_dump(),
    )


def control_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a run's ``controls.json``; none where no controls were run, or it is damaged."""
    try:
        found = read_sealed(file)
        return list(found["rows"] if isinstance(found, dict) else found)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def target_control_means(file: Path) -> list[dict[str, Any]]:
    """Means over targets of each kind of control; none where no controls were run."""
    rows = control_rows(file)
    means = []
    for kind in dict.fromkeys(row["control"] for row in rows):
        mine = [row for row in rows if row["control"] == kind]
        values = [row["heldout"] for row in mine if row["heldout"] is not None]
        means.append(
            {
                "control": kind,
                "undefined": len(mine) - len(values),
                "mean": mean(values),
                "interval": interval(values, most=1.0),
                "overlap": mean([row["overlap"] for row in mine]),
            }
        )
    return means

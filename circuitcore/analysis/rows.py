"""Records as flat rows of equal keys: what tables, CSV and data frames are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from circuitcore.analysis.statistics import d_prime, precision
from circuitcore.options import DEFAULT_STAGES
from circuitcore.records import Accuracy, Category, Circuit, Found, Target

ACCURACY = ("hit", "false_alarm", "false_alarms", "csa", "bias")


class Judged(NamedTuple):
    """How many images of the category, and of others, a category is judged on: alike for all."""

    targets: int
    others: int

    @classmethod
    def of(cls, run: Mapping[str, Any], split: str = "heldout") -> Judged:
        """Those of one split, from the manifest: images are chosen in equal numbers."""
        images, categories = run["images"][split], max(len(run["categories"]), 1)
        return cls(images // categories, images - images // categories)

    def hits(self, found: Accuracy) -> int:
        """Images of the category predicted as it."""
        return round(found.hit * self.targets)

    def d_prime(self, found: Accuracy) -> float | None:
        """`statistics.d_prime`; None where there are no targets or no others."""
        if min(self) < 1:
            return None
        return d_prime(self.hits(found), self.targets, found.false_alarms, self.others)

    def precision(self, found: Accuracy) -> float | None:
        """`statistics.precision`."""
        return precision(self.hits(found), found.false_alarms)


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record without nesting: ``a: {b: 1}`` as ``a_b``, ``b_ci95`` as ``b_low``, ``b_high``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}_")
        elif name.endswith("ci95"):
            low, high = value or (None, None)
            short = prefix + name.removesuffix("_ci95")
            found |= {f"{short}_low": low, f"{short}_high": high}
        else:
            found[prefix + name] = value
    return found


def stage_names(records: Sequence[Found]) -> tuple[str, ...]:
    """Names of a run's stages, in order; the default ones where no other is there."""
    found = tuple(dict.fromkeys(stage.stage for record in records for stage in record.stages))
    return DEFAULT_STAGES if set(found) <= set(DEFAULT_STAGES) else found


def pruned_of(circuit: Circuit, stage: str) -> float | None:
    """The pruned fraction of one of its stages."""
    if circuit.pruned_by_stage is not None:
        return circuit.pruned_by_stage.get(stage)
    return circuit.pruned_fc if stage == "fc" else circuit.pruned_conv


def rows_of(records: Sequence[Found], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a category or target, all of the same columns; ``run``: the manifest."""
    stages, judged = stage_names(records), Judged.of(run)
    return [
        target_row(each, stages) if isinstance(each, Target) else category_row(each, judged, stages)
        for each in records
    ]


def target_row(target: Target, stages: Sequence[str] = DEFAULT_STAGES) -> dict[str, Any]:
    """One target as flat columns; None where there is no circuit."""
    circuit, masks = target.circuit, target.random_masks
    row: dict[str, Any] = {"target": target.category, "index": target.index}
    row |= {"judge": target.judge, "pool": target.pool, "spread": target.spread}
    row["pruned"] = getattr(circuit, "pruned", None)
    by_stage = circuit.pruned_by_stage if circuit else {}
    row |= {f"pruned_{stage}": by_stage.get(stage) for stage in stages}
    row["kept_weights"] = getattr(circuit, "kept_weights", None)
    values = ("extraction", "heldout", "heldout_ci95")
    row |= flat({name: getattr(circuit, name, None) for name in values})
    row |= flat({f"random_{name}": getattr(masks, name, None) for name in values})
    row |= {f"random_{name}": getattr(masks, name, None) for name in ("masks", "as_good")}
    row["scoring_images"] = " ".join(target.scoring_images)
    row["undefined"] = target.undefined
    return row | target.cost.model_dump() | {"file": circuit.file if circuit else None}


def category_row(
    category: Category, judged: Judged, stages: Sequence[str] = DEFAULT_STAGES
) -> dict[str, Any]:
    """One category as flat columns; None where there is no circuit.

    ``judged``: held-out images, for d' and precision.
    """
    circuit = category.circuit
    row: dict[str, Any] = {"category": category.category, "index": category.index}
    row["pruned"] = getattr(circuit, "pruned", None)
    for stage in stages:
        row[f"pruned_{stage}"] = pruned_of(circuit, stage) if circuit else None
    for name in ("kept_weights", "bias"):
        row[name] = getattr(circuit, name, None)
    extraction = circuit.extraction if circuit else None
    heldout = circuit.heldout if circuit else None
    row |= _accuracy("extraction", extraction) | _accuracy("heldout", heldout)
    row |= _detected("heldout", heldout, judged)
    ratios = ("csa_ratio", "csa_ratio_ci95", "csa_ratio_biased", "csa_ratio_biased_ci95")
    row |= flat({name: getattr(heldout, name, None) for name in ratios})
    faithful = category.faithfulness
    row["faithfulness"] = getattr(faithful, "heldout", None)
    row |= flat({"faithfulness_ci95": getattr(faithful, "heldout_ci95", None)})
    for name in ("extraction", "heldout"):
        row |= _accuracy(f"empty_{name}", getattr(category.empty, name, None))
    floor = category.random_masks
    row |= {f"random_{name}": getattr(floor, name, None) for name in ("masks", "as_good", "hit_hi")}
    row["undefined"] = category.undefined
    for name in ("extraction", "extraction_biased", "heldout", "heldout_biased"):
        row |= _accuracy(f"unpruned_{name}", getattr(category.unpruned, name))
    for name in ("heldout", "heldout_biased"):
        row |= _detected(f"unpruned_{name}", getattr(category.unpruned, name), judged)
    return row | category.cost.model_dump() | {"file": circuit.file if circuit else None}


def _accuracy(name: str, found: Accuracy | None) -> dict[str, Any]:
    return {f"{name}_{field}": getattr(found, field) if found else None for field in ACCURACY}


def _detected(name: str, found: Accuracy | None, judged: Judged) -> dict[str, Any]:
    return {
        f"{name}_d_prime": None if found is None else judged.d_prime(found),
        f"{name}_precision": None if found is None else judged.precision(found),
    }

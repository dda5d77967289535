"""The records a sweep produces, as written to unit files, the JSON document and its schema."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = "circuitcore.sweep/1"


class Record(BaseModel):
    """Base of all records: immutable, nothing unnamed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Accuracy(Record):
    """Circuit substitution accuracy on one set of images, with the bias it holds at.

    ``hit``: fraction of the category's images predicted as it; ``false_alarms``: number and
    ``false_alarm``: fraction of other images predicted as it; ``bias`` in units of the logit.
    """

    hit: float
    false_alarm: float
    false_alarms: int
    csa: float
    bias: float


class Level(Accuracy):
    """One level of a stage's curve, judged on ``images`` of the extraction set.

    ``level``: its place in the grid; ``pruned``: fraction of the stage's relevant weights;
    ``csa_lo`` = ``csa_hi`` = ``csa`` where every image was evaluated.  Else ``csa`` (and what goes
    with it) is what is expected of the images not evaluated: ``csa_hi`` holds whatever they would
    do, ``csa_lo`` if they moved no further since they were last evaluated than `screening` allows.
    """

    level: int
    pruned: float
    kept_weights: int
    images: int
    csa_lo: float
    csa_hi: float


class Stage(Record):
    """One stage's curve; ``chosen`` is a position in ``levels``; others are not invented.

    ``planned_multiply_adds``: known before the stage ran, where every level was evaluated;
    ``multiply_adds``: executed; ``recomputed``: runs of an image at a level repeated in float32
    because its decision lay within the error of a lower precision.
    """

    stage: Literal["fc", "conv"]
    relevant_weights: int
    tied_zero: float
    reference_csa: float
    threshold_csa: float
    chosen: int
    levels: list[Level]
    planned_multiply_adds: int | None = None
    multiply_adds: int = 0
    recomputed: int = 0


class Unpruned(Record):
    """The baseline: at bias 0, and at its own best bias on the extraction set."""

    extraction: Accuracy
    extraction_biased: Accuracy
    heldout: Accuracy
    heldout_biased: Accuracy


class HeldOut(Accuracy):
    """Held-out images with the frozen bias; ratios to the unpruned network are None if undefined.

    ``csa_ratio``: to the unpruned at bias 0, with a bootstrap 95 % interval; ``csa_ratio_biased``:
    to the unpruned at its own extraction bias.
    """

    csa_ratio: float | None
    csa_ratio_ci95: tuple[float, float] | None
    csa_ratio_biased: float | None


class Circuit(Record):
    """The extracted circuit; ``pruned`` is a fraction of all relevant weights of the network."""

    pruned: float
    pruned_fc: float
    pruned_conv: float
    kept_weights: int
    bias: float
    extraction: Accuracy
    heldout: HeldOut
    file: str


class Cost(Record):
    """Scoring, sweeping and certifying one category; multiply-adds leave scoring out.

    ``memory_bytes``: the most the process held until the category was done, beyond what it held
    before the run.
    """

    seconds: float
    fpe: float
    multiply_adds: int
    memory_bytes: int = 0


class Category(Record):
    """Everything found out about one category; ``circuit`` is None where it is undefined."""

    category: str
    index: int
    unpruned: Unpruned
    stages: list[Stage]
    circuit: Circuit | None
    cost: Cost


class Overlap(Record):
    """Jaccard overlap over all pairs of circuits, with the mean expected of independent masks."""

    pairs: int
    mean: float | None
    min: float | None
    max: float | None
    mean_chance: float | None
    file: str


class Summary(Record):
    """Means over the categories that have a circuit; ``undefined`` counts those that have none."""

    categories: int
    undefined: int
    mean_pruned: float | None
    sd_pruned: float | None
    mean_heldout_csa: float | None
    mean_unpruned_heldout_csa: float | None
    mean_heldout_hit: float | None
    mean_unpruned_heldout_hit: float | None
    mean_csa_ratio: float | None
    ratio_of_means: float | None


class Sweep(Record):
    """The document of ``circuitcore sweep --format json``."""

    schema_: Literal["circuitcore.sweep/1"] = Field(SCHEMA, alias="schema")
    run: dict[str, Any]
    categories: list[Category]
    overlap: Overlap
    summary: Summary

    def to_json(self, indent: int | None = None) -> str:
        """The document as JSON text."""
        return self.model_dump_json(by_alias=True, indent=indent)


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the document, as shipped in ``schemas/sweep.json``."""
    schema = Sweep.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

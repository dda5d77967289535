"""The records a sweep produces, as written to unit files, the JSON document and its schema."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import models_json_schema

SCHEMA: Final = "circuitcore.sweep/2"
TARGETS: Final = "circuitcore.targets/1"


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

    def alone(self) -> Accuracy:
        """The same without what a level or a held-out set adds."""
        return Accuracy(**{name: getattr(self, name) for name in Accuracy.model_fields})


class Level(Accuracy):
    """One level of a stage's curve, judged on ``images`` of the extraction set.

    ``level``: its place in the grid; ``pruned``: fraction of the stage's relevant weights;
    ``csa_lo`` = ``csa_hi`` = ``csa`` where every image was evaluated, and so for ``hit``.  Else
    ``csa`` (and what goes with it) is what is expected of the images not evaluated: ``csa_hi`` and
    ``hit_hi`` hold whatever they would do, ``csa_lo`` and ``hit_lo`` if they moved no further since
    they were last evaluated than `screening` allows, and are no further off than the rounding
    measured at the level.  Under a matched bias the hits decide.
    """

    level: int
    pruned: float
    kept_weights: int
    images: int
    csa_lo: float
    csa_hi: float
    hit_lo: float | None = None
    hit_hi: float | None = None


class Stage(Record):
    """One stage's curve; ``chosen`` is a position in ``levels``; others are not invented.

    ``reference_hits``, ``threshold_hits``: hit rates that levels were held to, under a matched
    bias; else None, and CSA decided (``reference_csa``, ``threshold_csa``).

    ``planned_multiply_adds``: known before the stage ran, where every level was evaluated;
    ``multiply_adds``: executed; ``recomputed``: runs of an image at a level repeated in float32
    because its decision lay within the error of a lower precision, or to measure that error.
    """

    stage: str
    relevant_weights: int
    tied_zero: float
    reference_csa: float
    threshold_csa: float
    chosen: int
    levels: list[Level]
    planned_multiply_adds: int | None = None
    multiply_adds: int = 0
    recomputed: int = 0
    reference_hits: float | None = None
    threshold_hits: float | None = None


class Unpruned(Record):
    """The baseline: at bias 0, and at its own best bias on the extraction set."""

    extraction: Accuracy
    extraction_biased: Accuracy
    heldout: Accuracy
    heldout_biased: Accuracy


class HeldOut(Accuracy):
    """Held-out images with the frozen bias; ratios to the unpruned network are None if undefined.

    ``csa_ratio_biased``: to the unpruned at its own extraction bias, like with like, and what is
    called *the* ratio; ``csa_ratio``: to the unpruned at bias 0; both with bootstrap 95 %
    intervals.
    """

    csa_ratio: float | None
    csa_ratio_ci95: tuple[float, float] | None
    csa_ratio_biased: float | None
    csa_ratio_biased_ci95: tuple[float, float] | None = None


class Empty(Record):
    """The empty circuit, all weights pruned: its activation is a constant, its bias its own."""

    extraction: Accuracy
    heldout: Accuracy


class Faithfulness(Record):
    """(CSA - CSA of the empty circuit) / (CSA of the unpruned network - the same).

    At best biases on the extraction set, at frozen ones on the held-out set, with a bootstrap 95 %
    interval; None where the unpruned network is no better than the empty circuit.
    """

    extraction: float | None
    heldout: float | None
    heldout_ci95: tuple[float, float] | None


class RandomMasks(Record):
    """Random masks of the circuit's own per-layer densities, on the extraction set.

    ``as_good``: how many of ``masks`` have, at their own best bias, as many hits as the circuit
    (as much CSA, where the bias is not matched).  Exact; ``hit_hi`` and ``csa_hi`` are what the
    best of them has at most, where only ``images`` images were needed to tell.
    """

    masks: int
    as_good: int
    hit_hi: float
    csa_hi: float
    images: int


class Circuit(Record):
    """The extracted circuit; ``pruned`` is a fraction of all relevant weights of the network.

    ``pruned_fc`` and ``pruned_conv`` are of the default stages; where stages have other names
    ``pruned_by_stage`` is there in their place.  ``skipped``: layers left whole, whose weights are
    not counted anywhere; not there where there are none.
    """

    pruned: float
    pruned_fc: float | None
    pruned_conv: float | None
    kept_weights: int
    bias: float
    extraction: Accuracy
    heldout: HeldOut
    file: str
    pruned_by_stage: dict[str, float] | None = None
    skipped: list[str] = []

    @model_serializer(mode="wrap")
    def _as_said(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        # a return type would stand in the JSON schema in place of the fields
        found = handler(self)
        return {k: v for k, v in found.items() if v or k not in ("pruned_by_stage", "skipped")}


class Cost(Record):
    """Scoring, sweeping, certifying and testing one category; multiply-adds leave scoring out.

    ``fpe`` is ``fpe_sweep`` + ``fpe_certify`` + ``fpe_heldout``; ``fpe_floor`` and
    ``floor_seconds``, of the random masks, stand apart.  ``memory_bytes``: the most the process
    held until the category was done, beyond what it held before the run.
    """

    seconds: float
    fpe: float
    multiply_adds: int
    memory_bytes: int = 0
    fpe_sweep: float | None = None
    fpe_certify: float | None = None
    fpe_heldout: float | None = None
    fpe_floor: float | None = None
    floor_seconds: float | None = None


class Category(Record):
    """Everything found out about one category; ``circuit`` is None where it is undefined.

    ``undefined`` says why.
    """

    category: str
    index: int
    unpruned: Unpruned
    stages: list[Stage]
    circuit: Circuit | None
    cost: Cost
    empty: Empty | None = None
    faithfulness: Faithfulness | None = None
    random_masks: RandomMasks | None = None
    undefined: str | None = None


class TargetLevel(Record):
    """One level of a target's stage: ``value`` of the judge on all ``images`` extraction images.

    The values of the pruned network against those of the unpruned one; None where either are all
    equal and the judge is a correlation.
    """

    level: int
    pruned: float
    kept_weights: int
    images: int
    value: float | None


class TargetStage(Record):
    """One stage's curve; ``chosen`` is a position in ``levels``; see `Stage` for the rest."""

    stage: str
    relevant_weights: int
    tied_zero: float
    threshold: float
    chosen: int
    levels: list[TargetLevel]
    planned_multiply_adds: int | None = None
    multiply_adds: int = 0


class Agreement(Record):
    """The judge's value on both sets, held-out with its bootstrap 95 % interval.

    None where it is undefined: all values equal.
    """

    extraction: float | None
    heldout: float | None
    heldout_ci95: tuple[float, float] | None


class TargetMasks(Agreement):
    """Random masks of the circuit's own per-layer densities.

    ``as_good``: how many of ``masks`` agree on the extraction set as well as the circuit does; the
    values are those of the best of them there.
    """

    masks: int
    as_good: int


class TargetCircuit(Agreement):
    """The circuit of a target; ``pruned`` is a fraction of all relevant weights."""

    pruned: float
    pruned_by_stage: dict[str, float]
    kept_weights: int
    file: str


class Target(Record):
    """Everything found out about one unit or direction; ``circuit`` is None if it is undefined.

    ``category``: its name, ``LAYER:UNIT`` or ``LAYER:FILE``; ``index``: the unit, or the place of
    the direction; ``judge`` and ``pool`` as in the options; ``scoring_images``: names of the images
    that scored, the most active ones first; ``spread``: standard deviation of the unpruned values
    on the extraction set; ``undefined``: why there is no circuit.
    """

    category: str
    index: int
    judge: str
    pool: str | None
    scoring_images: list[str]
    spread: float
    stages: list[TargetStage]
    circuit: TargetCircuit | None
    cost: Cost
    random_masks: TargetMasks | None = None
    undefined: str | None = None


Found = Category | Target


class Overlap(Record):
    """Jaccard overlap over all pairs of circuits, with the mean expected of independent masks."""

    pairs: int
    mean: float | None
    min: float | None
    max: float | None
    mean_chance: float | None
    file: str


class Summary(Record):
    """Means over the categories that have a circuit; ``undefined`` counts the others by reason.

    ``mean_csa_ratio`` and ``ratio_of_means`` are like with like (``csa_ratio_biased``), and so is
    ``mean_heldout_csa`` beside ``mean_unpruned_heldout_csa_biased``;
    ``ratio_of_means_unbiased`` to the unpruned network at bias 0, as the paper's 47.5 / 52.3.
    ``mean_unpruned_heldout_hit`` is at bias 0, its ``_biased`` twin at the unpruned network's own
    bias, as circuits' hits are at theirs.  ``undefined_heldout`` counts by reason the categories
    whose circuit has no held-out ratio or faithfulness: they are left out of those means alone.
    ``no_better_than_random``: categories where one of the random masks does as well as the circuit.
    ``_ci95``: 95 % intervals of the means, by drawing categories, then images in each.
    """

    categories: int
    undefined: dict[str, int]
    mean_pruned: float | None
    sd_pruned: float | None
    mean_heldout_csa: float | None
    mean_unpruned_heldout_csa: float | None
    mean_unpruned_heldout_csa_biased: float | None
    mean_heldout_hit: float | None
    mean_unpruned_heldout_hit: float | None
    mean_csa_ratio: float | None
    ratio_of_means: float | None
    ratio_of_means_unbiased: float | None
    mean_faithfulness: float | None
    mean_unpruned_heldout_hit_biased: float | None = None
    undefined_heldout: dict[str, int] = {}
    no_better_than_random: list[str] = []
    mean_heldout_csa_ci95: tuple[float, float] | None = None
    mean_heldout_hit_ci95: tuple[float, float] | None = None


class Document(Record):
    """What ``circuitcore sweep --format json`` prints."""

    def to_json(self, indent: int | None = None) -> str:
        """The document as JSON text."""
        return self.model_dump_json(by_alias=True, indent=indent)


class Sweep(Document):
    """The document of ``circuitcore sweep --format json``."""

    schema_: Literal["circuitcore.sweep/2"] = Field(SCHEMA, alias="schema")
    run: dict[str, Any]
    categories: list[Category]
    overlap: Overlap
    summary: Summary


class TargetSummary(Record):
    """Means over the targets that have a circuit; ``undefined`` counts the others by reason.

    ``no_better_than_random``: targets where a random mask agrees as well as the circuit.
    """

    targets: int
    undefined: dict[str, int]
    mean_pruned: float | None
    sd_pruned: float | None
    mean_extraction: float | None
    mean_heldout: float | None
    mean_random_heldout: float | None
    no_better_than_random: list[str] = []


class TargetSweep(Document):
    """The document of a sweep with ``--target``."""

    schema_: Literal["circuitcore.targets/1"] = Field(TARGETS, alias="schema")
    run: dict[str, Any]
    targets: list[Target]
    overlap: Overlap
    summary: TargetSummary


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of both documents, as shipped in ``schemas/sweep.json``."""
    both: list[tuple[type[BaseModel], Literal["serialization"]]] = [
        (Sweep, "serialization"),
        (TargetSweep, "serialization"),
    ]
    _, schema = models_json_schema(both, by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"properties": {"schema": {"const": TARGETS}}},
        "then": {"$ref": "#/$defs/TargetSweep"},
        "else": {"$ref": "#/$defs/Sweep"},
        **schema,
    }

"""Seconds of a sweep on a device that is not here, part by part: predicted from counts.

A category's looks at ImageNet's proportions are typical ones, counted on made-up categories of
1,000 (`TYPICAL`); a small problem looks at every level.  What a look costs is `engine.counting`'s,
what a count costs `machine.target`'s.  Scoring the next category, and testing and committing the
last one, go on beside a category (`jobs.overlapped`): their seconds are shown and not added.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from circuitcore.engine.counting import Counting
from circuitcore.engine.footprint import Counts
from circuitcore.extraction.looks import NEAR, PROBE, PROBE_MANY
from circuitcore.extraction.planning.expected import COUNTED, TYPICAL, levels_run
from circuitcore.extraction.screening import run_at_every_level
from circuitcore.machine.target import (
    ASSUMED,
    COMMIT_BYTE,
    CORES,
    DECODE,
    HASH_LAUNCHES,
    HASHED,
    JUDGING,
    MARK,
    SCREENING,
    TESTING,
    Target,
    Work,
    kernel,
)
from circuitcore.options import Options

# launches of scoring and ranking, on a pretended device: in the graph, by stage and by layer;
# images taken and normalised, and what the graph reads and leaves copied
SCORED_STAGE, SCORED_LAYER, SCORED_BESIDE = 52, 19, 7
SELECTION = 6  # passes over weights and scores that select levels, `aot.roofline`
CAPTURED = 9  # sizes of batches: a graph each and precision


class Part(BaseModel):
    """One part of a category or of a run: its counts, and the seconds they are predicted to take.

    ``multiply_adds`` as executed; ``beside``: goes on beside other work, and is not added.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    multiply_adds: int
    bytes: int
    launches: int
    replays: int
    syncs: int
    pcie_bytes: int
    host_seconds: float
    seconds: float
    beside: bool = False
    mark: str = MARK


class Assumption(BaseModel):
    """Something taken for granted, and where it comes from."""

    model_config = ConfigDict(frozen=True)

    what: str
    source: str


class Prediction(BaseModel):
    """Seconds of a sweep on a device, from counts.

    ``category``: parts of one, ``run``: of what is done once; ``seconds`` of the whole run,
    ``seconds_per_category`` without what goes on beside; ``other_precisions``: the same in
    others; ``before``: a category as it went before images stayed on the device, where counted.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    mark: str = MARK
    precision: str
    looks: str
    categories: int
    seconds_per_category: float
    seconds: float
    other_precisions: dict[str, float]
    category: list[Part]
    run: list[Part]
    before: Part | None = None
    assumptions: list[Assumption]


def predict(
    countings: Sequence[Counting], options: Options, counts: Counts, *, every: bool
) -> Prediction:
    """Predict for the first of ``countings``, and a category's seconds for the others' precisions.

    ``every``: each level is run on every image.
    """
    counting, *others = countings
    target = counting.target
    category = category_parts(counting, options, counts, every=every)
    run = run_parts(counting)
    each = _longest(category)
    return Prediction(
        name=target.name,
        precision=_said(counting.precision),
        looks="every level on every image" if every else f"typical of 1,000, counted: {COUNTED}",
        categories=counts.categories,
        seconds_per_category=each,
        seconds=counts.categories * each + _longest(run),
        other_precisions={
            _said(other.precision): _longest(category_parts(other, options, counts, every=every))
            for other in others
        },
        category=category,
        run=run,
        assumptions=[Assumption(what=what, source=source) for what, source in ASSUMED],
    )


def _said(precision: str) -> str:
    return {"float32": "IEEE float32", "tf32": "TF32"}.get(precision, precision)


def _longest(parts: Sequence[Part]) -> float:
    """Seconds of parts in turn, or of the longest that goes on beside them."""
    return max(
        sum(part.seconds for part in parts if not part.beside),
        *(part.seconds for part in parts if part.beside),
    )


def _part(name: str, work: Work, target: Target, beside: bool = False) -> Part:
    return Part(
        part=name,
        multiply_adds=round(work.multiply_adds),
        bytes=round(work.bytes),
        launches=round(work.launches),
        replays=round(work.replays),
        syncs=round(work.syncs),
        pcie_bytes=round(work.to_device + work.to_host),
        host_seconds=work.host,
        seconds=work.seconds(target),
        beside=beside,
    )


def category_parts(c: Counting, options: Options, counts: Counts, *, every: bool) -> list[Part]:
    """One category's parts, in order."""
    low, targets = c.precision != "float32", options.extraction_images
    fc, conv, certify, again = _looks(c, options, counts, every, low)
    network = c.network
    convolutions = len([n for n in network.weighted("conv") if n != network.last])
    setup = Work(launches=convolutions + 1 + len(network.layers()))
    heldout = c.held(False) + c.replayed(1, counts.heldout, False, written=False)
    if low:  # those that bound the rounding are those close to the bias
        few = min(PROBE_MANY, counts.heldout)
        again += c.held(True)
        again += c.replayed(1, few, True, written=False) * TYPICAL[options.stop].heldout
    weights = network.relevant()
    hardest, _ = run_at_every_level(counts.extraction, targets, "sparsest-above")
    mask = c.held(True) + c.replayed(1, targets + hardest, True, written=False)
    mask += kernel(c.target, 0, HASHED * weights)
    mask += Work(launches=HASH_LAUNCHES + len(network.layers()))
    bits = -(-weights // 8)
    commit = kernel(c.target, 0, 10 * weights) + Work(
        launches=5, syncs=1, to_host=bits, host=COMMIT_BYTE * bits + TESTING
    )
    host = JUDGING + (0.0 if every else SCREENING[options.stop])
    parts = {
        "fc stage": fc,
        "conv stage": setup + c.held(False, levels=True) + conv,
        "certification": certify,
        "held-out test": heldout,
        "float32 rechecks": again,
        "random masks": mask * options.random_masks,
        "host": Work(host=host),
    }
    return [
        _part("scoring, levels", _scored(c, options), c.target, beside=True),
        *(_part(name, work, c.target) for name, work in parts.items()),
        _part("test, commit", commit, c.target, beside=True),
    ]


def _looks(
    c: Counting, options: Options, counts: Counts, every: bool, low: bool
) -> tuple[Work, Work, Work, Work]:
    """Looks at the fc stage, at the conv stage, that certify, and in float32 again."""
    levels = levels_run(c.network, options)
    images, none = counts.extraction, Work()
    if every:  # of low precision only a probe a level is known to be run again
        again = c.chained(levels["fc"], PROBE, True) + c.replayed(levels["conv"], PROBE, True)
        whole = c.chained(levels["fc"], images, False), c.replayed(levels["conv"], images, False)
        return *whole, none, again * low
    first = sum(run_at_every_level(images, options.extraction_images, options.stop))
    first += options.extraction_images
    t = TYPICAL[options.stop]
    fc = c.chained(levels["fc"], first, False)
    fc += c.chained(1, round(t.fc_images / t.fc), False) * t.fc
    conv = c.replayed(1, round(t.conv_images / t.conv), False) * t.conv
    certify = c.chained(1, images - first, False) * t.fc_whole
    certify += c.replayed(1, images - first, False) * t.conv_whole
    some = -(-levels["fc"] // NEAR) + 1  # levels whose rounding is tried for those around them
    tried = some * (PROBE // 2)
    again = c.chained(some, PROBE // 2, True)
    single = t.fc_rechecks - 1
    again += c.chained(1, max(1, round((t.fc_rechecked - tried) / single)), True) * single
    again += c.replayed(1, round(t.rechecked / t.rechecks), True) * t.rechecks
    again += c.held(True, levels=True)
    return fc, conv, certify, again * low


def _scored(c: Counting, options: Options) -> Work:
    """Scoring and ranking one category: forward, backward at twice its cost, level selection."""
    images, weights = options.scoring_images, c.network.relevant()
    found = Work()
    for each in c.kernels(images * options.scoring_passes(), "float32"):
        found += each * 3
    stages = len(c.network.stages)
    replayed = SCORED_STAGE * stages + SCORED_LAYER * len(c.network.layers())
    select = kernel(c.target, 0, weights * (8 * SELECTION + 1))
    decoding = DECODE * images / CORES
    return found + select + Work(
        launches=SCORED_BESIDE + stages, replays=1, replayed=replayed, syncs=1,
        to_device=images * c.pixels, host=decoding,
    )  # fmt: skip


def run_parts(c: Counting) -> list[Part]:
    """What is done once; images are run as they are decoded, and copied to the device then."""
    upload = Work(to_device=c.images * c.pixels)
    if c.sizes.resident:
        upload += kernel(c.target, 0, 2 * c.images * c.pixels)
    graphs = Work()
    if c.sizes.resident:
        precisions = 1 + (c.precision != "float32")
        one = c.captured(c.batch, True)
        graphs = (one + Work(launches=2 * one.replayed)) * CAPTURED * precisions
    return [
        _part("decoding", Work(host=c.images * DECODE / CORES), c.target),
        _part("unpruned network", c.unpruned(), c.target, beside=True),
        _part("upload of images", upload, c.target, beside=True),
        _part("graphs captured", graphs, c.target),
    ]


BEFORE_RUNS, BEFORE_BYTES, BEFORE_CHUNKS = 62_000, 8.1e9, 767  # of AlexNet at 1,000 categories
BEFORE_LAUNCHES, BEFORE_SYNCS = 60, 10  # a chunk


def before(c: Counting) -> Part:
    """A category of AlexNet's thousand where every image crossed for every category, in TF32."""
    work, size = Work(), round(BEFORE_RUNS / BEFORE_CHUNKS)
    for each in c.kernels(size, "tf32"):
        work += each
    chunk = work + Work(launches=BEFORE_LAUNCHES, syncs=BEFORE_SYNCS)
    whole = chunk * BEFORE_CHUNKS + Work(to_device=BEFORE_BYTES)
    return _part("every image crossing every category, TF32", whole, c.target)

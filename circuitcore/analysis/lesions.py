"""Necessity beside sufficiency: the network without a circuit, judged on every category.

A lesion prunes weights in the whole network, as circuits are pruned (to 0, or to what they carry on
average): those of a category's ``circuit``, or its ``private`` ones, which are in no other circuit
of the run (or in at most ``shared`` others).  Only relevant weights are in a circuit, so of the
last layer a lesion touches the category's own row, and that row is always private.  Beside every
lesion stands a ``random`` one of as many weights of each layer, of the last one as many of the same
row: a large lesion harms whatever it hits.

One pass of the lesioned network over the held-out images answers every category at once.  Held are
a copy of the weights, one or two bytes a weight for the private ones, and the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from circuitcore.analysis.evaluation import circuits_of, cost_of, prepared_run
from circuitcore.analysis.statistics import bootstrap
from circuitcore.engine.prepare import Prepared
from circuitcore.engine.runner import Runner
from circuitcore.engine.splits import Largest, Split
from circuitcore.errors import UsageError, nearest
from circuitcore.extraction.floor import random_mask
from circuitcore.extraction.judging import judge_of
from circuitcore.inputs.categories import Category as Unit
from circuitcore.inputs.read import InHand
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.network.ablation import carried
from circuitcore.network.forward import Override, Tally, forward, rows_of
from circuitcore.network.graph import Network
from circuitcore.progress import Progress
from circuitcore.records import Accuracy
from circuitcore.runs.circuitfile import read_circuit, read_shapes, stored_mask
from circuitcore.runs.folder import RunFolder, open_run
from circuitcore.scoring.seeds import unit_seed

PLACE = "lesions"
CIRCUIT, PRIVATE = "circuit", "private"
KINDS = (CIRCUIT, PRIVATE)
BYTE = 255


class LesionRow(BaseModel):
    """The images of ``category`` in the network without weights of the circuit of ``lesion``.

    ``removed`` of the ``relevant`` weights are 0.  ``unpruned``, ``lesioned``, ``random``: held-out
    accuracy of the whole network, of the lesioned one, and of one with as many weights of each
    layer removed at random.  Each is judged alone, at bias 0: an image is predicted as the category
    iff its logit is the highest of that same network's (above all others, as the unpruned network
    is judged).  ``change``: CSA lesioned - unpruned, ``random_change``: random - unpruned,
    ``beyond_random``: lesioned - random, with paired bootstrap 95 % intervals over images (of one
    random lesion, not over draws).  ``substituted``, ``random_substituted``: the method's own
    reading, the lesioned network's logit of the category at bias 0 against the other logits of the
    *unpruned* network; a lesion that lowers all logits alike shows there and not in ``lesioned``.
    """

    model_config = ConfigDict(frozen=True)

    lesion: str
    lesion_unit: int
    kind: str
    category: str
    unit: int
    removed: int
    relevant: int
    unpruned: Accuracy
    lesioned: Accuracy
    random: Accuracy
    change: float
    change_ci95: tuple[float, float]
    random_change: float
    random_change_ci95: tuple[float, float]
    beyond_random: float
    beyond_random_ci95: tuple[float, float]
    substituted: Accuracy
    random_substituted: Accuracy


class LesionSummary(BaseModel):
    """One lesion: what it does to its own category, and to the others of the run on average.

    ``own``: change of CSA of the lesion's own category, ``own_random`` that of the random lesion;
    ``others``: mean change over the other categories, with a bootstrap 95 % interval over them,
    ``others_random`` that of the random lesion; ``harmed``: how many of the ``counted`` others lose
    more than with the random lesion, their 95 % interval below 0 (by chance alone 2.5 % would).
    """

    model_config = ConfigDict(frozen=True)

    lesion: str
    kind: str
    removed: float
    own: float
    own_ci95: tuple[float, float]
    own_random: float
    others: float | None
    others_ci95: tuple[float, float] | None
    others_random: float | None
    harmed: int
    counted: int


def lesion(
    folder: Path,
    wanted: Sequence[str | int],
    progress: Progress,
    given: InHand | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    shared: int = 0,
    **engine: Any,
) -> list[LesionRow]:
    """Lesion the circuits of a run; a row a lesion and category that has held-out images.

    ``wanted``: whose circuits (none: all); every category is judged whichever are.  Kept in the
    run folder lesion by lesion, so that another call goes on.  Cost: two passes over the held-out
    images a lesion.  Raises UsageError for what does not fit and runs of other targets, InputError
    where a category is not done yet, or as `prepared_run` does.
    """
    _check(folder, kinds, shared)
    run = open_run(folder)
    if run.of_targets:
        raise UsageError(f"{folder}: lesions are of categories, not of other targets")
    units = [run.unit_of(each) for each in wanted] or list(run.units())
    done = {unit: run.circuit_path(unit) for unit in dict.fromkeys(units)}
    circuits = circuits_of(run)
    every = list(circuits.values())
    asked = [(unit, kind) for unit in done if unit in circuits for kind in kinds]
    if len(asked) < len(done) * len(kinds):
        progress.note("categories without a circuit have no lesion and are left out")
    if PRIVATE in kinds and len(every) == 1:
        progress.note("the run has one circuit: no other has its weights, so all are private")
    settings = {kind: _settings(kind, shared, every) for kind in kinds}
    found = {(u, kind): _kept(run, u, kind, settings[kind]) for u, kind in asked}
    if left := [each for each in asked if not found[each]]:
        run, prepared = prepared_run(folder, progress, given, **engine)
        _say(prepared, len(left), len(asked), progress)
        uses = use_counts(every) if any(kind == PRIVATE for _, kind in left) else {}
        progress.start("lesions", len(left))
        for unit, kind in left:
            stored = read_circuit(done[unit])
            own = stored.kept
            if kind == PRIVATE:
                own = private(own, uses, shared, prepared.runner.network.last)
            rows = _rows(prepared, stored.record.category, unit, kind, own)
            _keep(run, unit, kind, settings[kind], rows)
            found[unit, kind] = rows
            progress.advance(1, f"{stored.record.category}, {kind}")
    return [row for each in asked for row in found[each]]


def _check(folder: Path, kinds: Sequence[str], shared: int) -> None:
    if not kinds or set(kinds) - set(KINDS) or len(set(kinds)) < len(kinds):
        near = "".join(nearest(each, KINDS) for each in kinds if each not in KINDS)
        raise UsageError(
            f"lesion {folder}: kinds {list(kinds)}: {' or '.join(KINDS)}, or both{near}"
        )
    if shared < 0:
        raise UsageError(f"--shared: {shared}, 0 or more other circuits")
    if shared and PRIVATE not in kinds:
        raise UsageError("--shared: is of private lesions, and none are asked for")


def _say(prepared: Prepared, left: int, asked: int, progress: Progress) -> None:
    """What the lesions left to do will cost, in the unit of all costs."""
    images, passes = len(prepared.heldout), 2 * left
    progress.note(
        f"{left} of {asked} lesions to do, each with its random control: {passes} passes over "
        f"{images:,} held-out images, {cost_of(prepared, passes, images)}"
    )


def use_counts(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """How many of these circuits keep each weight: uint8 or uint16 [weights] by layer.

    Masks are read once, layer by layer, as they lie on disk; of the last layer, where every circuit
    has a row of its own, the numbers mean nothing.
    """
    kind = np.uint8 if len(paths) <= BYTE else np.uint16
    found = {}
    for name, shape in read_shapes(paths[0]).items():
        count = int(np.prod(shape, dtype=np.int64))
        uses = np.zeros(count, kind)
        for path in paths:
            np.add(uses, np.unpackbits(stored_mask(path, name)[:], count=count), out=uses)
        found[name] = uses
    return found


def private(
    kept: Mapping[str, Tensor], uses: Mapping[str, np.ndarray], shared: int, last: str
) -> dict[str, Tensor]:
    """Of a circuit's weights those that at most ``shared`` other circuits keep: bool by layer.

    ``uses``: `use_counts` of circuits of which it is one.
    """
    return {
        name: mask
        if name == last
        else mask & torch.from_numpy(uses[name] <= shared + 1).view(mask.shape)
        for name, mask in kept.items()
    }


def without(network: Network, unit: int, removed: Mapping[str, Tensor]) -> Override:
    """The network's weights with those of ``removed`` set to 0, of the last layer in one row.

    What they carry on average, where pruned weights do, goes to the layer's bias.  ``removed``:
    bool by layer, shaped like its relevant weights; layers of which nothing is removed are left
    out.
    """
    weights, biases, means = {}, {}, network.means
    for name, mask in removed.items():
        if not bool(mask.any()):
            continue
        whole = network.weights[name].clone()
        part = whole[unit : unit + 1] if name == network.last else whole
        if means is not None:
            biases[name] = _moved(network, name, unit, torch.where(mask.to(whole.device), part, 0))
        part.masked_fill_(mask.to(whole.device), 0)
        weights[name] = whole
    return Override(weights, biases)


def _moved(network: Network, name: str, unit: int, removed: Tensor) -> Tensor:
    """A layer's bias with what ``removed`` weights carry on average; all others of it 0."""
    assert network.means is not None
    own, rows = network.biases.get(name), rows_of(network, name, unit)
    bias = removed.new_zeros(len(network.weights[name])) if own is None else own.clone()
    bias[rows] += carried(removed, network.means.inputs[name]).to(bias.dtype)
    return bias


@torch.inference_mode()
def lesioned_logits(
    runner: Runner,
    split: Split,
    unit: int,
    removed: Mapping[str, Tensor],
    tally: Tally | None = None,
) -> Tensor:
    """All logits of the network without ``removed`` weights: float32 [N, K], on the CPU.

    Cost: a forward pass an image, from the cached boundary values where no layer before them is
    touched.
    """
    network, override = runner.network, without(runner.network, unit, removed)
    features = bool(split.features) and network.after_boundary().issuperset(override.weights)
    if runner.sizes.repeats is not None:
        network, override = runner.sizes.repeats.once(network, override)

    def run(values: dict[str, Tensor]) -> Tensor:
        return forward(network, values, [network.result], override=override, tally=tally)[0].T

    every = np.arange(len(split))
    return runner.run_chunks(split, every, network, features, 1, run, rows=network.outputs).T


def said_by(largest: Largest, unit: int) -> Tensor:
    """Images of which ``unit`` has the highest logit, above all others: bool [N]."""
    return (largest.unit == unit) & (largest.first > largest.second)


def _rows(
    prepared: Prepared, name: str, lesioned: int, kind: str, removed: Mapping[str, Tensor]
) -> list[LesionRow]:
    """One lesion and its random control on every category."""
    split, options = prepared.heldout, prepared.options
    drawn = random_mask(prepared, lesioned, removed, KINDS.index(kind))  # on the CPU, as removed
    logits = [lesioned_logits(prepared.runner, split, lesioned, each) for each in (removed, drawn)]
    largest = [split.largest, *map(Largest.of, logits)]
    sizes = [(int(mask.sum()), mask.numel()) for mask in removed.values()]
    about = {
        "lesion": name,
        "lesion_unit": lesioned,
        "kind": kind,
        "removed": sum(count for count, _ in sizes),
        "relevant": sum(count for _, count in sizes),
    }

    def row(category: Unit) -> LesionRow:
        unit = category.index
        judge = judge_of(split, unit, options.false_alarm_norm)
        said = [said_by(each, unit) for each in largest]
        whole, cut, random = (judge.of(each, 0.0) for each in said)
        pairs = [(1, 0), (2, 0), (1, 2)]
        ends = judge.difference_intervals(said, pairs, unit_seed(options.seed, unit))
        return LesionRow(
            **about,
            category=category.name,
            unit=unit,
            unpruned=whole,
            lesioned=cut,
            random=random,
            change=cut.csa - whole.csa,
            change_ci95=ends[0],
            random_change=random.csa - whole.csa,
            random_change_ci95=ends[1],
            beyond_random=cut.csa - random.csa,
            beyond_random_ci95=ends[2],
            substituted=judge.at(logits[0][:, unit], 0.0),
            random_substituted=judge.at(logits[1][:, unit], 0.0),
        )

    # 13 ms each of 30,000 images, most of it drawing resamples, which lets go of Python's lock
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(row, prepared.inputs.categories))


def summarise(rows: Sequence[LesionRow]) -> list[LesionSummary]:
    """A row a lesion, in their order."""
    found = []
    for unit, kind in dict.fromkeys((row.lesion_unit, row.kind) for row in rows):
        mine = [row for row in rows if (row.lesion_unit, row.kind) == (unit, kind)]
        own = next(row for row in mine if row.unit == unit)
        rest = [row for row in mine if row.unit != unit]
        changes = [row.change for row in rest]
        summary = LesionSummary(
            lesion=own.lesion,
            kind=kind,
            removed=own.removed / own.relevant,
            own=own.change,
            own_ci95=own.change_ci95,
            own_random=own.random_change,
            others=float(np.mean(changes)) if rest else None,
            others_ci95=bootstrap(changes, [unit, KINDS.index(kind)]),
            others_random=float(np.mean([row.random_change for row in rest])) if rest else None,
            harmed=sum(row.beyond_random_ci95[1] < 0 for row in rest),
            counted=len(rest),
        )
        found.append(summary)
    return found


def kept_changes(run: RunFolder) -> dict[str, dict[str, Any]]:
    """What lesions of a run changed, by kind, as they were kept; empty where none were.

    Each kind has ``lesions`` and ``categories`` (names), ``change`` and ``random`` float64
    [lesions, categories], ``unpruned`` float64 [categories] and how many others may ``shared``
    weights have: the fewest that were asked for.  Read a lesion at a time.
    """
    if not (run.folder / PLACE).is_dir():
        return {}
    circuits, found = circuits_of(run), {}
    every = list(circuits.values())
    for kind in KINDS:
        numbers = [0]
        if kind == PRIVATE:
            files = (run.folder / PLACE).glob(f"*.{PRIVATE}-*.json")
            numbers = sorted({int(file.stem.rpartition("-")[2]) for file in files})
        for shared in numbers:
            settings = _settings(kind, shared, every)
            rows = [each for unit in circuits if (each := _kept(run, unit, kind, settings))]
            if rows:
                found[kind] = {
                    "lesions": [each[0].lesion for each in rows],
                    "categories": [row.category for row in rows[0]],
                    "change": np.array([[row.change for row in each] for each in rows]),
                    "random": np.array([[row.random_change for row in each] for each in rows]),
                    "unpruned": np.array([row.unpruned.csa for row in rows[0]]),
                    "summary": [summarise(each)[0] for each in rows],
                    "shared": shared,
                }
                break
    return found


def _settings(kind: str, shared: int, every: Sequence[Path]) -> dict[str, Any]:
    """What rows depend on beside the circuit: private weights on the other circuits of the run."""
    if kind == CIRCUIT:
        return {}
    stems = " ".join(sorted(path.stem for path in every))
    return {"shared": shared, "circuits": hashlib.sha256(stems.encode()).hexdigest()}


def _file(run: RunFolder, unit: int, kind: str, settings: Mapping[str, Any]) -> Path:
    number = f"-{settings['shared']}" if settings else ""
    return run.folder / PLACE / f"{run.path(unit).stem}.{kind}{number}.json"


def _kept(run: RunFolder, unit: int, kind: str, settings: Mapping[str, Any]) -> list[LesionRow]:
    """Rows of one lesion as an earlier call left them; none where it made no such one."""
    try:
        found = read_sealed(_file(run, unit, kind, settings))
        return [LesionRow(**r) for r in found["rows"]] if found["settings"] == settings else []
    except (OSError, ValueError, KeyError, TypeError, ValidationError):  # or damaged: made anew
        return []


def _keep(
    run: RunFolder, unit: int, kind: str, settings: Mapping[str, Any], rows: Sequence[LesionRow]
) -> None:
    document = {"settings": settings, "rows": [row.model_dump(mode="json") for row in rows]}
    write_atomically(_file(run, unit, kind, settings), sealed(document))

"""Images that what is given away is tried on, and what the engine makes of them.

They are the run's held-out images, all of them where they are few enough to be run again: the
record's hits and false alarms must come out then.  Where the run's images cannot be had the shape
of one is made up of noise, and the engine runs on that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.analysis.giving.subject import Subject
from circuitcore.engine.footprint import Counts
from circuitcore.engine.passes import activations
from circuitcore.engine.runner import Runner, sizes_of
from circuitcore.engine.splits import Split
from circuitcore.errors import CircuitcoreError, InputError
from circuitcore.extraction.agreement import value_of
from circuitcore.extraction.judging import judge_of
from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.image_files import ImageFile, Images
from circuitcore.inputs.in_hand import probe_input
from circuitcore.inputs.pixels import Preprocessing, to_input
from circuitcore.inputs.read import images_of
from circuitcore.inputs.targets import NO_CATEGORY
from circuitcore.machine.device import machine
from circuitcore.network.forward import forward
from circuitcore.progress import Progress
from circuitcore.records import Category
from circuitcore.runs.tables import IMAGES, read_rows

ALL_UP_TO = 2000  # held-out images that are run again, every one
SOME = 256  # of more
MADE_UP = 8
BOUND = 1e-4  # of the largest activation: what another order of summation may change
CHUNK = 64
CPU = torch.device("cpu")
READY = Preprocessing(None, None, (), (), ready=True)


class Checked(BaseModel):
    """How a file's numbers stood against the engine's once it was read back.

    ``images``: how many, ``of`` what; ``largest_difference`` of an activation (with the circuit's
    bias), of ``allowed``; ``hits`` and ``false_alarms`` on all held-out images, which are the
    record's; ``judged``: of a target that is no category, the judge's value there.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    of: str
    largest_difference: float
    allowed: float
    hits: int | None = None
    false_alarms: int | None = None
    judged: float | None = None


@dataclass(frozen=True)
class Sample:
    """Images, and the circuit's activations on them as the engine has them.

    ``pixels`` as a `Split` has them; ``values``: float32 [n], without the circuit's bias;
    ``split``: with the unpruned network's logits, None of images that are made up; ``whole``:
    whether they are all of the held-out set.
    """

    subject: Subject
    pixels: np.ndarray
    preprocessing: Preprocessing
    values: Tensor
    split: Split | None
    whole: bool
    said: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: [C, H, W]."""
        return tuple(self.pixels.shape[1:])  # type: ignore[return-value]

    def batch(self, count: int) -> Tensor:
        """The first images, as the network takes them, as often as they are needed."""
        rows = np.arange(count) % len(self.pixels)
        return to_input(self.pixels[rows], self.preprocessing, CPU).contiguous()

    def run(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What a function gives for all images: float32 [n], a chunk at a time."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.pixels), CHUNK):
                part = self.pixels[start : start + CHUNK]
                parts.append(function(to_input(part, self.preprocessing, CPU).contiguous()))
        return torch.cat(parts).float().cpu()

    def check(self, what: str, found: Tensor, bias: float) -> Checked:
        """Hold activations that a file gave, which have ``bias`` in them, against the engine's.

        Raises CircuitcoreError where they differ by more than rounding, or call other images the
        category.
        """
        want = self.values.double() + bias
        difference = float((found.double() - want).abs().max())
        logits = torch.zeros(1) if self.split is None else self.split.logits[:, self.subject.unit]
        scale = max(float(self.values.abs().max()), abs(bias), float(logits.abs().max()))
        allowed = BOUND * scale + 1e-6
        if not difference <= allowed:  # NaN neither
            raise CircuitcoreError(
                f"{what}: read back it gives other activations than the run's circuit: they differ "
                f"by {difference:.2g}, {allowed:.2g} is allowed ({self.said}); nothing is left "
                "behind. Please report this"
            )
        alike = Checked(images=len(self.values), of=self.said, largest_difference=difference,
                        allowed=allowed)  # fmt: skip
        return self._counted(what, found.double() - bias, alike)

    def _counted(self, what: str, values: Tensor, alike: Checked) -> Checked:
        """The same with what the record has of the whole held-out set."""
        record, split = self.subject.stored.record, self.split
        if not self.whole or split is None or record.circuit is None:
            return alike
        if not isinstance(record, Category):
            unpruned = split.logits[:, record.index].numpy()
            judged = value_of(record.judge, values.numpy(), unpruned)
            return alike.model_copy(update={"judged": judged})
        there, bias = record.circuit.heldout, record.circuit.bias
        judge = judge_of(split, record.index, self.subject.options.false_alarm_norm)
        margins = torch.from_numpy(judge.margins) - values
        said, near = bias > margins, (bias - margins).abs() <= alike.allowed
        hits = int((said & judge.is_target).sum())
        alarms = int((said & ~judge.is_target).sum())
        off = abs(hits - round(there.hit * judge.targets)) + abs(alarms - there.false_alarms)
        if off > int(near.sum()):
            raise CircuitcoreError(
                f"{what}: read back it has {hits} hits and {alarms} false alarms on {self.said}, "
                f"the run's record {there.hit * judge.targets:.0f} and {there.false_alarms}; "
                "nothing is left behind. Please report this"
            )
        return alike.model_copy(update={"hits": hits, "false_alarms": alarms})


def sample_of(subject: Subject, progress: Progress) -> Sample | None:
    """Images to try files on; None, said in a note, where not even one can be made up.

    Cost: each image is decoded and run twice, through the unpruned network and the circuit.  Raises
    DeviceError where the device is not there or one image is too much for its memory.
    """
    preprocessing = replace(subject.model.preprocessing, decoder=subject.options.decoder)
    try:
        files, count = _chosen(subject)
        source = _source(subject)
        _check_unchanged(source, files)
        pixels = decode_all(source, files, preprocessing)
    except InputError as error:
        return _made_up(subject, preprocessing, str(error).splitlines()[0], progress)
    whole = len(files) == count
    number = f"{count:,}" if whole else f"{len(files)} of the {count:,}"
    said = f"the run's {number} held-out images"
    labels = torch.tensor([file.category for file in files])
    values, split = _run(subject, pixels, labels, progress)
    return Sample(subject, pixels, preprocessing, values, split, whole, said)


def image_shape(subject: Subject) -> tuple[int, int, int]:
    """[C, H, W] of the run's images.  Raises InputError where neither they nor their size is known.

    Cost: one image is decoded.
    """
    preprocessing = subject.model.preprocessing
    try:
        first = _chosen(subject)[0][:1]
        pixels = decode_all(_source(subject), first, preprocessing)
    except InputError as error:
        noise = _noise(subject, preprocessing, 1)
        if noise is None:
            raise InputError(f"the size of the run's images is not known: {error}") from None
        pixels = noise
    return tuple(pixels.shape[1:])  # type: ignore[return-value]


def _source(subject: Subject) -> Images:
    return subject.given.images or images_of(subject.options)


def _chosen(subject: Subject) -> tuple[list[ImageFile], int]:
    """Held-out images, all or some of every kind, and how many there are."""
    rows = read_rows(subject.run.folder / IMAGES)
    units = {each["name"]: each["index"] for each in subject.run.manifest["categories"]}
    every = [
        ImageFile(row["id"], row["path"], units.get(row["category"], NO_CATEGORY), "heldout",
                  row["sha256"])
        for row in rows if row["split"] == "heldout"
    ]  # fmt: skip
    if len(every) <= ALL_UP_TO:
        return every, len(every)
    own = [file for file in every if file.category == subject.unit][: SOME // 2]
    others = [file for file in every if file.category != subject.unit]
    step = len(others) / (SOME - len(own))
    return [*own, *(others[int(k * step)] for k in range(SOME - len(own)))], len(every)


def _check_unchanged(source: Images, files: list[ImageFile]) -> None:
    for file in files:
        if source.sha256(file.path) != file.sha256:
            raise InputError(f"{source.where(file.path)}: not the image that was swept")


def _run(
    subject: Subject, pixels: np.ndarray, labels: Tensor, progress: Progress
) -> tuple[Tensor, Split]:
    """The engine's activations of the circuit, and the unpruned network's, on these images."""
    options, count = subject.options, len(pixels)
    on = machine(options)
    network = subject.network.to(on.device)
    sizes = sizes_of(network, pixels.shape[1:], options, on, Counts(0, count, 1), pixels.itemsize)
    sizes = replace(sizes, resident=0)
    normal = subject.model.preprocessing
    runner = Runner(on, network, network, normal, sizes, progress.note)
    progress.start("the circuit and the network", 2)

    def unpruned(values: dict[str, Tensor]) -> Tensor:
        return forward(network, values, [network.result])[0].T

    split = Split(pixels, labels, torch.zeros(count, 0), {})
    rows = np.arange(count)
    with torch.inference_mode():
        logits = runner.run_chunks(split, rows, network, False, 1, unpruned, rows=network.outputs)
    progress.advance()
    split = replace(split, logits=logits.T.contiguous())
    kept = {name: mask.to(on.device) for name, mask in subject.stored.kept.items()}
    values = activations(runner, split, subject.unit, kept)
    progress.advance()
    return values.clone(), split


def _made_up(
    subject: Subject, preprocessing: Preprocessing, why: str, progress: Progress
) -> Sample | None:
    pixels = _noise(subject, preprocessing, MADE_UP)
    if pixels is None:
        progress.note(f"not tried on any image: {why}")
        return None
    said = f"{MADE_UP} images made up of noise, the run's not being here"
    progress.note(f"tried on noise, not on the run's images: {why}")
    values, _ = _run(subject, pixels, torch.full((len(pixels),), NO_CATEGORY), progress)
    return Sample(subject, pixels, READY, values, None, False, said)


def _noise(subject: Subject, preprocessing: Preprocessing, count: int) -> np.ndarray | None:
    """Network input of the run's size, float32 [count, C, H, W]; None where that is not known."""
    from circuitcore.bundled.network import INPUT_SIZE

    size: tuple[int, int] | None = None
    if subject.options.model == "bundled" or subject.options.arch == "bundled":
        size = INPUT_SIZE[1], INPUT_SIZE[2]
    known = (
        size is not None or preprocessing.crop is not None or preprocessing.transform is not None
    )
    if preprocessing.ready or not known:
        return None
    shape: Any = None
    with suppress(InputError):
        shape = probe_input(preprocessing, size).shape[1:]
    return shape and np.random.default_rng(0).standard_normal((count, *shape), np.float32)

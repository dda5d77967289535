"""What all categories share, computed once a run: model, images, unpruned logits, conv features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.footprint import Counts
from circuitcore.engine.resident import room, uploaded
from circuitcore.engine.runner import Runner, sizes_of
from circuitcore.engine.splits import Arrays, Split, taken_over
from circuitcore.engine.unpruned import mean_inputs, unpruned
from circuitcore.errors import InputError
from circuitcore.inputs.categories import check_assignment
from circuitcore.inputs.decoding import PIXELS, Decoding, Unreadable, refuse_unreadable
from circuitcore.inputs.pixels import to_input
from circuitcore.inputs.read import Inputs
from circuitcore.kernels.spans import span
from circuitcore.machine.device import Machine
from circuitcore.machine.scratch import Scratch
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.scoring.captured import CapturedRanking, can_be_captured
from circuitcore.scoring.criteria import check_criterion

# an AlexNet of 64 pixels, two cores with AMX: `python bench/e2e/precision.py`
CPU_NOTE = "on a CPU --dtype float32 is about as fast as any lower one, with the same circuits"


@dataclass(frozen=True)
class Prepared:
    """Everything the categories of a run share: what runs, and the images it runs on.

    ``scratch`` holds the pixels and boundary values of both splits.
    """

    inputs: Inputs
    options: Options
    runner: Runner
    extraction: Split
    heldout: Split
    scratch: Scratch

    @cached_property
    def ranking(self) -> CapturedRanking | None:
        """Scoring and ranking as one graph, on a GPU where the options allow it; once a run."""
        network = self.runner.network
        if not can_be_captured(network, self.options):
            return None
        return CapturedRanking(network, self.options, tuple(network.stages), self.runner.note)

    def scoring_images(self, unit: int) -> Tensor:
        """Normalised scoring images of one category, float32 on the device."""
        return self.inputs.scoring_images(unit, self.runner.machine.device)


def _checked(name: str, check: Callable[[Tensor], object], image: Tensor) -> None:
    """Hold a module in hand against the network on the run's first image [1, ...]."""
    try:
        check(image)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = " x ".join(map(str, image.shape[1:]))
        raise InputError(
            f"{name}: the module itself fails on an image of {shape}: {error}"
        ) from error


def prepare(
    inputs: Inputs,
    options: Options,
    machine: Machine,
    progress: Progress,
    given: Arrays | None = None,
) -> Prepared:
    """Decode the images and, as they come, run the unpruned network once over them.

    Then the order of the categories is checked, and where pruned weights carry means these are
    found unless the network has them (`averaging`).  ``given``: what a process with the
    same inputs made of them (`splits.give_on`); of these images nothing is decoded, run or checked
    again then.
    Cost: one forward pass over extraction and held-out images, 1 byte a pixel and 4 bytes a
    boundary value of both on disk.  Raises InputError where images do not fit the network, the
    assignment of folders to units is wrong, accuracy is near chance, or images cannot be decoded,
    all of which it lists, and DeviceError where one image at a time is too much for the memory
    budget.
    """
    try:
        return _prepare(inputs, options, machine, progress, given)
    except Unreadable:
        refuse_unreadable(inputs.source, inputs.images, inputs.model.preprocessing)
        raise


def _prepare(
    inputs: Inputs, options: Options, machine: Machine, progress: Progress, given: Arrays | None
) -> Prepared:
    network = inputs.model.network.to(machine.device)
    check_criterion(network, options, progress.note)
    low = network
    if machine.dtype != torch.float32:
        low = network.to(machine.device, machine.dtype)
    extraction_files, heldout_files = inputs.split("extraction"), inputs.split("heldout")
    counts = Counts(len(extraction_files), len(heldout_files), len(inputs.categories))
    preprocessing = inputs.model.preprocessing
    scratch = Scratch()

    def runner(pixels: np.ndarray, given: Arrays | None = None) -> Runner:
        sizes = sizes_of(network, pixels.shape[1:], options, machine, counts, pixels.itemsize)
        resident = None
        if sizes.resident:
            resident = uploaded(given, machine) if given else room(pixels, machine)
        return Runner(machine, network, low, preprocessing, sizes, progress.note, resident)

    if inputs.pool is not None:
        with span("stage", "scoring pool"):
            inputs.pool.values(machine.device)  # here, before threads that score ask for it
    if given is not None:
        found = runner(given[PIXELS], given)
        extraction, heldout = taken_over(given, extraction_files, heldout_files)
        return averaging(Prepared(inputs, options, found, extraction, heldout, scratch), progress)
    every = [*extraction_files, *heldout_files]
    if machine.device.type == "cpu" and machine.low:
        progress.note(CPU_NOTE)
    progress.start("decoding, unpruned network", len(every))
    with Decoding(inputs.source, every, preprocessing, scratch) as decoding:
        with span("stage", "shapes and memory"):
            found = runner(decoding.pixels)
        if (check := inputs.model.check) is not None:
            one = decoding.pixels[:1]  # decoded already: its size is everyone's
            with span("stage", "model check"):
                image = to_input(one, preprocessing, torch.device("cpu"))
                _checked(inputs.model.name, check, image)
        with span("stage", "unpruned extraction"):
            extraction = unpruned(found, decoding, 0, extraction_files, scratch, progress)
        with span("stage", "unpruned heldout"):
            heldout = unpruned(found, decoding, len(extraction), heldout_files, scratch, progress)
    if inputs.aim is None:
        units, labels = extraction.largest.unit.numpy(), extraction.labels.numpy()
        stop = options.labels == "checked"
        check_assignment(units, labels, inputs.categories, network.outputs, stop=stop)
    return averaging(Prepared(inputs, options, found, extraction, heldout, scratch), progress)


def averaging(prepared: Prepared, progress: Progress) -> Prepared:
    """The same with networks that have means, where pruned weights are to carry them.

    Cost: a forward pass over all scoring images, in IEEE float32; none where they are there.
    """
    inputs, runner = prepared.inputs, prepared.runner
    if not inputs.averaged:
        return prepared
    if inputs.model.network.means is None:
        with span("stage", "mean inputs"):
            inputs = inputs.averaging(mean_inputs(inputs, runner, progress))
    means = inputs.model.network.means
    means = means and means.to(runner.machine.device)
    network, low = (replace(n, means=means) for n in (runner.network, runner.low_network))
    if runner.low_network is runner.network:
        low = network
    runner = replace(runner, network=network, low_network=low)
    return replace(prepared, inputs=inputs, runner=runner)

"""The unpruned network on a set of images: logits, and the values that the fc stage starts from.

And the means of what its layers read, where pruned weights carry them.  Made once a run: a process
hands it to its workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.runner import Runner
from circuitcore.engine.splits import Split, labels_of
from circuitcore.errors import InputError
from circuitcore.inputs.decoding import Decoding, decode_all
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.pixels import to_device, to_input
from circuitcore.inputs.read import Inputs
from circuitcore.machine.chunks import Ahead, in_chunks
from circuitcore.machine.scratch import Scratch
from circuitcore.machine.state import float32_products
from circuitcore.network.ablation import Means, Sums, means_of
from circuitcore.network.forward import forward
from circuitcore.progress import Progress


@torch.inference_mode()
def unpruned(
    runner: Runner,
    decoding: Decoding,
    first: int,
    files: Sequence[ImageFile],
    scratch: Scratch,
    progress: Progress,
) -> Split:
    """The unpruned network on ``files``, each chunk of them as soon as it is decoded.

    Their pixels are the rows from ``first`` on; their boundary values go to the same rows of
    ``scratch``, under their names.  Raises InputError where a logit is not finite.
    """
    network, machine, repeats = runner.network, runner.machine, runner.sizes.repeats
    if repeats is not None:
        network, _ = repeats.once(network)
    rows = slice(first, first + len(files))
    pixels = decoding.pixels[rows]
    names = network.boundary()
    logits = torch.empty(len(files), network.outputs)
    features: dict[str, np.ndarray] = {}

    def load(part: slice) -> dict[str, Tensor]:
        decoding.wait(first + part.stop)
        if runner.resident is None:
            return {"input": to_input(pixels[part], decoding.preprocessing, machine.device)}
        mine = runner.resident.pixels[first + part.start : first + part.stop]
        mine.copy_(to_device(pixels[part], machine.device))
        return {"input": runner.normalise(mine)}

    def run(part: slice) -> None:
        *values, out = forward(network, chunks.take(part), [*names, network.result])
        logits[part] = out.cpu()
        for name, value in zip(names, values, strict=True):
            if name not in features:
                shape = len(decoding.pixels), *value.shape[1:]
                features[name] = scratch.array(name, shape, np.dtype(np.float32))[rows]
            if runner.resident is not None:
                runner.resident.keep(name, slice(first + part.start, first + part.stop), value)
            features[name][part] = value.cpu().numpy()
        progress.advance(part.stop - part.start)

    size = runner.forward_chunk()
    with float32_products("ieee"), Ahead(load, len(files), machine.device) as chunks:
        in_chunks(len(files), size, run, fallback=machine.fallback, note=progress.note)
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the unpruned network's logits are NaN or infinite on these images")
    return Split(pixels, labels_of(files), logits, features, first)


@torch.inference_mode()
def mean_inputs(inputs: Inputs, runner: Runner, progress: Progress) -> Means:
    """What pruned weights carry: the mean inputs of the unpruned network's layers, on the CPU.

    Over all scoring images of all categories, whichever of them a circuit is of: the mean over a
    category's own images would tell its circuit what the category looks like.
    """
    pixels, network, device = _scoring_pixels(inputs), runner.network, runner.machine.device
    every = Sums(network)
    progress.start("mean inputs", len(pixels))

    def run(part: slice) -> None:
        values = {"input": to_input(pixels[part], inputs.model.preprocessing, device)}
        sums = Sums(network)
        forward(network, values, [network.result], record=sums)
        every.add(sums)  # only now: where memory runs out the chunk is run again
        progress.advance(part.stop - part.start)

    # beside each activation stand its rectified copy and, while it is summed, one in float64
    size, fallback = max(1, runner.forward_chunk() // 4), runner.machine.fallback
    with float32_products("ieee"):
        in_chunks(len(pixels), size, run, fallback=fallback, note=runner.note)
    found = {name: mean.cpu() for name, mean in every.means(len(pixels)).items()}
    return means_of(inputs.model.network, found)


def _scoring_pixels(inputs: Inputs) -> np.ndarray:
    """All scoring images, decoded."""
    if inputs.pool is not None:
        return inputs.pool.pixels
    return decode_all(inputs.source, inputs.split("scoring"), inputs.model.preprocessing)

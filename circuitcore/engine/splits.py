"""The unpruned network on a set of images: logits, and the values that the fc stage starts from.

Made once a run: a process hands it to its workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.inputs.decoding import PIXELS, Decoding
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.pixels import to_input
from circuitcore.machine.chunks import Ahead, in_chunks
from circuitcore.machine.device import pick
from circuitcore.machine.scratch import Scratch
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.progress import Progress

Arrays = Mapping[str, np.ndarray]
LOGITS = "logits"  # arrays of a scratch that are neither these nor pixels are boundary values


@dataclass(frozen=True)
class Split:
    """One set of N images, decoded, with what the unpruned network makes of them.

    ``pixels`` uint8 [N, channels, height, width]; ``labels`` int64 [N], output units; ``logits``
    float32 [N, K]; ``features``: float32 [N, ...] values at the boundary between conv and fc stage
    by name (empty unless asked for), memory-mapped.
    """

    pixels: np.ndarray
    labels: Tensor
    logits: Tensor
    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)


@torch.inference_mode()
def unpruned(
    network: Network,
    decoding: Decoding,
    first: int,
    files: Sequence[ImageFile],
    chunk: int,
    scratch: Scratch | None,
    options: Options,
    progress: Progress,
) -> Split:
    """The unpruned network on ``files``, each ``chunk`` of them as soon as it is decoded.

    Their pixels are the rows from ``first`` on.  With a ``scratch`` the boundary values go there,
    under their names.  Raises InputError where a logit is not finite.
    """
    device = pick(options)
    pixels = decoding.pixels[first : first + len(files)]
    names = network.boundary() if scratch else ()
    logits = torch.empty(len(files), network.outputs)
    features: dict[str, np.ndarray] = {}

    def load(part: slice) -> dict[str, Tensor]:
        decoding.wait(first + part.stop)
        return {"input": to_input(pixels[part], decoding.preprocessing, device)}

    def run(part: slice) -> None:
        *values, out = forward(network, chunks.take(part), [*names, network.last])
        logits[part] = out.cpu()
        for name, value in zip(names, values, strict=True):
            if name not in features:
                assert scratch is not None  # else there are no names
                shape = len(files), *value.shape[1:]
                features[name] = scratch.array(name, shape, np.dtype(np.float32))
            features[name][part] = value.cpu().numpy()
        progress.advance(part.stop - part.start)

    with Ahead(load, len(files), device) as chunks:
        in_chunks(len(files), chunk, run, fallback=not options.no_fallback, note=progress.note)
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the unpruned network's logits are NaN or infinite on these images")
    return Split(pixels, labels_of(files), logits, features)


def give_on(scratch: Scratch, splits: Sequence[Split]) -> None:
    """Complete a ``scratch`` of pixels and boundary values for `taken_over` in another process."""
    logits = torch.cat([split.logits for split in splits]).numpy()
    scratch.array(LOGITS, logits.shape, logits.dtype)[:] = logits


def taken_over(
    given: Arrays, extraction: Sequence[ImageFile], heldout: Sequence[ImageFile]
) -> tuple[Split, Split]:
    """The extraction and held-out set of another process, from the arrays of its scratch."""
    pixels, count = given[PIXELS], len(extraction)
    logits = torch.from_numpy(given[LOGITS].copy())
    features = {name: array for name, array in given.items() if name not in (PIXELS, LOGITS)}
    return (
        Split(pixels[:count], labels_of(extraction), logits[:count], features),
        Split(pixels[count:], labels_of(heldout), logits[count:], {}),
    )


def labels_of(files: Sequence[ImageFile]) -> Tensor:
    """Output units of images: int64 [N]."""
    return torch.tensor([file.category for file in files])

"""How an image becomes pixels, and pixels network input.

Every file is converted to RGB (or to gray for a network of one input channel) by one policy,
`images.policy`.  A transform in hand takes the place of resizing and cropping, and of normalising
where its result is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.inputs.images import codec
from circuitcore.inputs.images.policy import check_size, converted, opened


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], subtract mean, divide by std.

    ``resize`` and ``crop`` in pixels, None to leave the size as it is.  ``transform``: called with
    the converted image in place of both; a tensor that it gives is network input as it is, an image
    is scaled and normalised as said.  ``ready``: images come as tensors that are network input.
    ``decoder``: ``pillow`` or ``torchcodec``, for images in files.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = "bilinear"
    transform: Callable[[Image.Image], Any] | None = None
    ready: bool = False
    decoder: str = "pillow"


def decode(file: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Pixels of one file, resized and cropped: uint8 [channels, height, width].

    float32 where a transform in hand gives tensors.  Raises InputError where the file is no whole
    image or has over 100 million pixels.
    """
    return decode_bytes(read_file(file, str(file)), str(file), preprocessing)


def read_file(file: Path, where: str) -> bytes:
    """The bytes of a file, links followed.

    Raises InputError where it is no plain file or cannot be read.
    """
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise InputError(f"{where}: cannot be read: no plain file")  # a pipe would block
        return file.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read: {why}") from None


def decode_bytes(content: bytes, where: str, preprocessing: Preprocessing) -> np.ndarray:
    """`decode` of a file's bytes; messages call it ``where``."""
    if preprocessing.decoder == "pillow":
        return decode_opened(lambda: opened(content, where), where, preprocessing)
    with _readable(where), opened(content, where) as image:
        check_size(image.width, image.height, where, _resize(preprocessing))
        if codec.decodes(image):
            image = codec.decoded(content, image, preprocessing.channels)
        else:
            image.load()
            image = converted(image, preprocessing.channels, where)
    return _finished(image, where, preprocessing)


def decode_opened(
    opener: Callable[[], AbstractContextManager[Image.Image] | Tensor],
    where: str,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """`decode` of what ``opener`` gives; messages call it ``where``."""
    with _readable(where):
        found = opener()
        if isinstance(found, Tensor):
            return _given(found, preprocessing)
        with found as image:
            check_size(image.width, image.height, where, _resize(preprocessing))
            image.load()
            image = converted(image, preprocessing.channels, where)
    return _finished(image, where, preprocessing)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Whatever decoders raise (OSError, SyntaxError, struct.error ...) as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: not a readable image: {error}") from None


def _resize(preprocessing: Preprocessing) -> int | None:
    """The size that the shorter side is made, by a transform in hand too as far as it says so."""
    if preprocessing.transform is None:
        return preprocessing.resize
    for step in getattr(preprocessing.transform, "transforms", ()):
        size = getattr(step, "size", None) if type(step).__name__ == "Resize" else None
        if isinstance(size, Sequence) and len(size) == 1:
            size = size[0]
        if isinstance(size, int):
            return size
    return None


def _finished(image: Image.Image, where: str, preprocessing: Preprocessing) -> np.ndarray:
    """A converted image, resized and cropped or transformed."""
    if preprocessing.ready:
        raise InputError(
            f"{where}: an image, where tensors were said to come ready (transform=None): "
            "give the model the transform that makes its input"
        )
    try:
        return _array(_sized(image, preprocessing), preprocessing.channels)
    except InputError:
        raise
    except Exception as error:  # of a transform in hand, of any kind
        raise InputError(f"{where}: resizing or the transform failed: {error}") from error


def _given(found: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    if not preprocessing.ready:
        raise InputError(
            "the data set's own transform already gives tensors: give it without one, or give "
            "the model transform=None if these tensors are its input"
        )
    return _array(found, preprocessing.channels)


def _array(found: Image.Image | Tensor, channels: int) -> np.ndarray:
    """[channels, height, width]: uint8 of an image, float32 of a tensor."""
    if isinstance(found, Tensor) and found.dim() == 3 and found.shape[0] == channels:
        return found.detach().cpu().float().numpy()
    if not isinstance(found, Image.Image) or found.mode != ("L" if channels == 1 else "RGB"):
        what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else (
            f"an image of mode {found.mode}" if isinstance(found, Image.Image)
            else type(found).__name__
        )  # fmt: skip
        raise InputError(
            f"the transform gave {what}; a tensor [{channels}, height, width] is needed, or an "
            f"image of mode {'L' if channels == 1 else 'RGB'}"
        )
    pixels = np.asarray(found)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _sized(image: Image.Image, preprocessing: Preprocessing) -> Image.Image | Tensor:
    if preprocessing.transform is not None:
        made: Image.Image | Tensor = preprocessing.transform(image)
        return made
    if preprocessing.resize is None and preprocessing.crop is None:
        return image
    from torchvision.transforms import InterpolationMode, functional  # seconds to import

    if preprocessing.resize is not None:
        mode = InterpolationMode(preprocessing.interpolation)
        image = functional.resize(image, [preprocessing.resize], interpolation=mode)
    if preprocessing.crop is not None:
        image = functional.center_crop(image, [preprocessing.crop])
    return image


def to_input(pixels: np.ndarray, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalised network input, float32 [images, channels, height, width], channels-last.

    ``pixels``: uint8, or float32 that is network input already.
    """
    return normaliser(preprocessing, device)(to_device(pixels, device))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device; to a GPU from pinned memory, so that the caller is not held up."""
    batch = torch.from_numpy(np.ascontiguousarray(array))
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch


@dataclass(frozen=True)
class Normaliser:
    """Makes pixels on a device network input, as `to_input` does; ``mean``, ``std``: [channels]."""

    mean: Tensor
    std: Tensor

    def __call__(self, batch: Tensor) -> Tensor:
        # channels-last: convolutions run faster on it; in place: new memory costs more than sums
        images = torch.empty(batch.shape, device=batch.device, memory_format=torch.channels_last)
        images.copy_(batch)
        if batch.dtype != torch.uint8:
            return images
        mean, std = (each.view(1, -1, 1, 1) for each in (self.mean, self.std))
        return images.div_(255).sub_(mean).div_(std)


def normaliser(preprocessing: Preprocessing, device: torch.device) -> Normaliser:
    """Of a preprocessing, its constants on a device."""
    mean, std = (
        to_device(np.array(values, np.float32), device)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return Normaliser(mean, std)

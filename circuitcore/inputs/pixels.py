"""How an image file becomes pixels, and pixels network input.

Decoding is Pillow's, one policy for every file: converted to RGB (or to gray for a network of one
input channel) as torchvision's folder loader does, so transparency is dropped and EXIF rotation is
not applied; 16-bit gray is scaled to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from circuitcore.errors import InputError

LARGEST = 100_000_000  # pixels; more is refused as a decompression bomb
DECODER = f"pillow-{PIL.__version__}"


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], subtract mean, divide by std.

    ``resize`` and ``crop`` in pixels, None to leave the size as it is.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = "bilinear"


def decode(file: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Pixels of one file, resized and cropped: uint8 [channels, height, width].

    Raises InputError where the file is no whole image or has over 100 million pixels.
    """
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > LARGEST:
                raise InputError(
                    f"{file}: {opened.width} x {opened.height} pixels, refused: at most {LARGEST:,}"
                )
            opened.load()
            image = _converted(opened, preprocessing.channels)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct...
        raise InputError(f"{file}: not a readable image: {error}") from None
    pixels = np.asarray(_sized(image, preprocessing))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _sized(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if preprocessing.resize is None and preprocessing.crop is None:
        return image
    from torchvision.transforms import InterpolationMode, functional  # seconds to import

    if preprocessing.resize is not None:
        mode = InterpolationMode(preprocessing.interpolation)
        image = functional.resize(image, [preprocessing.resize], interpolation=mode)
    if preprocessing.crop is not None:
        image = functional.center_crop(image, [preprocessing.crop])
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion clips instead of scaling
        gray = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(gray, 0, 65535) // 257).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def to_input(pixels: np.ndarray, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalised network input, float32 [images, channels, height, width], from uint8 pixels."""
    batch = torch.from_numpy(np.ascontiguousarray(pixels))
    if device.type == "cuda":  # from pinned memory the copy does not hold up the caller
        batch = batch.pin_memory().to(device, non_blocking=True)
    mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
    # channels-last: convolutions run faster on it; in place: new memory costs more than the sums
    images = torch.empty(batch.shape, device=device, memory_format=torch.channels_last)
    return images.copy_(batch).div_(255).sub_(mean).div_(std)

"""TorchCodec in Pillow's place (``--decoder torchcodec``), held to the same policy.

Its `torchcodec.decoders.decode_image` (from 0.16) decodes JPEG, PNG, WebP and AVIF; what it does
otherwise than `policy` is left to Pillow: other formats, palettes, animations, CMYK, more than 8
bits a value.  It always applies the EXIF rotation, which is taken back here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import PIL
from PIL import Image
from PIL.Image import Transpose

from circuitcore.errors import UsageError

FORMATS = {"JPEG", "PNG", "WEBP", "AVIF"}
MODES = {"L", "LA", "RGB", "RGBA"}
ORIENTATION = 0x0112
BACK = {  # what undoes each EXIF orientation
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def decoder_name(decoder: str) -> str:
    """What a unit's key says of the decoder.  Raises UsageError where it is not installed."""
    pillow = f"pillow-{PIL.__version__}"
    return pillow if decoder == "pillow" else f"torchcodec-{_torchcodec()[1]}+{pillow}"


@functools.cache
def _torchcodec() -> tuple[Callable[..., Any], str]:
    """TorchCodec's `decode_image` and version."""
    try:
        decode = import_module("torchcodec.decoders").decode_image
        return decode, str(import_module("torchcodec").__version__)
    except AttributeError:
        why = "this one is older than 0.16, which decodes images"
    except Exception as error:  # its libraries fail to load in many ways
        said = str(error).strip().splitlines()
        why = said[0] if said else type(error).__name__
    raise UsageError(
        f"--decoder torchcodec: TorchCodec cannot be used ({why}): pip install 'torchcodec>=0.16', "
        "of the release that goes with this torch, or --decoder pillow"
    ) from None


def decodes(image: Image.Image) -> bool:
    """Whether TorchCodec decodes an image, whose header is read, as `policy` says."""
    deep = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    still = getattr(image, "n_frames", 1) == 1
    return image.format in FORMATS and image.mode in MODES and still and not deep


def decoded(content: bytes, image: Image.Image, channels: int) -> Image.Image:
    """The pixels of ``content``, whose header is ``image``: gray or RGB, not rotated."""
    mode = "GRAY" if channels == 1 else "RGB"
    pixels = np.asarray(_torchcodec()[0](content, mode=mode))
    made = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0).copy())
    back = BACK.get(image.getexif().get(ORIENTATION, 1))
    return made if back is None else made.transpose(back)

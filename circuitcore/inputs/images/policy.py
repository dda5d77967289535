"""What becomes of an image file: which are read, and how their values become 8-bit RGB or gray.

The one policy, as `PIL.Image.convert` and torchvision's folder loader have it but for two rows:

    bits            8 as they are, 1 as 0 and 255; RGB of 16 bits: the upper 8
    16-bit gray     divided by 257, so that the whole range is kept (Pillow would clip at 255);
                    where nothing reaches 4096, 12 bits are stored in 16: a warning, still / 257
    32-bit, signed, a file of integers or floats has no scale of its own: integers are refused,
    float           floats read as 0 to 255 if they are that; in [0, 1], beyond, NaN: refused
    colour profile  ignored, no conversion to sRGB
    EXIF rotation   not applied
    alpha           dropped, without blending
    palette, CMYK,  by Pillow's conversion
    YCbCr, LAB
    animation       the first frame
    size            at most 100 million pixels, before and after resizing

Files are told apart by content.  What Pillow hands to other programs or cannot decode itself
(EPS, WMF, HDF5 ...) is not opened.
"""

from __future__ import annotations

import functools
import io
import warnings
from os.path import splitext
from pathlib import Path

import numpy as np
from PIL import Image

from circuitcore.errors import InputError

LARGEST = 100_000_000  # pixels; more is refused as a decompression bomb
FOREIGN = {"EPS", "BUFR", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
TWELVE_BITS = 4096


@functools.cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are opened: all that this Pillow decodes itself."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - FOREIGN))


@functools.cache
def extensions() -> frozenset[str]:
    """Endings of the files that are taken for images, in small letters with their dot."""
    known = set(formats())
    return frozenset(e for e, name in Image.registered_extensions().items() if name in known)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    last = name.rpartition("/")[2]
    return splitext(last)[1].lower() in extensions() and not last.startswith(".")


class _Named(io.BytesIO):
    """A file's bytes, which Pillow's messages call as ours do."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(content)
        self.where = where

    def __repr__(self) -> str:
        return repr(self.where)


def opened(content: bytes | Path, where: str = "") -> Image.Image:
    """An image whose header is read; messages call it ``where``.  Raises what Pillow raises."""
    source = content if isinstance(content, Path) else _Named(content, where)
    return Image.open(source, formats=formats())


def check_size(width: int, height: int, where: str, resize: int | None = None) -> None:
    """Raise InputError where an image has too many pixels, or gets them as it is resized."""
    if width * height > LARGEST:
        raise InputError(f"{where}: {width} x {height} pixels, refused: at most {LARGEST:,}")
    if resize is None or not width or not height:
        return
    longer = round(max(width, height) * resize / min(width, height))
    if longer * resize > LARGEST:
        raise InputError(
            f"{where}: {width} x {height} pixels become {resize} x {longer:,} as the shorter side "
            f"is made {resize}, refused: at most {LARGEST:,}"
        )


def converted(image: Image.Image, channels: int, where: str) -> Image.Image:
    """A loaded image as RGB, or as gray (L) for one channel.  Raises InputError."""
    if image.mode.startswith("I"):
        image = _eight_bits(image, where)
    elif image.mode == "F":
        _check_floats(image, where)
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Of 16-bit gray, which older Pillows and PGM files give in 32 bits."""
    if image.mode == "I" and image.format not in (None, "PNG", "PPM"):
        raise InputError(
            f"{where}: signed or 32-bit integers, which have no scale: save it with 8 or 16 bits"
        )
    gray = np.asarray(image).astype(np.int64)
    if image.mode == "I" and image.format is None and (gray.min() < 0 or gray.max() > 65535):
        raise InputError(f"{where}: integers beyond 16 bits, which have no scale")
    if 255 < gray.max() < TWELVE_BITS:
        warnings.warn(
            "16-bit images with nothing above 4095: data of 12 bits comes out nearly black; "
            "multiply it by 16 and save it anew",
            stacklevel=2,
        )
    return Image.fromarray((np.clip(gray, 0, 65535) // 257).astype(np.uint8))


def _check_floats(image: Image.Image, where: str) -> None:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: floats that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255 or 0 < high <= 1:
        raise InputError(
            f"{where}: floats from {low:.4g} to {high:.4g}, where 0 to 255 are needed: save it "
            "with 8 or 16 bits"
        )

"""5 and 6: images of sizes that are no use, or that would fill the memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from circuitcore.errors import InputError
from circuitcore.inputs.pixels import Preprocessing, decode_bytes

OWN = Preprocessing(None, None, (0.5,) * 3, (0.2,) * 3)
SIZED = Preprocessing(224, 224, (0.5,) * 3, (0.2,) * 3)


def png(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels; none of them is in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(10_001, 10_000), (2**31 - 1, 2**31 - 1), (40_000, 40_000)])
def test_5_a_bomb_is_refused_by_its_header(size):
    with pytest.raises(InputError, match=r"bomb\.png: .*(pixels|image)"):
        decode_bytes(png(*size), "bomb.png", OWN)


def test_5_what_resizing_would_blow_up_is_refused_before(monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("resized"))
    content = io.BytesIO()
    Image.fromarray(np.zeros((1, 10_000, 3), np.uint8)).save(content, "PNG")
    with pytest.raises(InputError, match=r"thin\.png: 10000 x 1 pixels become 224 x 2,240,000"):
        decode_bytes(content.getvalue(), "thin.png", SIZED)


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1)])
def test_6_the_smallest_and_the_longest(size):
    content = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(content, "PNG")
    pixels = decode_bytes(content.getvalue(), "small.png", OWN)
    assert pixels.shape == (3, size[1], size[0]) and (pixels[2] == 3).all()
    if size == (1, 1):
        whole = decode_bytes(content.getvalue(), "small.png", SIZED)
        assert whole.shape == (3, 224, 224) and (whole[0] == 1).all()

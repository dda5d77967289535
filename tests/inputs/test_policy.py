"""What becomes of every kind of image file, by each decoder: `circuitcore.inputs.images.policy`."""

import io
import struct
import sys
import types
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torchvision import transforms

import circuitcore.inputs.images.policy as policy
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.images import codec
from circuitcore.inputs.in_hand import preprocessing_of
from circuitcore.inputs.pixels import Preprocessing, decode, decode_bytes

RGB = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
GRAY = Preprocessing(None, None, (0.5,), (0.5,), 1)
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (5, 6, 3), dtype=np.uint8)
GRAYS = RANDOM.integers(0, 256, (5, 6), dtype=np.uint8)


def saved(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def rgb(content, preprocessing=RGB):
    """[H, W, channels] as it is decoded."""
    return decode_bytes(content, "it", preprocessing).transpose(1, 2, 0)


def png16(values):
    """A PNG file of 16-bit RGB, which Pillow reads and does not write."""
    height, width, _ = values.shape

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))  # fmt: skip


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def profile():
    """Of a space far from sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def decode_by_pillow(source, *, mode="RGB", output_dtype=torch.uint8):
    """TorchCodec's `decode_image` as it is documented, by Pillow.

    [C, H, W] of bytes, always turned as EXIF says; RuntimeError or ValueError for what it cannot
    read.
    """
    assert isinstance(source, bytes) and output_dtype == torch.uint8
    image = Image.open(io.BytesIO(source))
    if image.format not in ("JPEG", "PNG", "WEBP", "GIF", "AVIF"):
        raise ValueError("Unsupported or unrecognized image format.")
    try:
        image = ImageOps.exif_transpose(image).convert({"RGB": "RGB", "GRAY": "L"}[mode])
    except Exception as error:
        raise RuntimeError(f"decode: {error}") from None
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@pytest.fixture
def fresh():
    """TorchCodec is looked for anew, and again afterwards."""
    codec._torchcodec.cache_clear()
    yield
    codec._torchcodec.cache_clear()


@pytest.fixture(params=["stand-in", "installed"])
def torchcodec(request, monkeypatch, fresh):
    """TorchCodec if it is installed, and a stand-in."""
    if request.param == "installed":
        return pytest.importorskip("torchcodec.decoders", exc_type=Exception)
    module, decoders = (types.ModuleType(n) for n in ("torchcodec", "torchcodec.decoders"))
    module.__version__, decoders.decode_image = "0.99", decode_by_pillow
    monkeypatch.setitem(sys.modules, "torchcodec", module)
    return monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)


@pytest.fixture(params=["pillow", "torchcodec"])
def decoder(request, torchcodec):
    """Each decoder's name."""
    return request.param


def test_eight_bits_stay_as_they_are():
    assert np.array_equal(rgb(saved(Image.fromarray(COLOURS))), COLOURS)
    assert np.array_equal(rgb(saved(Image.fromarray(GRAYS)), GRAY)[..., 0], GRAYS)
    assert np.array_equal(rgb(saved(Image.fromarray(GRAYS))), np.stack([GRAYS] * 3, 2))
    bits = GRAYS > 127
    assert np.array_equal(rgb(saved(Image.fromarray(bits)), GRAY)[..., 0], bits * 255)
    luma = np.asarray(Image.fromarray(COLOURS).convert("L"))
    assert np.array_equal(rgb(saved(Image.fromarray(COLOURS)), GRAY)[..., 0], luma)


def test_alpha_is_dropped_without_blending():
    alpha = Image.fromarray(np.dstack([COLOURS, GRAYS]), "RGBA")
    assert np.array_equal(rgb(saved(alpha)), COLOURS)
    with_gray = Image.merge("LA", [Image.fromarray(GRAYS)] * 2)
    assert np.array_equal(rgb(saved(with_gray), GRAY)[..., 0], GRAYS)


def test_palettes_give_their_colours_transparent_or_not():
    image = Image.fromarray(COLOURS).quantize(16)
    want = np.asarray(image.convert("RGB"))
    assert np.array_equal(rgb(saved(image)), want)
    assert np.array_equal(rgb(saved(image, transparency=3)), want)
    assert np.array_equal(rgb(saved(image, "GIF")), want)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colours_are_converted_as_pillow_does(mode):
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            Image.fromarray(COLOURS), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
    else:
        image = Image.fromarray(COLOURS).convert(mode)
    content = saved(image, "TIFF")
    want = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(rgb(content), np.asarray(want))


def test_a_colour_profile_is_ignored():
    plain, marked = (saved(Image.fromarray(COLOURS), icc_profile=p) for p in (None, profile()))
    assert plain != marked and Image.open(io.BytesIO(marked)).info["icc_profile"]
    assert np.array_equal(rgb(marked), COLOURS)


@pytest.mark.parametrize("number", range(1, 9))
def test_the_exif_rotation_is_not_applied(number, decoder):
    content = saved(Image.fromarray(COLOURS), exif=turned(number))
    assert np.array_equal(rgb(content, replace(RGB, decoder=decoder)), COLOURS)


def test_an_animation_is_its_first_frame():
    frames = [Image.fromarray(np.full((5, 6, 3), v, np.uint8)) for v in (10, 200)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(rgb(content), np.full((5, 6, 3), 10)), form


WIDE = np.array([[0, 256, 257, 4096], [32768, 65278, 65279, 65535]], np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(form):
    want = WIDE.astype(int) // 257
    assert np.array_equal(rgb(saved(Image.fromarray(WIDE), form), GRAY)[..., 0], want)
    assert want.max() == 255 and want[0, 3] == 15


def test_the_upper_bits_of_deep_colours_are_taken():
    values = RANDOM.integers(0, 65536, (5, 6, 3))
    assert np.array_equal(rgb(png16(values)), values >> 8)


def test_twelve_bits_in_sixteen_are_swept_with_a_warning():
    values = RANDOM.integers(0, 4096, (5, 6)).astype(np.uint16)
    values[0, 0] = 4095
    with pytest.warns(UserWarning, match="data of 12 bits comes out nearly black"):
        found = rgb(saved(Image.fromarray(values), "TIFF"), GRAY)
    assert np.array_equal(found[..., 0], values // 257)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgb(saved(Image.fromarray(values * 16), "TIFF"), GRAY)
        rgb(saved(Image.fromarray(values * 0), "TIFF"), GRAY)


@pytest.mark.parametrize("scale", [1, 200, 70_000, -1])
def test_integers_without_a_scale_are_refused(scale):
    content = saved(Image.fromarray(GRAYS.astype(np.int32) * scale), "TIFF")
    with pytest.raises(InputError, match="it: signed or 32-bit integers, which have no scale"):
        rgb(content)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 0.25, 1.0], "floats from 0 to 1, where 0 to 255 are needed"),
        ([0.0, 255.5], "floats from 0 to 255.5"),
        ([-1.0, 200.0], "floats from -1 to 200"),
        ([0.0, float("nan")], "NaN or infinite"),
        ([0.0, float("inf")], "NaN or infinite"),
    ],
)
def test_floats_on_another_scale_are_refused(values, said):
    content = saved(Image.fromarray(np.array([values], np.float32)), "TIFF")
    with pytest.raises(InputError, match=f"it: .*{said}"):
        rgb(content)


def test_floats_from_0_to_255_are_read_as_pillow_does():
    image = Image.fromarray(GRAYS.astype(np.float32))
    assert np.array_equal(rgb(saved(image, "TIFF"), GRAY)[..., 0], GRAYS)
    black = Image.fromarray(np.zeros((5, 6), np.float32))
    assert not rgb(saved(black, "TIFF")).any()


def test_what_a_data_set_in_hand_gives_is_held_to_the_same():
    wide = Image.fromarray(GRAYS.astype(np.int32) * 257)
    assert np.array_equal(policy.converted(wide, 1, "it"), GRAYS)
    for values in (GRAYS.astype(np.int32) * 300, GRAYS.astype(np.int32) - 1):
        with pytest.raises(InputError, match="beyond 16 bits"):
            policy.converted(Image.fromarray(values), 1, "it")


def test_an_image_that_resizing_makes_huge_is_refused(tmp_path):
    file = tmp_path / "thread.png"
    Image.new("L", (1, 40_000)).save(file)
    with pytest.raises(InputError, match=r"thread.png: 1 x 40000 pixels become 256 x 10,240,000"):
        decode(file, replace(RGB, resize=256, crop=224))
    assert decode(file, RGB).shape == (3, 40_000, 1)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    normal = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    for whole in (transforms.Compose(steps), transforms.Compose([*steps, normal])):
        with pytest.raises(InputError, match="become 256 x 10,240,000"):
            decode(file, preprocessing_of(whole, 3))
    with pytest.raises(InputError, match="20000 x 20000 pixels, refused"):
        policy.check_size(20_000, 20_000, "it")
    policy.check_size(500, 375, "it", 256)


def test_files_are_told_by_content_and_programs_are_not_called(tmp_path, monkeypatch):
    assert np.array_equal(rgb(saved(Image.fromarray(COLOURS), "BMP")), COLOURS)
    script = saved(Image.fromarray(COLOURS), "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("called"))
    with pytest.raises(InputError, match="not a readable image: cannot identify"):
        rgb(script)
    assert {".eps", ".pdf", ".h5", ".fits"}.isdisjoint(policy.extensions())
    assert {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif",
            ".jfif", ".jpe", ".avif", ".jp2"} <= policy.extensions()  # fmt: skip


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "BMP"])
def test_cut_and_spoiled_files_are_refused_with_their_name(form, decoder):
    """Never anything but an InputError."""
    preprocessing = replace(RGB, decoder=decoder)
    whole = saved(Image.fromarray(COLOURS).resize((40, 30)), form)
    refused = 0
    for cut in np.linspace(0, len(whole) - 1, 12).astype(int):
        spoiled = bytearray(whole)
        spoiled[cut : cut + 8] = b"\xff" * len(spoiled[cut : cut + 8])
        for content in (whole[:cut], bytes(spoiled)):
            try:
                decode_bytes(content, "it", preprocessing)
            except InputError as error:
                assert str(error).startswith("it: ")
                refused += 1
    assert refused >= 8


# --- TorchCodec -----------------------------------------------------------------------------------


BY_TORCHCODEC = replace(RGB, decoder="torchcodec")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_torchcodec_gives_pillows_pixels_within_rounding(form, torchcodec):
    muted = Image.fromarray(COLOURS // 2 + 64)  # no colour is clipped on its way to gray
    content = saved(muted.resize((40, 30)), form)
    assert codec.decodes(Image.open(io.BytesIO(content)))
    for own in (RGB, GRAY):
        found = decode_bytes(content, "it", replace(own, decoder="torchcodec")).astype(int)
        assert np.abs(found - decode_bytes(content, "it", own)).max() <= 2
    resized = replace(BY_TORCHCODEC, resize=16, crop=12)
    assert decode_bytes(content, "it", resized).shape == (3, 12, 12)


def test_what_torchcodec_does_otherwise_is_left_to_pillow(torchcodec):
    palette = Image.fromarray(COLOURS).quantize(16)
    frames = [Image.fromarray(np.full((5, 6, 3), v, np.uint8)) for v in (10, 200)]
    for content in (
        saved(Image.fromarray(WIDE)), png16(RANDOM.integers(0, 65536, (5, 6, 3))), saved(palette),
        saved(palette, "GIF"), saved(Image.fromarray(COLOURS), "TIFF"),
        saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    ):  # fmt: skip
        assert not codec.decodes(Image.open(io.BytesIO(content)))
        assert np.array_equal(rgb(content, BY_TORCHCODEC), rgb(content))
    alpha = saved(Image.fromarray(np.dstack([COLOURS, GRAYS]), "RGBA"))
    assert codec.decodes(Image.open(io.BytesIO(alpha)))
    assert np.array_equal(rgb(alpha, BY_TORCHCODEC), COLOURS)


@pytest.mark.parametrize("what", ["absent", "too old", "broken"])
def test_torchcodec_that_cannot_be_used_is_said(what, monkeypatch, fresh):
    broken = types.ModuleType("torchcodec.decoders")
    if what == "broken":

        def fail(name):
            raise OSError("libtorchcodec.so: undefined symbol\nand much more")

        broken.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "torchcodec", None if what == "absent" else broken)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None if what == "absent" else broken)
    with pytest.raises(UsageError, match="--decoder torchcodec: .*pip install") as error:
        codec.decoder_name("torchcodec")
    said = {"absent": "torchcodec", "too old": "older than 0.16", "broken": "undefined symbol)"}
    assert said[what] in str(error.value)
    assert codec.decoder_name("pillow").startswith("pillow-")

"""The kernel of the first convolution against the equation in float64."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from circuitcore.kernels.first_conv import gpu
from circuitcore.kernels.first_conv.blocks import blocks

spec = importlib.util.spec_from_file_location(
    "test_first_conv", Path(__file__).parent.parent / "kernels" / "test_first_conv.py"
)
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@settings(deadline=None, max_examples=25)
@given(**plain.SHAPES)
def test_equals_float64(dtype, **shape):
    plain.check("triton", dtype=dtype, **shape)


def test_padding_is_exactly_zero_and_every_block_is_written(monkeypatch):
    """The mean's own byte would be -0.01: what lies outside is 0, not a normalised 0."""
    pixels, *_, mean, std = plain.problem(2, (6, 7))
    form = blocks((3, 5, 5), (3, 3), (2, 2), 2)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **o: empty(*a, **o).fill_(torch.nan))
    got = gpu.normalised_blocks(pixels, None, mean, std, (2, 2), form, torch.float32)
    monkeypatch.undo()
    assert got.isfinite().all()
    pixel = got.reshape(2, form.channels, *form.size)[:, :12].view(2, 2, 2, 3, *form.size)
    image = pixel.permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 2 * form.size[0], 2 * form.size[1])
    assert (image[:, :, :2] == 0).all() and (image[..., :2] == 0).all()
    want = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    shown = image[:, :, 2:8, 2:9]
    torch.testing.assert_close(shown, want[:, :, : shown.shape[2], : shown.shape[3]])

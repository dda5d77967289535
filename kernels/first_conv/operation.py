"""The first convolution of a network, from the bytes of images that stay on the device.

    out[n, o, p] = act( sum_{c,r,s}  W[o, c, r, s]  z[n, c, p_rs]  +  b[o] )
    z[n, c, q] = (pixels[index[n], c, q] / 255 - mean[c]) / std[c],  0 outside the image

with ``p_rs = p * stride - padding + (r, s)``: what is padded is padded after normalising.  z is
rounded to the weight's dtype, sums are accumulated in float32 (float64 for float64).
"""

from __future__ import annotations

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.first_conv.reference import first_conv_reference

Pair = tuple[int, int]


def first_conv(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    index: torch.Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    relu: bool,
    impl: str = "auto",
) -> torch.Tensor:
    """[N, O, OH, OW], channels-last in memory, in the weight's dtype.

    ``pixels`` uint8 ``[M, C, H, W]``; ``weight`` ``[O, C, R, S]``, masked already; ``bias`` ``[O]``
    or None; ``mean`` and ``std`` float32 ``[C]``, of pixels as 0..1; ``index`` int32 or int64
    ``[N]``, which images (None: all; indices out of range are not looked for on a GPU).  All on one
    device.  Nothing waits for a GPU and no tensor is uploaded: it can be captured in a graph.
    float32 products are those of the library's convolutions (TF32 where
    ``torch.backends.cudnn.allow_tf32`` says so).  ``impl`` as in `dispatch.choose`.  Raises
    ValueError on shapes or dtypes that do not fit together.
    """
    channels = weight.shape[1] if weight.dim() == 4 else -1
    if pixels.dim() != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] != channels:
        raise ValueError(
            f"pixels {tuple(pixels.shape)} {pixels.dtype}, weight {tuple(weight.shape)}: expected "
            "uint8 [M, C, H, W] and [O, C, R, S]"
        )
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(f"mean {tuple(mean.shape)}, std {tuple(std.shape)}: expected [{channels}]")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias {tuple(bias.shape)} {bias.dtype}: expected [O] {weight.dtype}")
    if index is not None and (index.dim() != 1 or index.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"index {tuple(index.shape)} {index.dtype}: expected int32 or int64 [N]")
    options = [*stride, *padding]
    if min(_size(pixels, weight, options)) < 1:
        raise ValueError(f"images of {tuple(pixels.shape[2:])} are smaller than the filters")
    return _first_conv(pixels, weight, bias, mean, std, index, options, relu, impl)


@torch.library.custom_op("circuitcore::first_conv", mutates_args=())
def _first_conv(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    std: torch.Tensor,
    index: torch.Tensor | None,
    options: list[int],
    relu: bool,
    impl: str,
) -> torch.Tensor:
    """``options``: stride and padding, two each."""
    stride, padding = (options[0], options[1]), (options[2], options[3])
    if choose(impl, pixels, operation="first_conv") == "triton" and weight.dtype != torch.float64:
        from circuitcore.kernels.first_conv.gpu import first_conv_gpu

        size = _size(pixels, weight, options)
        return first_conv_gpu(pixels, weight, bias, mean, std, index, stride, padding, size, relu)
    return first_conv_reference(pixels, weight, bias, mean, std, index, stride, padding, relu)


@_first_conv.register_fake
def _(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    std: torch.Tensor,
    index: torch.Tensor | None,
    options: list[int],
    relu: bool,
    impl: str,
) -> torch.Tensor:
    n = pixels.shape[0] if index is None else index.shape[0]
    high, wide = _size(pixels, weight, options)
    return weight.new_empty(n, high, wide, weight.shape[0]).movedim(-1, 1)


def _size(pixels: torch.Tensor, weight: torch.Tensor, options: list[int]) -> Pair:
    """(OH, OW)."""
    high, wide = (
        (pixels.shape[2 + axis] + 2 * options[2 + axis] - weight.shape[2 + axis]) // options[axis]
        + 1
        for axis in (0, 1)
    )
    return high, wide

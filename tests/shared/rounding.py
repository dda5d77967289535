"""Low precision as a GPU has it, on the CPU: operands rounded, products and sums in float32."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

TF32 = 10  # bits of mantissa
CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d, torch.conv2d}
PRODUCTS = {functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, Tensor.matmul,
            Tensor.__matmul__, Tensor.mm}  # fmt: skip


def rounded(values: Tensor, bits: int = TF32) -> Tensor:
    """float32 ``values`` with ``bits`` bits of mantissa, nearest, ties to even."""
    drop = 23 - bits
    whole = values.contiguous().view(torch.int32)
    even = (whole >> drop) & 1
    near = (whole + (1 << (drop - 1)) - 1 + even) >> drop << drop
    return torch.where(values.isfinite(), near.view(torch.float32), values)


class Tf32(TorchFunctionMode):
    """Products and convolutions of float32 with operands as TF32 has them, where torch is set so.

    By the settings that a GPU would follow, so that what runs as IEEE float32 is left alone.
    ``products`` counts those rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on = torch.backends.cudnn.conv if function in CONVOLUTIONS else torch.backends.cuda.matmul
        rounds = function in CONVOLUTIONS or function in PRODUCTS
        if rounds and on.fp32_precision == "tf32":
            first = 1 if function is torch.addmm else 0
            operands = [
                rounded(each) if each.dtype == torch.float32 else each
                for each in args[first : first + 2]
            ]
            args = (*args[:first], *operands, *args[first + 2 :])
            self.products += 1
        return function(*args, **kwargs)


def perturbed(rows: Tensor, bits: int, seed: int) -> Tensor:
    """Activations [T, N] as some layers in low precision give them.

    Errors are normal, their standard deviation ``2 ** -bits`` of the level's root mean square.
    """
    size = rows.double().square().mean(1, keepdim=True).sqrt()
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, rows.shape))
    return (rows.double() + noise * size * 2.0**-bits).float()

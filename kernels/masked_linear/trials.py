"""What the self-test runs of `masked_linear`: odd sizes with pruned NaN, AlexNet's and ResNet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitcore.kernels.masked_linear.operation import masked_linear
from circuitcore.kernels.masked_linear.reference import masked_linear_reference
from circuitcore.kernels.trial import Trial, dtype_of, integers, normal

# levels, images, columns, rows, whether levels share their input: AlexNet's fc6 and fc7, both tiles
# of `masked_tile`; ResNet-50's fc in one dtype, since each compiles for a second or two
REAL = ((2, 256, 9216, 4096, True), (2, 128, 4096, 4096, False))
RESNET = (4, 256, 2048, 1000)


def trials() -> list[Trial]:
    """Every dtype that the kernel multiplies."""
    found = []
    for dtype in ("tf32", "bfloat16", "float16"):
        found.append(_trial((3, 17, 33, 65), True, dtype, real=False))
        found += [_trial(sizes, shared, dtype, real=True) for *sizes, shared in REAL]
    return [*found, _trial(RESNET, True, "bfloat16", real=True)]


def _trial(sizes: Sequence[int], shared: bool, dtype: str, real: bool) -> Trial:
    levels, images, columns, rows = sizes
    input_of = "one input" if shared else "an input each"

    def arguments(device: torch.device) -> dict[str, Any]:
        made = dtype_of(dtype)
        x = normal((images, columns) if shared else (levels, images, columns), device, made)
        level = integers((rows, columns), 9, device)
        ts = [9 * k // levels for k in range(levels)]
        weight = normal((rows, columns), device, made) / columns**0.5
        if not real:  # a weight that no level keeps takes no part, whatever it is
            weight = torch.where(level > min(ts), weight, torch.nan)
        bias = normal((rows,), device, made)
        return {"x": x, "weight": weight, "level": level, "ts": ts, "bias": bias, "relu": True}

    return Trial(
        f"{rows} x {columns}, {images} images, {levels} levels of {input_of}",
        dtype,
        arguments,
        lambda **given: masked_linear(**given, impl="triton", check=False),
        masked_linear_reference,
        real,
    )

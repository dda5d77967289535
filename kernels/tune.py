"""Measure the ways a masked layer can run on the GPU at hand and remember the fastest.

`tune` writes ``tuned.json`` into the cache folder (`paths.table_path`); `paths.masked_path`
prefers it to the cost model.  Contenders run interleaved on the same masked weights and are
compared by the median of event timings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from circuitcore.kernels import cache, selftest
from circuitcore.kernels.dispatch import architecture
from circuitcore.kernels.masked import paths
from circuitcore.kernels.masked.gpu_cost import MaskedShape
from circuitcore.kernels.masked_linear.operation import masked_linear, sweep_shapes
from circuitcore.kernels.trial import float32_products
from circuitcore.kernels.verdicts import FAILED
from circuitcore.progress import Progress, Silent

ROUNDS = 7

# the fully connected layers of torchvision's AlexNet, VGG16, ResNet-50 and MobileNetV2; of the last
# one the target's row alone
NETWORKS = (
    ((4096, 9216), (4096, 4096), (1, 4096)),
    ((4096, 25088), (4096, 4096), (1, 4096)),
    ((1, 2048),),
    ((1, 1280),),
)
LEVELS = (1, 2, 4, 8, 16, 32)
IMAGES = (16, 32, 64, 128, 256, 512, 1024)


def swept() -> list[MaskedShape]:
    """What sweeps of `NETWORKS` launch: a shape for each entry that the table needs of them."""
    shapes = [shape for layers in NETWORKS for shape in sweep_shapes(layers, LEVELS, IMAGES)]
    return list({paths.table_key(shape, ""): shape for shape in shapes}.values())


def tune(
    shapes: Iterable[MaskedShape] | None = None, shown: Progress | None = None
) -> dict[str, str]:
    """Time every path of every shape on the current GPU and add the fastest to the table.

    The self-test comes first: a kernel that fails it is not measured, and never chosen.

    Returns what was measured, key -> path.  Raises RuntimeError without a GPU, OSError where
    the table cannot be written.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("tuning measures a GPU, and torch finds none")
    device = torch.device("cuda", torch.cuda.current_device())
    arch = architecture(device)
    states = selftest.judged(selftest.check(device, shown))
    wrong = states["masked_linear"] == FAILED
    found = {}
    every = list(shapes if shapes is not None else swept())
    shown = shown or Silent()
    shown.start("layers", len(every))
    for shape in every:
        key = paths.table_key(shape, arch)
        shown.advance(1, key)
        if wrong:
            found[key] = "library"
            continue
        with float32_products(shape.dtype):
            found[key] = fastest(_linear(shape, device))
    paths.tuned.cache_clear()
    table = {"device": torch.cuda.get_device_name(device), "paths": paths.tuned() | found}
    cache.write(paths.TABLE, table)
    paths.tuned.cache_clear()
    return found


def fastest(contenders: dict[str, Callable[[], object]]) -> str:
    """The path of the least median time; contenders take turns, the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(ROUNDS + 1):
        for name, call in contenders.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if round_number:
                times[name].append(start.elapsed_time(end))
    return min(times, key=lambda name: sorted(times[name])[ROUNDS // 2])


IMPL_OF = {"fused": "triton", "library": "torch"}


def _linear(shape: MaskedShape, device: torch.device) -> dict[str, Callable[[], object]]:
    dtype = getattr(torch, shape.dtype.replace("tf32", "float32"))
    size = (shape.batch, shape.columns) if shape.shared else (
        shape.levels, shape.batch, shape.columns
    )  # fmt: skip
    x = torch.randn(size, device=device).to(dtype)
    weight = torch.randn(shape.rows, shape.columns, device=device).to(dtype)
    level, ts = geometric_levels((shape.rows, shape.columns), shape.levels, device)

    def call(impl: str) -> Callable[[], object]:
        return lambda: masked_linear(x, weight, level, ts, None, relu=True, impl=impl, check=False)

    return {path: call(impl) for path, impl in IMPL_OF.items()}


def geometric_levels(
    size: tuple[int, ...], levels: int, device: torch.device
) -> tuple[torch.Tensor, list[int]]:
    """Random level bytes whose kept fractions fall geometrically from 1 to 0.001."""
    kept = torch.logspace(0, -3, levels, device=device) if levels > 1 else torch.ones(1)
    rank = torch.rand(size, device=device)
    level = (rank[..., None] < kept.to(device)).sum(-1).to(torch.uint8)
    return level, list(range(levels))

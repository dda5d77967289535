"""Linear layers of a nested pruning sweep: many masks of one weight matrix in one call.

Andrade & Konkle 2025, Circuit extraction: a level of a sweep zeroes the weights whose score ranks
below its pruned fraction, and the network is run again.  Levels are nested, so one byte a weight
holds all of them: a weight is kept at level ``t`` iff its byte is greater than ``t``.

    out[t, n, o] = act( sum_i  W[o, i] [level[o, i] > t]  x[t, n, i]  +  b[o] )

The sum runs over the kept weights only.  A pruned weight takes no part in it, whatever it or the
input it would read holds: NaN and infinities never leak through a mask.

Where a pruned weight is to carry the mean c of its input instead of 0, the sum over all weights of
W (level > t ? x : c) is that of the kept ones over x - c, plus W c, which is the same at every
level: inputs less their centre and a bias b + W c are all there is to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from circuitcore.kernels.dispatch import architecture, choose
from circuitcore.kernels.masked.check import all_finite, check_masked, has_nan
from circuitcore.kernels.masked.gpu_cost import MaskedShape
from circuitcore.kernels.masked.paths import masked_path
from circuitcore.kernels.masked_linear.library import masked_linear_library
from circuitcore.kernels.masked_linear.reference import (
    Layer,
    centred,
    masked_chain_reference,
    masked_linear_reference,
)
from circuitcore.kernels.spans import span, work

if TYPE_CHECKING:
    from circuitcore.kernels.masked_linear.cpu import Survey


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
    impl: str = "auto",
    check: bool = True,
) -> torch.Tensor:
    """Apply a Linear layer under each mask ``level > t``, t in ``ts``: ``[T, N, O]``.

    ``x`` is ``[N, I]`` (the same input at every level) or ``[T, N, I]`` (one input a level),
    ``weight`` ``[O, I]``, ``level`` uint8 ``[O, I]``, ``bias`` ``[O]`` or None, all of one
    floating dtype (float64, float32, bfloat16, float16) and on one device.  ``ts`` are 0..255 in
    any order.  Sums are accumulated in float32 (float64 for float64 inputs); products of float32
    on a GPU are IEEE float32 unless ``torch.backends.cuda.matmul`` allows TF32.
    ``impl`` forces an implementation (`dispatch.choose`).  ``check=False`` on a GPU: nothing waits
    for the device, and infinities or NaN *in x* may show as NaN where only pruned weights read
    them, which whoever calls looks for in the end; on the CPU they never do.  Raises ValueError on
    shapes, dtypes or levels that do not fit together.
    """
    check_masked(x, weight, level, ts, bias, axes="O, I", inputs="N, I")
    return _masked_linear(x, weight, level, list(ts), bias, relu, impl, check)


def masked_chain(
    x: torch.Tensor,
    layers: Sequence[Layer],
    ts: Sequence[int],
    *,
    impl: str = "auto",
    check: bool = True,
    survey: Survey | None = None,
    source: torch.Tensor | None = None,
    count: Callable[[int], None] | None = None,
    centres: Sequence[torch.Tensor] | None = None,
    names: Sequence[str] = (),
) -> torch.Tensor:
    """Run a chain of masked Linear layers at every level: ``[T, N, O]``, or ``[T, N]`` for O = 1.

    ``layers`` holds ``(weight [O, I], level uint8 [O, I], bias [O] or None, relu)`` from input to
    output; ``x`` is ``[N, I]``, or ``[N, J]`` with ``source`` int64 ``[I]``, which of its J columns
    each column of the first layer reads.  Equals `masked_linear` applied layer by layer, but a unit
    that no surviving weight reads is not computed and a unit that reads nothing is its constant
    act(bias).
    ``survey``: `chain_survey` of the same layers, which spares repeated calls a pass over the level
    bytes.  ``count`` is told the multiply-adds executed.  ``centres``: ``[I]`` a layer, taken off
    its inputs (of copies the same), in float32 or wider.  ``names``: what a profiler is told the
    layers are called.  ``check``: as in `masked_linear`; a NaN that leaks stays one to the end of
    the chain, so that its output is all there is to look at.
    """
    width = x.shape[-1] if source is None else len(source)
    for weight, level, bias, _ in layers:
        empty = x.new_empty(0, width)
        check_masked(empty, weight, level, ts, bias, axes="O, I", inputs="N, I")
        width = weight.shape[0]
    chosen = choose(impl, x, cpu=_cpu_path(x), operation="masked_linear")
    if chosen == "numba":
        out = _chain_cpu(x, layers, ts, survey, source, count, centres, names)
        return out[..., 0] if out.shape[-1] == 1 else out
    if source is not None:
        x = x[:, source]
    if count is not None:
        count(_dense(layers, ts, len(x)))
    if x.device.type == "cpu" and chosen == "torch":
        return masked_chain_reference(x, layers, ts, centres=centres)
    out = x
    for k, (weight, level, bias, relu) in enumerate(layers):
        before = out if centres is None else centred(out, centres[k])
        with span("layer", names[k] if names else f"layer {k}"):
            out = masked_linear(before, weight, level, ts, bias, relu=relu, impl=impl, check=False)
            work(len(ts) * len(x) * weight.numel(), before, weight, level, out)
    if check and has_nan(out):
        return masked_chain_reference(x, layers, ts, centres=centres)
    return out[..., 0] if out.dim() == 3 and out.shape[-1] == 1 else out


def chain_survey(
    x: torch.Tensor,
    layers: Sequence[Layer],
    impl: str = "auto",
    source: torch.Tensor | None = None,
) -> Survey | None:
    """What `masked_chain` needs to know of the level bytes; None where it does not compact."""
    if choose(impl, x, cpu=_cpu_path(x), operation="masked_linear") != "numba":
        return None
    from circuitcore.kernels.masked_linear.cpu import survey_chain

    return survey_chain(layers, None if source is None else source.numpy())


class LayerAtLevel(NamedTuple):
    """One layer of a chain at one level: how it runs, on how many units, at what cost."""

    level: int
    layer: int
    path: str  # dense, sparse, difference, summed, or masked: nothing compacted
    rows: int
    columns: int
    multiply_adds: int


def masked_chain_plan(
    layers: Sequence[Layer], ts: Sequence[int], batch: int, survey: Survey | None
) -> list[LayerAtLevel]:
    """What `masked_chain` will do for ``batch`` finite inputs, known from the level bytes alone.

    ``survey``: of `chain_survey`; None where nothing is compacted.
    """
    if survey is None:
        return [
            LayerAtLevel(t, k, "masked", weight.shape[0], weight.shape[1], batch * weight.numel())
            for t in ts
            for k, (weight, *_) in enumerate(layers)
        ]
    from circuitcore.kernels.masked_linear.cpu import plan_chain

    return [
        LayerAtLevel(s.level, s.layer, s.path, s.rows, s.columns, s.multiply_adds)
        for s in plan_chain(layers, ts, batch, survey=survey).steps
    ]


def compacted_chain(
    layers: Sequence[Layer], t: int, centres: Sequence[torch.Tensor] | None = None
) -> list[tuple[torch.Tensor, torch.Tensor | None]] | None:
    """The layers that a mask ``level > t`` leaves of a chain, (weight, bias) each, smaller.

    The first layer keeps all its columns.  Equals the masked chain up to the order of summation;
    ``centres``, as there, are in the biases then: nothing is taken off an input any more.
    None where the output is constant, or on a device where nothing compacts chains.
    """
    if layers[0][0].device.type != "cpu":
        return None
    from circuitcore.kernels.masked_linear import cpu_compact as masked_linear_compact_cpu

    return masked_linear_compact_cpu.compacted_chain(layers, t, centres=centres)


def _dense(layers: Sequence[Layer], ts: Sequence[int], batch: int) -> int:
    return len(ts) * batch * sum(weight.numel() for weight, *_ in layers)


@torch.library.custom_op("circuitcore::masked_linear", mutates_args=())
def _masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: list[int],
    bias: torch.Tensor | None,
    relu: bool,
    impl: str,
    check: bool,
) -> torch.Tensor:
    chosen = choose(impl, x, cpu=_cpu_path(x), operation="masked_linear")
    if chosen == "numba":
        return _linear_cpu(x, (weight, level, bias, relu), ts)
    if chosen == "triton" and x.dtype != torch.float64:
        out = _linear_triton(x, weight, level, ts, bias, relu, impl)
    elif x.device.type != "cpu":
        out = masked_linear_library(x, weight, level, ts, bias, relu=relu)
    else:
        return masked_linear_reference(x, weight, level, ts, bias, relu=relu)
    if check and has_nan(out):
        return masked_linear_reference(x, weight, level, ts, bias, relu=relu)
    return out


@_masked_linear.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: list[int],
    bias: torch.Tensor | None,
    relu: bool,
    impl: str,
    check: bool,
) -> torch.Tensor:
    return x.new_empty(len(ts), x.shape[-2], weight.shape[0])


def _cpu_path(x: torch.Tensor) -> str:
    return "torch" if x.dtype == torch.float64 else "numba"


def masked_shape(x: torch.Tensor, weight: torch.Tensor, ts: Sequence[int]) -> MaskedShape:
    """What `paths.masked_path` and `gpu_cost` need to know of a call."""
    dtype = str(x.dtype).removeprefix("torch.")
    # Triton's interpreter, on the CPU, multiplies in full whatever it is asked
    if dtype == "float32" and (x.device.type == "cpu" or tf32_allowed()):
        dtype = "tf32"
    rows, columns = weight.shape
    return MaskedShape(len(ts), x.shape[-2], rows, columns, dtype, shared=x.dim() == 2)


def tf32_allowed() -> bool:
    """Whether float32 products on a GPU may be TF32; either of torch's ways to say so."""
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:  # before torch 2.9
        return bool(torch.backends.cuda.matmul.allow_tf32)
    if precision == "none":  # not said here: what holds for all of CUDA
        precision = getattr(torch.backends, "fp32_precision", "none")
    return bool(precision == "tf32")


def sweep_shapes(
    layers: Sequence[tuple[int, int]],
    levels: Iterable[int],
    images: Iterable[int],
    dtypes: Iterable[str] = ("tf32", "bfloat16", "float16"),
) -> list[MaskedShape]:
    """Every product `masked_chain` asks a GPU for: ``layers`` (rows, columns) in order, at so many
    levels and images at once; the first shares its input between levels, the others do not."""
    return [
        MaskedShape(count, batch, rows, columns, dtype, shared=k == 0)
        for dtype, count, batch in itertools.product(dtypes, levels, images)
        for k, (rows, columns) in enumerate(layers)
    ]


def _linear_triton(
    x: torch.Tensor, weight: torch.Tensor, level: torch.Tensor, ts: Sequence[int],
    bias: torch.Tensor | None, relu: bool, impl: str,
) -> torch.Tensor:  # fmt: skip
    from circuitcore.kernels.masked_linear.gpu import launch_masked

    arch = architecture(x.device)
    if masked_path(masked_shape(x, weight, ts), arch, impl) == "fused":
        return launch_masked(x, weight, level, ts, bias, relu=relu, arch=arch)
    return masked_linear_library(x, weight, level, ts, bias, relu=relu, impl="auto")


def _linear_cpu(x: torch.Tensor, layer: Layer, ts: Sequence[int]) -> torch.Tensor:
    """One layer: a chain of one, or a run for each level where every level has its own input."""
    if x.dim() == 2:
        return _chain_cpu(x, [layer], ts)
    from circuitcore.kernels.masked_linear.cpu import ChainPlan, plan_chain, run_chain

    plan = plan_chain([layer], ts, x.shape[1], shared=False)
    step = {s.level: s for s in plan.steps}
    out = x.new_empty(len(ts), x.shape[1], layer[0].shape[0])
    for k, t in enumerate(ts):
        if all_finite(x[k]):
            one = ChainPlan(plan.layers, plan.inputs, plan.read, steps=[step[t]])
            out[k] = run_chain(x[k], [layer], one)[t]
        else:
            out[k] = masked_chain_reference(x[k], [layer], [t], squeeze=False)[0]
    return out


def _chain_cpu(
    x: torch.Tensor,
    layers: Sequence[Layer],
    ts: Sequence[int],
    survey: Survey | None = None,
    source: torch.Tensor | None = None,
    count: Callable[[int], None] | None = None,
    centres: Sequence[torch.Tensor] | None = None,
    names: Sequence[str] = (),
) -> torch.Tensor:
    from circuitcore.kernels.masked_linear.cpu import plan_chain, run_chain, survey_chain

    def reference(levels: Sequence[int]) -> torch.Tensor:
        whole = x if source is None else x[:, source]
        return masked_chain_reference(whole, layers, levels, centres=centres, squeeze=False)

    if not all_finite(x):
        if count is not None:
            count(_dense(layers, ts, len(x)))
        return reference(ts)
    if source is not None and survey is None:
        survey = survey_chain(layers, source.numpy())
    plan = plan_chain(layers, ts, x.shape[0], survey=survey)
    done = run_chain(x, layers, plan, count, centres, names)
    out = x.new_empty(len(ts), x.shape[0], layers[-1][0].shape[0])
    for k, t in enumerate(ts):
        out[k] = done[t] if t in done else reference([t])[0]
    return out

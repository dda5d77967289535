"""Chains of masked Linear layers on the CPU: plan what survives where, then compute only that.

Going back from the output, a unit is needed below the highest level at which a needed unit still
reads it; going forward, a unit varies below its own highest incoming level and is the constant
act(bias) above.  Both are nested, so one byte a unit says it for all levels, and with the units
sorted by that byte the ones computed at a level are a prefix.

The first layer reads the same input at every level.  Its sums are built from the sparsest level
to the densest: each level adds the weights that the sparser one lacks, so that a weight is
multiplied once in the whole sweep.  Adding cannot lose digits as subtracting from the dense end
would, and what a dense level keeps (a NaN, say) cannot reach a sparser one.  Where `cost` finds a
product of the compacted matrix cheaper, the level is computed afresh.

Where the first layer reads copies of a few inputs, the weights of an input's copies are summed at
each level, the sparsest first, and the layer is a small dense product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from circuitcore.kernels.compilers import use_torch_threads
from circuitcore.kernels.masked import cost
from circuitcore.kernels.masked.check import all_finite
from circuitcore.kernels.masked_linear import cpu_passes as cpu
from circuitcore.kernels.masked_linear.cpu_sparse import Sparse, to_tiles
from circuitcore.kernels.masked_linear.reference import centred
from circuitcore.kernels.spans import span, work

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]


@dataclass(frozen=True)
class Step:
    """One layer at one level: the path taken and the multiply-adds it executes."""

    level: int
    layer: int
    path: str  # dense, sparse, difference, summed
    rows: int
    columns: int
    nonzeros: int  # multiplied with the batch: of the level, or of its difference
    constants: int  # inputs that are constant at this level
    multiply_adds: int


@dataclass
class Survivors:
    """One layer's units and weights over all levels (one byte a unit)."""

    needed: np.ndarray  # [O] the unit is read at levels < needed
    top: np.ndarray  # [O] the unit varies at levels < top
    order: np.ndarray  # [O] units by the level below which they are computed, densest last
    varies: np.ndarray  # [O] that level
    count: np.ndarray  # [256] weights from varying inputs to needed units, by byte

    def rows(self, t: int) -> np.ndarray:
        """The units computed at level t: a prefix of ``order``."""
        return self.order[: int((self.varies > t).sum())]

    def constants(self, t: int) -> np.ndarray:
        return np.flatnonzero((self.needed > t) & (self.top <= t))

    def nonzeros(self, t: int) -> int:
        return int(self.count[t + 1 :].sum())


@dataclass
class Survey:
    """What survives in a chain at every level; depends on the level bytes alone."""

    layers: list[Survivors]
    inputs: np.ndarray  # [I] inputs by the level below which they are read, densest last
    read: np.ndarray  # [I] that level
    source: np.ndarray | None = None  # which input each column of the first layer is a copy of


@dataclass
class ChainPlan(Survey):
    """What `run_chain` will do: its steps, from the sparsest level to the densest."""

    steps: list[Step] = field(default_factory=list)

    @property
    def multiply_adds(self) -> int:
        return sum(step.multiply_adds for step in self.steps)

    def columns(self, layer: int, t: int) -> np.ndarray:
        if layer:
            return self.layers[layer - 1].rows(t)
        return self.inputs[: int((self.read > t).sum())]


def survey_chain(layers: Sequence[Layer], source: np.ndarray | None = None) -> Survey:
    """Count what survives at every level: two passes over the level bytes.

    ``source`` int64 [columns of the first layer]: which input each is a copy of.
    """
    use_torch_threads()
    levels = [np.ascontiguousarray(layer[1].numpy()) for layer in layers]
    tops = []
    for level in levels:
        top = np.zeros(level.shape[0], np.uint8)
        cpu.row_tops(level, top)
        tops.append(top)
    survivors: list[Survivors] = []
    needed = np.full(levels[-1].shape[0], 255, np.uint8)
    for k in reversed(range(len(levels))):
        live = tops[k - 1] if k else np.full(levels[0].shape[1], 255, np.uint8)
        read = np.zeros((8, levels[k].shape[1]), np.uint8)
        count = np.zeros((8, 256), np.int64)
        cpu.survey(levels[k], needed, live, read, count)
        varies = np.minimum(needed, tops[k])
        order = np.argsort(255 - varies, kind="stable")
        survivors.insert(0, Survivors(needed, tops[k], order, varies, count.sum(0)))
        needed = read.max(0)
    if source is not None:
        copies, needed = needed, np.zeros(int(source.max()) + 1, np.uint8)
        np.maximum.at(needed, source, copies)
    return Survey(survivors, np.argsort(255 - needed, kind="stable"), needed, source)


def plan_chain(
    layers: Sequence[Layer],
    ts: Sequence[int],
    batch: int,
    *,
    shared: bool = True,
    survey: Survey | None = None,
) -> ChainPlan:
    """Choose each step's path from what survives; depends on the levels alone.

    ``shared=False``: the first layer too has an input of its own at every level.  ``survey``:
    that of these layers, where it was made before.
    """
    survey = survey or survey_chain(layers)
    plan = ChainPlan(survey.layers, survey.inputs, survey.read, survey.source)
    sparse = layers[0][0].dtype == torch.float32
    sparser = 0
    for t in sorted(set(ts), reverse=True):
        for k, layer in enumerate(plan.layers):
            rows, columns = layer.rows(t).size, plan.columns(k, t).size
            nonzeros = layer.nonzeros(t)
            constants = int(plan.layers[k - 1].constants(t).size) if k else 0
            if k == 0 and shared:
                sparser, nonzeros = nonzeros, nonzeros - sparser
            path = cost.cpu_path(rows, columns, nonzeros, batch, sparse=sparse)
            if k == 0 and shared and path == "sparse":
                path = "difference"
            if k == 0 and plan.source is not None:
                path = "summed"
            dense = path in ("dense", "summed")
            work = batch * (rows * columns if dense else nonzeros) + rows * constants
            plan.steps.append(Step(t, k, path, rows, columns, nonzeros, constants, work))
    return plan


def run_chain(
    x: torch.Tensor,
    layers: Sequence[Layer],
    plan: ChainPlan,
    count: Callable[[int], None] | None = None,
    centres: Sequence[torch.Tensor] | None = None,
    names: Sequence[str] = (),
) -> dict[int, torch.Tensor]:
    """Execute a plan: level -> ``[N, O]``.

    ``x`` is finite.  A level at which a hidden unit is not is left out: a compacted matrix would
    multiply it with pruned weights.  ``count`` is told the multiply-adds executed, taken from the
    operands and not from the plan; ``centres`` [I]: taken off each layer's inputs;
    ``names``: what a profiler is told the layers are called.
    """
    use_torch_threads()
    runner = _Runner(x, layers, plan, centres)
    out = {}
    h: torch.Tensor | None = None
    for step in plan.steps:
        if step.layer == 0 or h is not None:
            before, name = runner.executed, names[step.layer] if names else f"layer {step.layer}"
            with span("layer", name, step.level):
                h = runner.later(step, h) if step.layer and h is not None else runner.first(step)
                work(runner.executed - before, runner.moved(step))
        if h is not None and step.layer < len(layers) - 1 and not all_finite(h):
            h = None
        if h is not None and step.layer == len(layers) - 1:
            out[step.level] = runner.output(step, h)
        elif h is not None:
            h = runner.centred(step, h)
    if count is not None:
        count(runner.executed)
    return out


class _Runner:
    def __init__(
        self, x: torch.Tensor, layers: Sequence[Layer], plan: ChainPlan,
        centres: Sequence[torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.layers = [(w.contiguous(), v.contiguous(), b, r) for w, v, b, r in layers]
        self.plan, self.centres = plan, centres
        self.batch = x.shape[0]
        self.executed = 0  # multiply-adds
        self.scratch = torch.empty(self._largest(), dtype=x.dtype)  # fresh pages cost a gather
        self.width = cost.batch_tile(self.batch)
        self.tiles = -(-self.batch // self.width)
        densest = min((step.level for step in plan.steps), default=0)
        self.inputs = plan.columns(0, densest)
        self.x = x.T[torch.from_numpy(self.inputs)].contiguous()  # [C, N], densest last
        if centres is not None:
            self.x -= self._first_centre(centres[0])[:, None]
        self.rows = plan.layers[0].rows(densest)
        self.differences = {s.level: k for k, s in enumerate(self._steps("difference"))}
        if self.differences:
            self._sort_differences()
        if plan.source is not None:
            shape = self.layers[0][0].shape[0], self.inputs.size
            changes = np.flatnonzero(np.diff(plan.source, prepend=-1))  # runs of one input's copies
            self.runs = np.append(changes, plan.source.size)
            rank = np.full(plan.read.size, self.inputs.size)  # those never read go beside
            rank[self.inputs] = np.arange(self.inputs.size)
            self.place = rank[plan.source[changes]]
            self.summed = np.zeros((shape[0], shape[1] + 1), np.float32)
            self.sparser = 255

    def moved(self, step: Step) -> int:
        """Bytes a step reads and writes once: weights, each with its place if sparse, in, out."""
        dense = step.path in ("dense", "summed")
        weights = step.rows * step.columns if dense else 2 * step.nonzeros
        return (weights + self.batch * (step.columns + step.rows)) * self.x.element_size()

    def _largest(self) -> int:
        return max((s.rows * s.columns for s in self._steps("dense")), default=0)

    def _steps(self, path: str) -> list[Step]:
        return [step for step in self.plan.steps if step.path == path]

    def _sort_differences(self) -> None:
        """Bucket the first layer's weights by the step that adds them."""
        ts = sorted({step.level for step in self.plan.steps})
        bucket = np.full(256, 255, np.uint8)
        for byte in range(1, 256):
            kept = [t for t in ts if t < byte]  # kept at these levels, and first at the last
            if kept and kept[-1] in self.differences:
                bucket[byte] = self.differences[kept[-1]]
        weight, level = self.layers[0][:2]
        self.sparse = Sparse(
            weight.numpy(), level.numpy(), self.rows, self.plan.layers[0].needed, bucket,
            self.inputs,
        )  # fmt: skip
        self.sums = np.zeros((self.tiles, self.rows.size, self.width), np.float32)
        self.x_tiles = self._tiles(self.x)

    def _tiles(self, h: torch.Tensor) -> np.ndarray:
        tiles = np.empty((self.tiles, h.shape[0], self.width), np.float32)
        to_tiles(h.numpy(), tiles)
        return tiles

    def first(self, step: Step) -> torch.Tensor:
        bias = self._bias(0)[self.plan.layers[0].rows(step.level)]
        if step.path == "difference":
            bucket = self.differences[step.level]
            self.sparse.add(bucket, self.x_tiles, self.sums)
            self.executed += self.sparse.nonzeros(bucket) * self.batch
            return self._activated(self.sums, bias, self.layers[0][3], step.rows)
        if step.path == "summed":
            return _act(self._summed(step) @ self.x[: step.columns], bias, self.layers[0][3])
        sums = self._product(step, self.x[: step.columns])
        if self.differences:  # a denser level may add to these sums
            to_tiles(sums.numpy(), self.sums)
        return _act(sums, bias, self.layers[0][3])

    def _summed(self, step: Step) -> torch.Tensor:
        """The first layer at a level, the copies' weights summed: [rows, columns]."""
        weight, level = self.layers[0][:2]
        values = weight.float().numpy()  # no copy of float32
        cpu.add_summed(
            values, level.numpy(), step.level, self.sparser, self.runs, self.place, self.summed
        )
        self.sparser = step.level
        rows = self.summed[self.plan.layers[0].rows(step.level), : step.columns]
        self.executed += rows.size * self.batch
        return torch.from_numpy(np.ascontiguousarray(rows)).to(weight.dtype)

    def later(self, step: Step, h: torch.Tensor) -> torch.Tensor:
        """h: the varying units of the layer before, in its order, [C, N]."""
        k, t = step.layer, step.level
        rows = self.plan.layers[k].rows(t)
        bias = self._bias(k)[rows]
        if step.constants and step.rows:
            units = self.plan.layers[k - 1].constants(t)
            constant = self._bias(k - 1)[units]
            constant = torch.relu(constant) if self.layers[k - 1][3] else constant
            if self.centres is not None:
                constant = centred(constant, self.centres[k][torch.from_numpy(units)])
            reads = self._gathered(k, t, rows, units)
            bias = torch.addmv(bias, reads, constant)
            self.executed += reads.numel()
        return _act(self._product(step, h), bias, self.layers[k][3])

    def centred(self, step: Step, h: torch.Tensor) -> torch.Tensor:
        """The varying units [R, N] of a layer less what the next one takes off them."""
        if self.centres is not None:
            rows = self.plan.layers[step.layer].rows(step.level)
            h -= self.centres[step.layer + 1][torch.from_numpy(rows)][:, None]
        return h

    def _first_centre(self, centre: torch.Tensor) -> torch.Tensor:
        """The first layer's, of the inputs that are read; copies of one have it alike."""
        if self.plan.source is not None:
            every = centre.new_zeros(self.plan.read.size)
            every[torch.from_numpy(self.plan.source)] = centre
            centre = every
        return centre[torch.from_numpy(self.inputs)]

    def _product(self, step: Step, h: torch.Tensor) -> torch.Tensor:
        """The masked weights of a step times h [C, N], computed afresh: [R, N]."""
        k, t = step.layer, step.level
        rows, columns = self.plan.layers[k].rows(t), self.plan.columns(k, t)
        if step.path == "dense":
            matrix = self._gathered(k, t, rows, columns)
            self.executed += matrix.numel() * h.shape[1]
            return matrix @ h
        weight, level = self.layers[k][:2]
        bucket = np.full(256, 255, np.uint8)
        bucket[t + 1 :] = 0
        needed = self.plan.layers[k].needed
        survivors = Sparse(weight.numpy(), level.numpy(), rows, needed, bucket, columns)
        sums = np.zeros((self.tiles, rows.size, self.width), np.float32)
        survivors.add(0, self._tiles(h), sums)
        self.executed += survivors.nonzeros(0) * self.batch
        return self._activated(sums, torch.zeros(rows.size), False, rows.size)

    def _gathered(self, k: int, t: int, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
        """The surviving weights of some rows and columns as a dense matrix (the scratch memory)."""
        weight, level = self.layers[k][:2]
        if self.scratch.numel() < rows.size * columns.size:
            self.scratch = torch.empty(rows.size * columns.size, dtype=weight.dtype)
        out = self.scratch[: rows.size * columns.size].view(rows.size, columns.size)
        cpu.gather_dense(cpu.array(weight), level.numpy(), t, rows, columns, cpu.array(out))
        return out

    def _activated(
        self, sums: np.ndarray, bias: torch.Tensor, relu: bool, rows: int
    ) -> torch.Tensor:
        out = torch.empty((rows, self.batch), dtype=torch.float32)
        cpu.activate_tiles(sums, bias.numpy(), relu, out.numpy())
        return out

    def _bias(self, k: int) -> torch.Tensor:
        weight, _, bias, _ = self.layers[k]
        return torch.zeros(weight.shape[0], dtype=weight.dtype) if bias is None else bias

    def output(self, step: Step, h: torch.Tensor) -> torch.Tensor:
        """[N, O] from the varying rows [R, N] of the last layer; the others are act(bias)."""
        bias, relu = self._bias(step.layer), self.layers[step.layer][3]
        out = (torch.relu(bias) if relu else bias).repeat(self.batch, 1)
        out[:, torch.from_numpy(self.plan.layers[step.layer].rows(step.level))] = h.T
        return out


def _act(sums: torch.Tensor, bias: torch.Tensor, relu: bool) -> torch.Tensor:
    sums += bias[:, None]
    return sums.relu_() if relu else sums

"""The compiled half of `cpu`: passes over the positions of sixteen kernels' maps.

Numba keeps compiled code on disk and looks at this file alone to know whether it still holds, so
what the compiled functions rest on is either here or an argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from circuitcore.kernels.compilers import numba_jit

VECTOR_BYTES = 64  # LLVM splits such vectors where the processor has shorter ones (AVX2, NEON)
PASS = 8  # positions of a pass: they share a load of the weights and hide each other's latency
SPAN = 32  # passes summed by themselves: fewer roundings, and their part of x stays in cache
TASKS = 16  # at least, where there is so much to do: the threads then end together


def _pass(x_in_lanes: bool, g_in_lanes: bool) -> Any:
    """The numba intrinsic for ``count`` passes over PASS positions, adding to one vector of `out`.

    out[lane] += sum over k of g[k] * |sum over t of weight[t, lane] * x[places[k] + taps[t]]|:
    x and g have lanes behind these indices, or one value for all lanes.  Each array begins at the
    element ``_at``.  A plain numba loop would store the maps at every tap, and its vectors would be
    half as wide with AVX-512.
    """

    @intrinsic
    def add_passes(  # type: ignore
        context, out, out_at, weight, weight_at, x, x_at, g, g_at, places, places_at, taps,
        tap_count, count,
    ):  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pairs = zip(signature.args, values, strict=True)
            plain = [
                context.make_array(kind)(context, builder, value).data
                if isinstance(kind, types.Array)
                else context.cast(builder, value, kind, types.int64)
                for kind, value in pairs
            ]
            scalar = context.get_data_type(signature.args[0].dtype)
            _emit(builder, scalar, plain, x_in_lanes, g_in_lanes)
            return context.get_dummy_value()

        arrays = (out, out_at, weight, weight_at, x, x_at, g, g_at, places, places_at)
        return types.void(*arrays, taps, tap_count, count), generate

    return add_passes


def _emit(builder: Any, scalar: Any, values: list[Any], x_in_lanes: bool, g_in_lanes: bool) -> None:
    """The blocks of a pass: its places, the loop over taps, the sum over its positions."""
    out, out_at, weight, weight_at, x, x_at, g, g_at, places, places_at, *rest = values
    taps, tap_count, count = rest
    i32, i64 = ir.IntType(32), ir.IntType(64)
    lanes = VECTOR_BYTES // (4 if isinstance(scalar, ir.FloatType) else 8)
    vector = ir.VectorType(scalar, lanes)
    zero, undefined = ir.Constant(vector, None), ir.Constant(vector, ir.Undefined)
    name = f"llvm.fabs.v{lanes}{scalar.intrinsic_name}"  # llvmlite's own way knows no vectors
    absolute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector]), name
    )

    def slot(base: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

    def load(base: Any, index: Any, in_lanes: bool) -> Any:
        if in_lanes:
            return builder.load(slot(base, index), align=VECTOR_BYTES // lanes)
        value = builder.load(builder.gep(base, [index]))
        lane0 = builder.insert_element(undefined, value, i32(0))
        return builder.shuffle_vector(
            lane0, undefined, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
        )

    def add_product(total: Any, a: Any, b: Any) -> Any:
        return builder.fadd(total, builder.fmul(a, b, flags=("contract",)), flags=("contract",))

    before = builder.block
    names = ("passes", "places", "taps", "sum", "done")
    passes, one, tap_loop, after, done = [builder.append_basic_block(n) for n in names]
    builder.branch(passes)

    builder.position_at_end(passes)
    number, total = builder.phi(i64), builder.phi(vector)
    number.add_incoming(i64(0), before)
    total.add_incoming(zero, before)
    builder.cbranch(builder.icmp_signed("<", number, count), one, done)

    builder.position_at_end(one)
    ks = [builder.add(builder.mul(number, i64(PASS)), i64(q)) for q in range(PASS)]
    slots = [builder.gep(places, [builder.add(places_at, k)]) for k in ks]
    rows = [builder.add(x_at, builder.zext(builder.load(slot), i64)) for slot in slots]
    builder.branch(tap_loop)

    builder.position_at_end(tap_loop)
    t, maps = builder.phi(i64), [builder.phi(vector) for _ in ks]
    tap = builder.load(builder.gep(taps, [t]))
    w = load(weight, builder.add(weight_at, builder.mul(t, i64(lanes))), True)
    grown = []
    for value, row in zip(maps, rows, strict=True):
        grown.append(add_product(value, w, load(x, builder.add(row, tap), x_in_lanes)))
        value.add_incoming(zero, one)
        value.add_incoming(grown[-1], tap_loop)
    following = builder.add(t, i64(1))
    t.add_incoming(i64(0), one)
    t.add_incoming(following, tap_loop)
    builder.cbranch(builder.icmp_signed("<", following, tap_count), tap_loop, after)

    builder.position_at_end(after)
    added = zero
    for value, k in zip(grown, ks, strict=True):
        at = builder.add(g_at, builder.mul(k, i64(lanes if g_in_lanes else 1)))
        added = add_product(added, builder.call(absolute, [value]), load(g, at, g_in_lanes))
    total.add_incoming(builder.fadd(total, added), after)
    number.add_incoming(builder.add(number, i64(1)), after)
    builder.branch(passes)

    builder.position_at_end(done)
    total = builder.fadd(load(out, out_at, True), total)
    builder.store(total, slot(out, out_at), align=VECTOR_BYTES // lanes)


_add_channels = _pass(x_in_lanes=True, g_in_lanes=False)
_add_filters = _pass(x_in_lanes=False, g_in_lanes=True)
_add_pairs = _pass(x_in_lanes=True, g_in_lanes=True)


@numba_jit(parallel=True)
def by_channels(weight, g, x, positions, taps, packed, out):  # type: ignore
    """out [blocks, O, lanes] = scores; the lanes are input channels, which share g.

    weight [O, I/groups, T], g [N, O, P], x [N, groups, blocks, pixels, lanes]; positions [P] and
    taps [T] are elements of a block of x; packed [blocks, O, T, lanes] is scratch.
    """
    images, filters, _ = g.shape
    _, groups, blocks, pixels, lanes = x.shape
    counts = np.empty(images * filters, np.int64)
    for row in prange(counts.size):
        g_row = g[row // filters, row % filters]
        nonzero = 0
        for p in range(g_row.size):
            nonzero += g_row[p] != 0
        counts[row] = nonzero
    starts = np.zeros(counts.size + 1, np.int64)
    for row in range(counts.size):  # whole passes, with room for one position more
        starts[row + 1] = starts[row] + counts[row] // PASS + 1
    places = np.zeros(starts[-1] * PASS, np.uint32)
    values = np.zeros(starts[-1] * PASS, g.dtype)
    for row in prange(counts.size):
        g_row = g[row // filters, row % filters]
        at = starts[row] * PASS
        for p in range(g_row.size):  # without a branch, which would be mispredicted
            places[at] = positions[p]
            values[at] = abs(g_row[p])
            at += g_row[p] != 0
        values[at] = 0
    per_group = filters // groups
    parts = 1
    while parts < per_group and groups * blocks * parts < TASKS:
        parts *= 2
    share = (per_group + parts - 1) // parts
    for task in prange(groups * blocks * parts):
        group, b, part = task // parts // blocks, task // parts % blocks, task % parts
        begin = group * per_group + part * share
        end = min(begin + share, (group + 1) * per_group)
        channels = min(lanes, weight.shape[1] - b * lanes)
        for o in range(begin, end):
            out[b, o] = 0
            packed[b, o] = 0
            for lane in range(channels):
                for t in range(taps.size):
                    packed[b, o, t, lane] = weight[o, b * lanes + lane, t]
        for n in range(images):
            x_at = ((n * groups + group) * blocks + b) * pixels * lanes
            for span in range(0, (positions.size + PASS - 1) // PASS, SPAN):
                for o in range(begin, end):
                    passes = (counts[n * filters + o] + PASS - 1) // PASS - span
                    at = (starts[n * filters + o] + span) * PASS
                    o_at = (b * filters + o) * lanes
                    _add_channels(
                        out, o_at, packed, o_at * taps.size, x, x_at, values, at, places, at, taps,
                        taps.size, min(passes, SPAN),
                    )  # fmt: skip


@numba_jit(parallel=True)
def by_filters(weight, g, x, pairs, places, taps, out):  # type: ignore
    """out [rows, spans, blocks, I, lanes] = scores by image, group and span; the lanes are filters.

    weight [groups, blocks, I, T, lanes], g [N * groups, O, P], x [N * groups, I, pixels], which the
    filters share.  Or ``pairs`` lanes side by side share a filter's g and each has an input of its
    own: x [N * groups, blocks, pixels * lanes], I = 1.  places (whole passes, filled up) and taps
    are elements of the last dimension of x.
    """
    _, filters, count = g.shape
    groups, blocks, channels, _, lanes = weight.shape
    spans = out.shape[1]
    shared = max(pairs, 1)
    for task in prange(out.shape[0] * spans * blocks):
        row, span, b = task // blocks // spans, task // blocks % spans, task % blocks
        begin = span * SPAN * PASS
        passes = min(SPAN, places.size // PASS - span * SPAN)
        values = np.zeros(SPAN * PASS * lanes, g.dtype)
        for lane in range(min(lanes, filters * shared - b * lanes)):
            g_row = g[row, (b * lanes + lane) // shared]
            for p in range(begin, min(begin + SPAN * PASS, count)):
                values[(p - begin) * lanes + lane] = abs(g_row[p])
        out[row, span, b] = 0
        for i in range(channels):
            out_at = (task * channels + i) * lanes
            weight_at = (((row % groups) * blocks + b) * channels + i) * taps.size * lanes
            x_at = (row * x.shape[1] + (b if pairs else i)) * x.shape[2]
            if pairs:
                _add_pairs(
                    out, out_at, weight, weight_at, x, x_at, values, 0, places, begin, taps,
                    taps.size, passes,
                )  # fmt: skip
            else:
                _add_filters(
                    out, out_at, weight, weight_at, x, x_at, values, 0, places, begin, taps,
                    taps.size, passes,
                )  # fmt: skip

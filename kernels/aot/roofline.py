"""The least time an operation can take on a device: its bytes and multiply-adds over the peaks.

    time >= max(bytes / bandwidth, 2 x multiply-adds / matrix rate, popcounts / popcount rate)

Bytes are device-memory traffic with every operand read, and every result written, once a pass
(all operations but `level_selection` are one pass).  The
multiply-adds of masked layers are those of the dense product at every level: what compaction and
nesting leave out comes off this, and depends on the circuit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from circuitcore.kernels.aot.targets import Target

KEY_DIGITS, SCORE_DIGITS = 4, 2  # of `levels.trie`: 16 bits each of (score, |weight|)
ITEM_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Work:
    """Bytes moved, multiply-adds on matrix units, 32-bit population counts."""

    moved: int
    multiply_adds: int = 0
    popcounts: int = 0


@dataclass(frozen=True)
class Layer:
    """Outputs, inputs a group, taps and positions of a layer (1 tap and position if Linear).

    ``inputs`` counts the numbers of one image that enter it, ``positions`` its output positions.
    """

    outputs: int
    fan_in: int
    positions: int
    inputs: int

    @property
    def weights(self) -> int:
        return self.outputs * self.fan_in


def _convolution(outputs: int, channels: int, size: int, taps: int, out: int) -> Layer:
    return Layer(outputs, channels * taps * taps, out * out, channels * size * size)


# torchvision's AlexNet at 224 pixels; of the last layer the target's row alone
ALEXNET_CONV = {
    "conv1": _convolution(64, 3, 224, 11, 55),
    "conv2": _convolution(192, 64, 27, 5, 27),
    "conv3": _convolution(384, 192, 13, 3, 13),
    "conv4": _convolution(256, 384, 13, 3, 13),
    "conv5": _convolution(256, 256, 13, 3, 13),
}
ALEXNET_FC = {
    "fc6": Layer(4096, 9216, 1, 9216),
    "fc7": Layer(4096, 4096, 1, 4096),
    "fc8": Layer(1, 4096, 1, 4096),
}
ALEXNET_WEIGHTS = sum(layer.weights for layer in (ALEXNET_CONV | ALEXNET_FC).values())


def scoring(layer: Layer, images: int, item: int) -> Work:
    """One layer's scores, written out: weight and factors read, a float32 score written."""
    factors = images * (layer.inputs + layer.outputs * layer.positions) * item
    return Work(layer.weights * (item + 4) + factors, images * layer.positions * layer.weights)


def level_selection(layers: Iterable[Layer], images: int, digits: int = KEY_DIGITS) -> Work:
    """Exact levels of a stage's layers: a range pass, one pass a digit of the key, a byte pass.

    A Linear layer's scores are recomputed from their factors, so every pass reads the weight: four
    times where no level cuts among equal scores (``digits=2``), six where one does.  Two reads
    would need the thresholds after the first: but the ranks are joint, so the layers' ranges must
    be known before any score can be placed, and which counters a digit needs (65,536 a node; all
    32 bits of a score at once would be 16 GiB) follows from the digit before.  A convolution's
    scores are given: every pass reads those, the passes that may meet a tie the weight too.  One
    byte a weight is written.
    """
    moved = products = 0
    for layer in layers:
        passes = digits + 2
        if layer.positions == 1:
            factors = images * (layer.inputs + layer.outputs) * 4
            moved += passes * (layer.weights * 4 + factors) + layer.weights
            products += passes * images * layer.weights
        else:
            moved += layer.weights * (4 * passes + 4 * (digits - SCORE_DIGITS + 1) + 1)
    return Work(moved, products)


def masked_layer(layer: Layer, levels: int, images: int, item: int) -> Work:
    """A layer at ``levels`` nested levels with one shared input; weight and level read once."""
    inputs = images * layer.inputs * item
    outputs = levels * images * layer.outputs * layer.positions * item
    products = levels * images * layer.positions * layer.weights
    return Work(layer.weights * (item + 1) + inputs + outputs, products)


def overlap(masks: int, weights: int) -> Work:
    """All pairs of ``masks`` bit-packed masks over ``weights`` weights."""
    words = -(-weights // 32)
    return Work(masks * words * 4, popcounts=masks * (masks + 1) // 2 * words)


def microseconds(work: Work, device: Target, dtype: str) -> float:
    """The roofline bound of ``work``, in microseconds; an unknown dtype counts as fp32."""
    rate = device.flops.get(dtype, device.flops["fp32"])
    seconds = max(
        work.moved / device.bandwidth,
        2 * work.multiply_adds / rate,
        work.popcounts / device.popcounts,
    )
    return float(f"{seconds * 1e6:.3g}")


def alexnet_microseconds(
    operation: str,
    dtype: str,
    device: Target,
    *,
    scoring_images: int = 4,
    images: int = 1000,
    levels: int = 32,
    masks: int = 64,
) -> dict[str, float]:
    """{layer: microseconds} of ``operation`` on AlexNet; overlap is of the "network", levels of a
    stage ("fc", "conv").

    Scoring takes ``scoring_images``, masked layers ``images`` images at ``levels`` levels in one
    launch, overlap ``masks`` circuits.  Raises ValueError for an operation it does not know.
    """
    item = ITEM_BYTES.get(dtype, 4)
    works: dict[str, Work]
    match operation:
        case "score_linear":
            works = {
                name: scoring(layer, scoring_images, item) for name, layer in ALEXNET_FC.items()
            }
        case "score_conv":
            works = {
                name: scoring(layer, scoring_images, item) for name, layer in ALEXNET_CONV.items()
            }
        case "levels":
            works = {
                "fc": level_selection(ALEXNET_FC.values(), scoring_images),
                "conv": level_selection(ALEXNET_CONV.values(), scoring_images),
            }
        case "masked_linear":
            works = {n: masked_layer(v, levels, images, item) for n, v in ALEXNET_FC.items()}
        case "first_conv":  # bytes to blocks of 4 x 4 pixels, 57 x 57 of them
            works = {"conv1": Work(images * (3 * 224 * 224 + 57 * 57 * 48 * item))}
        case "masked_weights":  # read once, written at every level
            every = ALEXNET_CONV | ALEXNET_FC
            works = {n: Work(v.weights * (item + 1 + levels * item)) for n, v in every.items()}
        case "random_masks":  # a byte a weight; what is hashed counts as nothing
            works = {"network": Work(ALEXNET_WEIGHTS)}
        case "overlap":
            works = {"network": overlap(masks, ALEXNET_WEIGHTS)}
        case _:
            raise ValueError(f"no roofline for operation {operation!r}")
    return {name: microseconds(work, device, dtype) for name, work in works.items()}

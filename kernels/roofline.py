"""The least time an operation can take on a device: its bytes and multiply-adds over the peaks.

    time >= max(bytes / bandwidth, 2 x multiply-adds / matrix rate, popcounts / popcount rate)

Bytes are device-memory traffic with every operand read, and every result written, once.  The
multiply-adds of masked layers are those of the dense product at every level: what compaction and
nesting leave out comes off this, and depends on the circuit.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitcore.kernels.targets import Target

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


def scoring(layer: Layer, images: int, item: int, *, stored: bool) -> Work:
    """Scores of one layer.

    Convolutions read the weight and write a score each (``stored``); Linear layers read the
    weight twice (range, levels) and write one byte, recomputing the scores in both passes.
    """
    factors = images * (layer.inputs + layer.outputs * layer.positions) * item
    products = images * layer.positions * layer.weights
    if stored:
        return Work(layer.weights * (item + 4) + factors, products)
    return Work(layer.weights * (2 * item + 1) + 2 * factors, 2 * products)


def level_selection(weights: int) -> Work:
    """Exact levels of ``weights`` given scores: score and weight read twice, one byte written."""
    return Work(weights * (2 * (4 + 4) + 1))


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
    """{layer: microseconds} of ``operation`` on AlexNet; what has no layers is under "network".

    Scoring takes ``scoring_images``, masked layers ``images`` images at ``levels`` levels in one
    launch, overlap ``masks`` circuits.  Raises ValueError for an operation it does not know.
    """
    item = ITEM_BYTES.get(dtype, 4)
    works: dict[str, Work]
    match operation:
        case "score_linear":
            works = {
                name: scoring(layer, scoring_images, item, stored=False)
                for name, layer in ALEXNET_FC.items()
            }
        case "score_conv":
            works = {
                name: scoring(layer, scoring_images, item, stored=True)
                for name, layer in ALEXNET_CONV.items()
            }
        case "levels":
            works = {"network": level_selection(ALEXNET_WEIGHTS)}
        case "masked_linear":
            works = {n: masked_layer(v, levels, images, item) for n, v in ALEXNET_FC.items()}
        case "masked_conv2d":
            works = {n: masked_layer(v, levels, images, item) for n, v in ALEXNET_CONV.items()}
        case "overlap":
            works = {"network": overlap(masks, ALEXNET_WEIGHTS)}
        case _:
            raise ValueError(f"no roofline for operation {operation!r}")
    return {name: microseconds(work, device, dtype) for name, work in works.items()}

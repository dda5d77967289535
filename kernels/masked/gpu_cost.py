"""What a masked linear layer costs on a GPU, in seconds, from its shape alone.

Pure: no tensors, no clocks, no device.  Multiply-adds are those executed, tiles filled up; bytes
are device-memory traffic.  Rates are data sheets'; how much of them a path reaches is assumed and
was not measured here.  ``tune`` measures a GPU and overrides the choice (`masked.paths`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from circuitcore.kernels.masked.tiles import masked_tile

# "float32" is IEEE float32, on the ordinary units; "tf32" the same numbers on matrix units
ITEM_BYTES = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
KINDS = {"tf32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # what the kernel multiplies
MOST_PADDING = 1.3  # multiply-adds executed / needed, above which the kernel is not used
LIBRARY_TILE = 64  # rows and images that a library's product is filled up to
REACHED = {"fused": 0.6, "library": 0.7}  # of the matrix rate: assumed
LAUNCH = 5e-6  # seconds of the host a launch through torch takes: assumed


@dataclass(frozen=True)
class Device:
    """Bytes and floating-point operations a second, dense; multiprocessors."""

    bandwidth: float
    half: float  # bfloat16 and float16
    tf32: float
    ieee: float  # float32 without matrix units
    processors: int


# Data sheets: A100 80GB SXM, A10, L40S, H100 SXM, HGX B200, GeForce RTX 5090, Instinct MI300X
DEVICES = {
    "sm_80": Device(2.039e12, 312e12, 156e12, 19.5e12, 108),
    "sm_86": Device(0.6e12, 125e12, 62.5e12, 31.2e12, 72),
    "sm_89": Device(0.864e12, 362e12, 183e12, 91.6e12, 142),
    "sm_90": Device(3.35e12, 989.4e12, 494.7e12, 66.9e12, 132),
    "sm_100": Device(8e12, 2.25e15, 1.125e15, 75e12, 148),
    "sm_120": Device(1.792e12, 209.5e12, 104.8e12, 104.8e12, 170),
    "gfx942": Device(5.3e12, 1307.4e12, 653.7e12, 163.4e12, 304),
}

# Devices by name, for a prediction without one.  H200: the H100's rates, its own data sheet's
# bandwidth; RTX 4090: NVIDIA Ada GPU Architecture, appendix A
NAMED = {
    "a100": ("sm_80", DEVICES["sm_80"]),
    "l40s": ("sm_89", DEVICES["sm_89"]),
    "rtx4090": ("sm_89", Device(1.008e12, 165.2e12, 82.6e12, 82.6e12, 128)),
    "h100": ("sm_90", DEVICES["sm_90"]),
    "h200": ("sm_90", replace(DEVICES["sm_90"], bandwidth=4.8e12)),
}


@dataclass(frozen=True)
class MaskedShape:
    """One masked layer at ``levels`` levels: rows x columns weights, ``batch`` inputs a level."""

    levels: int
    batch: int
    rows: int
    columns: int
    dtype: str = "float32"  # of ITEM_BYTES
    shared: bool = True  # one input for all levels

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    def needed(self) -> int:
        """Multiply-adds of the dense products, all levels."""
        return self.levels * self.batch * self.weights

    def executed(self, path: str, arch: str) -> int:
        """Multiply-adds with every tile filled up."""
        if path == "library":
            up = (LIBRARY_TILE, LIBRARY_TILE, 1)
        else:
            tile = masked_tile(KINDS.get(self.dtype, "fp32"), self.batch, arch)
            up = (tile.rows, tile.batch, tile.columns)
        rows, batch, columns = (
            -(-size // whole) * whole
            for size, whole in zip((self.rows, self.batch, self.columns), up, strict=True)
        )
        return self.levels * rows * batch * columns


def gpu_seconds(path: str, shape: MaskedShape, arch: str) -> float:
    """Time of ``fused`` (mask in registers) or ``library`` (mask into memory, then multiply).

    Infinite where there is no such kernel: products of float32 and float64 in full.
    """
    device = DEVICES.get(arch, DEVICES["sm_80"])
    rates = {"float64": device.ieee / 2, "float32": device.ieee, "tf32": device.tf32}
    rate = rates.get(shape.dtype, device.half) * REACHED[path]
    if path == "fused" and shape.dtype not in KINDS:
        return float("inf")
    work = 2 * shape.executed(path, arch) / rate
    masking, moved = (each / device.bandwidth for each in traffic(path, shape, arch, device))
    if path == "library":
        return masking + max(moved, work) + 3 * shape.levels * LAUNCH
    return max(moved, work) + 2 * LAUNCH


def traffic(path: str, shape: MaskedShape, arch: str, device: Device) -> tuple[int, int]:
    """Bytes of device memory: of masking beforehand (``library``), and of the product itself."""
    item = ITEM_BYTES[shape.dtype]
    outputs = shape.levels * shape.batch * shape.rows * item
    inputs = shape.batch * shape.columns * item
    if path == "library":  # weights and levels read, masked ones written, then read by the product
        moved = shape.levels * (shape.weights * item + inputs) + outputs
        return shape.levels * shape.weights * (2 * item + 1), moved
    reads = shape.levels  # of the weights; levels that share an input run side by side
    if shape.shared:
        tile = masked_tile(KINDS[shape.dtype], shape.batch, arch)
        reads = -(-shape.levels * -(-shape.batch // tile.batch) // device.processors)
    else:
        inputs *= shape.levels
    return 0, reads * shape.weights * (item + 1) + inputs + outputs


def cheapest(shape: MaskedShape, arch: str) -> str:
    """The path of least time; never the kernel where it executes over 1.3 x what is needed."""
    if shape.executed("fused", arch) > MOST_PADDING * shape.needed():
        return "library"
    return min(("fused", "library"), key=lambda path: gpu_seconds(path, shape, arch))

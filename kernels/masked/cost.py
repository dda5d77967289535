"""What an operation costs, from its shape alone: multiply-adds, bytes, and which path is cheapest.

Every function here is pure: no tensors, no clocks, no device.  The numbers that stand for a
machine are ratios, so that one table serves processors of different speeds; ``tune`` measures a
GPU and overrides the choice made here (`circuitcore.kernels.dispatch`).
"""

from __future__ import annotations

from dataclasses import dataclass

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MaskedShape:
    """One masked layer at ``levels`` levels: rows x columns weights, ``batch`` inputs a level.

    For a convolution rows are filters of one group, columns the taps of one filter, batch the
    output positions of all images; ``groups`` such products make the layer.
    """

    levels: int
    batch: int
    rows: int
    columns: int
    dtype: str = "float32"
    groups: int = 1
    shared: bool = True  # one input for all levels

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.groups

    def multiply_adds(self) -> int:
        """Of the dense products, all levels."""
        return self.levels * self.batch * self.weights

    def moved_bytes(self, path: str, kept: float = 1.0) -> int:
        """Device memory traffic: weights, levels, inputs and outputs, each read or written once.

        ``kept`` is the mean kept fraction over the levels; it shortens the packed columns.
        """
        item = ITEM_BYTES[self.dtype]
        inputs = (1 if self.shared else self.levels) * self.batch * self.columns * self.groups
        outputs = self.levels * self.batch * self.rows * self.groups
        once = self.weights * (item + 1)
        if path == "plain":  # one read of weight and level for TILE_LEVELS levels together
            weights = once * -(-self.levels // TILE_LEVELS)
        elif path == "packed":  # packed once (read, write), then the kept prefix with its indices
            weights = 2 * once + int(self.levels * kept * self.weights * (item + 1 + 4 / 64))
        else:  # library: read weight and level, write the masked copy, read it again
            weights = self.levels * self.weights * (3 * item + 1)
        return weights + (inputs + outputs) * item


TILE_LEVELS = 4  # levels whose accumulators one program of the plain kernel holds


@dataclass(frozen=True)
class Device:
    """What the choice needs to know of a GPU: multiply-adds a byte of memory traffic.

    ``efficiency`` is the fraction of the matrix-unit rate a path reaches; the library's is 1.
    """

    multiply_adds_per_byte: float
    plain_efficiency: float = 0.6
    packed_efficiency: float = 0.5


def device(arch: str, dtype: str) -> Device:
    """Balance of a known architecture (dense tensor rate over memory bandwidth, data sheets)."""
    half, single = {
        "sm_80": (312e12 / 2 / 2.0e12, 156e12 / 2 / 2.0e12),
        "sm_90": (990e12 / 2 / 3.35e12, 495e12 / 2 / 3.35e12),
        "sm_100": (2250e12 / 2 / 8.0e12, 1125e12 / 2 / 8.0e12),
        "gfx942": (1307e12 / 2 / 5.3e12, 653e12 / 2 / 5.3e12),
    }.get(arch, (150.0, 75.0))
    return Device(half if dtype in ("bfloat16", "float16") else single)


def panel_fraction(kept: float, panel: int = 64) -> float:
    """Columns of a panel of ``panel`` rows that any of its weights, kept at random, still reads."""
    return 1.0 - (1.0 - kept) ** panel


def gpu_seconds(path: str, shape: MaskedShape, target: Device, kept: float = 1.0) -> float:
    """Time of a path in units of one byte's transfer: the larger of memory and matrix time."""
    work = float(shape.multiply_adds())
    if path == "packed":
        work *= panel_fraction(kept)
    rate = {"plain": target.plain_efficiency, "packed": target.packed_efficiency}.get(path, 1.0)
    memory = shape.moved_bytes(path, panel_fraction(kept) if path == "packed" else kept)
    return max(float(memory), work / (target.multiply_adds_per_byte * rate))


# --- the CPU -----------------------------------------------------------------------------------
# Costs in dense multiply-adds.  The ratios were measured on AVX-512 processors; they decide
# between two right answers, so a processor with others loses a little time and nothing else.

SPARSE_MULTIPLY_ADD = 4.0  # a sparse x dense multiply-add over one inside a library product
SEGMENT = 1000.0  # starting the run of nonzeros of one row and column block on one batch tile
GATHERED_WEIGHT = 30.0  # reading, masking and placing one weight of a compacted matrix
SPARSE_WEIGHT = 120.0  # reading, masking and placing one nonzero of a sparse matrix
COLUMN_BLOCK = 256  # inputs whose batch tile is read from the second-level cache


def batch_tile(batch: int) -> int:
    """Images that a sparse product takes together: 16, 32, 64 or 128."""
    return next((width for width in (16, 32, 64) if batch <= width), 128)


def dense_cost(rows: int, columns: int, batch: int) -> float:
    """Gather a compacted matrix and multiply it with the library."""
    return float(rows) * columns * (batch + GATHERED_WEIGHT)


def sparse_cost(rows: int, columns: int, nonzeros: int, batch: int) -> float:
    """Gather the nonzeros by row and column block, and add them up tile by tile."""
    width = batch_tile(batch)
    tiles = -(-batch // width)
    segments = min(nonzeros, rows * -(-columns // COLUMN_BLOCK))
    each = SPARSE_MULTIPLY_ADD * tiles * width + SPARSE_WEIGHT
    return float(nonzeros) * each + float(segments) * tiles * SEGMENT


def cpu_path(rows: int, columns: int, nonzeros: int, batch: int, *, sparse: bool = True) -> str:
    """``"dense"`` or ``"sparse"``, whichever costs less (``sparse=False``: there is none)."""
    if sparse and sparse_cost(rows, columns, nonzeros, batch) < dense_cost(rows, columns, batch):
        return "sparse"
    return "dense"

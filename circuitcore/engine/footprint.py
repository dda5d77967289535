"""Memory that a run will take, phase by phase, from shapes and options alone.

What counts is what `circuitcore.machine.meter` measures.  The budget (``--memory``) is for what a
run holds: weights, levels, masks, images, activations.  Code is not in it: what a process loads and
compiles on first use, ``CODE`` and a little for every convolution, stands in the prediction only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuitcore.errors import DeviceError
from circuitcore.kernels.compilers import on_disk
from circuitcore.kernels.masked import cost
from circuitcore.machine.device import DTYPES, resolve_dtype
from circuitcore.network.graph import Network
from circuitcore.network.sizes import activation_bytes, value_sizes
from circuitcore.options import Options

FORWARD_CHUNK = 64  # images: their activations stay in a CPU's cache, and fill a GPU
FEATURE_CHUNK = 4096  # images from the boundary on: more do not make gathering weights cheaper

CODE = 36 << 20  # numba's, oneDNN's, scipy's, on the CPU
COMPILER = 190 << 20  # numba's and LLVM's, where they have to compile
BUFFERS = 48 << 20  # a library's own for matrix products, at most; as large as the largest matrix
CONVOLUTION = 64 << 10  # oneDNN keeps the code of every shape of convolution it met
CONVOLUTIONS = 1024  # but of no more
CHOSEN = 0.5  # of the fc weights are in rows and columns that the chosen fc circuit computes
HISTOGRAM = 1 << 16  # bins


@dataclass(frozen=True)
class Counts:
    """How much a run works on: images of the extraction and held-out sets, categories."""

    extraction: int
    heldout: int
    categories: int


@dataclass(frozen=True)
class Phase:
    """Bytes of a phase: ``fixed``, as expected (``most`` at worst), and for each image at once.

    ``chunk``: images at once; ``image``: bytes of one; ``booked``: what the budget takes it for.
    """

    fixed: int
    most: int
    image: int = 0
    booked: int = 0
    chunk: int = 0

    @property
    def bytes(self) -> int:
        """Expected peak."""
        return self.fixed + self.image * self.chunk


def predicted(
    network: Network,
    shape: Sequence[int],
    options: Options,
    device: torch.device,
    counts: Counts,
    budget: int,
) -> dict[str, int]:
    """Peak bytes of each phase of a run on images of ``shape`` [C, H, W]; the run's is the largest.

    ``budget``: of `device.memory_budget`.  What depends on the scores is taken as in trained
    networks.  Raises DeviceError as `for_chunks` does.
    """
    spare = for_chunks(network, shape, options, device, counts, budget)
    found = phases(network, shape, options, device, counts, spare)
    layers = len(network.layers("conv")) * len(options.grid("conv")) * counts.categories
    code = 0
    if device.type != "cuda":
        largest = 4 * max(weight.numel() for weight in network.weights.values())
        code = CODE + min(BUFFERS, largest) + CONVOLUTION * min(layers, CONVOLUTIONS)
        code += COMPILER if must_compile(options, device) else 0
    return {name: code + phase.bytes for name, phase in found.items()}


def for_chunks(
    network: Network,
    shape: Sequence[int],
    options: Options,
    device: torch.device,
    counts: Counts,
    budget: int,
) -> int:
    """Bytes of the budget left for images and activations, whatever the scores will be.

    Raises DeviceError naming the least budget, where that is not enough for one image at a time.
    """
    found = phases(network, shape, options, device, counts, 0)
    least = max(phase.most for phase in found.values()) + max(p.booked for p in found.values())
    if least > budget:
        worst = max(found, key=lambda name: found[name].most)
        raise DeviceError(
            f"{budget / 1e6:,.0f} MB of memory do not suffice: with one image at a time the "
            f"{worst} still holds {least / 1e6:,.0f} MB; give --memory {-(-least >> 20)}M or more"
        )
    return budget - max(phase.most for phase in found.values())


def chunk(spare: int, image_bytes: int) -> int:
    """Images at once in ``spare`` bytes, of ``image_bytes`` of float32 values alive each.

    Half is left for what a library takes beside them: copies in another layout, workspaces.
    """
    return max(1, spare // (2 * image_bytes))


def weight_bytes(network: Network) -> int:
    """Bytes of the network's tensors, in float32."""
    tensors = [*network.weights.values(), *network.biases.values()]
    tensors += [each for norm in network.norms.values() for each in norm]
    return 4 * sum(tensor.numel() for tensor in tensors)


def feature_chunk(spare: int, feature_bytes: int, levels: int, masked: bool) -> int:
    """Images at once from the boundary on: masked kernels hold the values of all levels."""
    return min(chunk(spare, feature_bytes * (levels if masked else 1)), FEATURE_CHUNK)


def masked_kernels(options: Options, device: torch.device) -> bool:
    """Whether stages run in masked kernels, all levels in one pass, and nothing is compacted."""
    return device.type == "cuda" if options.impl == "auto" else options.impl == "triton"


def must_compile(options: Options, device: torch.device) -> bool:
    """Whether a run will compile CPU kernels, as the first one of an installation does."""
    if device.type != "cpu" or options.impl not in ("auto", "numba"):
        return False
    from circuitcore.kernels.best_bias import cpu as best_bias_cpu
    from circuitcore.kernels.levels import cpu as levels_cpu  # numba

    always = best_bias_cpu.scan_rows, levels_cpu.scan_range  # whatever the network and the options
    return not all(map(on_disk, always))


def phases(
    network: Network,
    shape: Sequence[int],
    options: Options,
    device: torch.device,
    counts: Counts,
    spare: int,
) -> dict[str, Phase]:
    """The phases of a run, in order, with ``spare`` bytes for chunks."""
    size = {stage: network.relevant(stage) for stage in ("fc", "conv")}
    low = resolve_dtype(options) != "float32"
    item = DTYPES[resolve_dtype(options)].itemsize
    whole = weight_bytes(network)
    largest = 4 * max(w.numel() for w in network.weights.values())
    gpu = device.type == "cuda"
    held = whole * (6 if low else 4) // 4 + 4 * network.outputs * (
        counts.extraction + counts.heldout
    )
    values = value_sizes(network, shape)
    image = activation_bytes(network, shape)
    behind = activation_bytes(network, shape, after_boundary=True)
    levels = {stage: len(options.grid(stage)) - 1 for stage in ("fc", "conv")}
    masked = masked_kernels(options, device)

    layers = [network.step(name) for name in network.layers()]
    recorded = sum(values[s.inputs[0]] + values[s.name] for s in layers)
    recorded *= 4 * options.scoring_images
    judged = 8 * network.outputs * counts.extraction  # the others' logits, copied
    curve = 60 * (levels["fc"] + 1) * counts.extraction  # float64, and sorted for the best bias
    selection = 10 * HISTOGRAM * levels["fc"]  # counts int64, a table int16
    if options.criterion != "actgrad" or options.impl == "torch":
        selection += (16 if options.criterion != "actgrad" else 40) * size["fc"]

    forward = _conv_chunk(spare, image, 1, counts.extraction)
    found = {
        "loading of the model": Phase(whole + largest, whole + largest),
        "unpruned network": Phase(held, held, image, 2 * image, forward),
        "scoring": _same(held + 2 * recorded + judged + selection + size["fc"] + 5 * size["conv"]),
    }
    held += recorded + curve + size["fc"]  # level bytes or, afterwards, the chosen masks
    if network.layers("fc"):
        found["fc stage"] = _fc_stage(network, options, counts, spare, held, behind, masked, item)
    conv = size["conv"] * (2 + 2 * item)
    if masked:
        override, at_once = item * size["fc"], levels["conv"]
        fixed = most = held + override + conv
    else:
        at_once = 1
        most = held + size["fc"] * (4 + item if low else 4) + conv
        fixed = most - int((1 - CHOSEN) * size["fc"] * (4 + item if low else 4))
    if network.layers("conv"):
        count = _conv_chunk(spare, image, at_once, counts.extraction)
        found["conv stage"] = Phase(fixed, most, at_once * image, 2 * at_once * image, count)
    count = _conv_chunk(spare, image, 1, counts.heldout)
    most = held + (9 if gpu else 4) * size["fc"] + 10 * size["conv"]
    fixed = most - int((1 - CHOSEN) * 4 * size["fc"])
    found["held-out test"] = Phase(fixed, most, image, 2 * image, count)
    return found


def _same(fixed: int) -> Phase:
    return Phase(fixed, fixed)


def _conv_chunk(spare: int, image_bytes: int, levels: int, images: int) -> int:
    return min(chunk(spare, levels * image_bytes), FORWARD_CHUNK, images)


def _fc_stage(
    network: Network,
    options: Options,
    counts: Counts,
    spare: int,
    held: int,
    behind: int,
    masked: bool,
    item: int,
) -> Phase:
    """The fc stage: one pass of all levels over chunks of boundary values, or level by level."""
    chain = network.fc_chain()
    fractions = options.grid("fc")[1:]
    weights = [network.relevant_shape(name) for name in network.layers("fc")]
    largest = max(math.prod(w) for w in weights)
    at_once = len(fractions) if masked else 1
    count = min(feature_chunk(spare, behind, len(fractions), masked), counts.extraction)
    booked = 2 * at_once * behind
    if masked or chain is None:  # values at every level; the masked copy of a layer, or its packing
        fixed = held + 2 * item * largest
        return Phase(fixed, fixed, at_once * behind * item // 4 + behind, booked, count)
    first, columns = weights[0]
    hidden = sum(rows for rows, _ in weights)
    alive = (1 - fractions[0]) ** 0.25
    image = 4 * columns + int(2 * item * alive * (columns + hidden))
    image += item * columns if item < 4 else 0
    scratch, differences = _chain_scratch(fractions, first, columns, count, item)
    most = held + item * largest * (2 if item < 4 else 1)
    if item == 4:
        most += int(6 * first * columns * (1 - fractions[0]))
    return Phase(held + scratch + differences, most, image, booked, count)


def _chain_scratch(
    fractions: Sequence[float], rows: int, columns: int, batch: int, item: int
) -> tuple[int, int]:
    """Bytes of the largest compacted matrix of the first layer, and of the sparse differences.

    Survivors are taken as in trained networks, where pruning a fraction p leaves about sqrt(1 - p)
    of the products of rows and columns alive (AlexNet: 0.31 at 0.9, 0.14 at 0.99).
    """
    scratch, nonzeros, sparser = 0, 0, 0.0
    for pruned in reversed(fractions):
        alive = (1 - pruned) ** 0.25
        shape = int(rows * alive), int(columns * alive)
        kept = (1 - pruned) * rows * columns
        added = int(kept - sparser)
        sparser = kept
        if cost.cpu_path(*shape, added, batch, sparse=item == 4) == "dense":
            scratch = max(scratch, shape[0] * shape[1])
        else:
            nonzeros += added
    return item * scratch * (1 if item == 4 else 2), 6 * nonzeros

"""Memory that a run will take, phase by phase, from shapes and options alone.

What counts is what `circuitcore.machine.meter` measures.  The budget (``--memory``) is for what a
run holds: weights, levels, masks, images, activations.  Code is not in it: what a process loads and
compiles on first use, ``CODE`` and a little for every convolution, stands in the prediction only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitcore.engine.resident import resident_bytes
from circuitcore.errors import DeviceError, InputError
from circuitcore.kernels.compilers import on_disk
from circuitcore.kernels.masked import cost
from circuitcore.machine.device import Machine
from circuitcore.network.graph import Network
from circuitcore.network.repeats import Repeats, repeats_of
from circuitcore.network.sizes import activation_bytes, value_sizes
from circuitcore.options import Options
from circuitcore.scoring.ensemble import RANKED_BYTES

FORWARD_CHUNK = 64  # images: their activations stay in a CPU's cache, and fill a GPU
REPLAY_CHUNK = 512  # images a captured pass of a GPU
FEATURE_CHUNK = 4096  # images from the boundary on: more do not make gathering weights cheaper

CODE = 36 << 20  # numba's, oneDNN's, scipy's, on the CPU
COMPILER = 190 << 20  # numba's and LLVM's, where they have to compile
BUFFERS = 48 << 20  # a library's own for matrix products, at most; as large as the largest matrix
CONVOLUTION = 64 << 10  # oneDNN keeps the code of every shape of convolution it met
CONVOLUTIONS = 1024  # but of no more
CHOSEN = 0.5  # of the fc weights are in rows and columns that the chosen fc circuit computes
HISTOGRAM = 1 << 16  # bins
FACTORED = ("actgrad", "ig", "lrp")  # criteria whose scores of a Linear layer are never written out
LOADING = "loading of the model"


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
    machine: Machine,
    counts: Counts,
) -> dict[str, int]:
    """Peak bytes of each phase of a run on images of ``shape`` [C, H, W]; the run's is the largest.

    What depends on the scores is taken as in trained networks.  Raises DeviceError as `for_chunks`
    does.
    """
    spare = for_chunks(network, shape, options, machine, counts)
    images = counts.extraction + counts.heldout
    resident = resident_bytes(network, shape, machine, images, 1, spare)
    found = phases(network, shape, options, machine, counts, spare - resident)
    (*_, stage), convolutions = network.stages, len(network.weighted("conv"))
    layers = convolutions * len(options.grid(stage)) * counts.categories
    code = 0
    if machine.device.type != "cuda":
        largest = 4 * max(weight.numel() for weight in network.weights.values())
        code = CODE + min(BUFFERS, largest) + CONVOLUTION * min(layers, CONVOLUTIONS)
        code += COMPILER if must_compile(machine) else 0
    return {
        name: code + phase.bytes + (0 if name == LOADING else resident)
        for name, phase in found.items()
    }


def for_chunks(
    network: Network,
    shape: Sequence[int],
    options: Options,
    machine: Machine,
    counts: Counts,
) -> int:
    """Bytes of the budget left for images and activations, whatever the scores will be.

    Raises DeviceError naming the least budget, where that is not enough for one image at a time.
    """
    found, budget = phases(network, shape, options, machine, counts, 0), machine.memory
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
    tensors += [each for fixed in network.fixed.values() for each in fixed]
    return 4 * sum(tensor.numel() for tensor in tensors)


def feature_chunk(spare: int, feature_bytes: int, levels: int, masked: bool) -> int:
    """Images at once from the boundary on: masked kernels hold the values of all levels."""
    return min(chunk(spare, feature_bytes * (levels if masked else 1)), FEATURE_CHUNK)


def must_compile(machine: Machine) -> bool:
    """Whether a run will compile CPU kernels, as the first one of an installation does."""
    if machine.device.type != "cpu" or machine.impl not in ("auto", "numba"):
        return False
    from circuitcore.kernels.levels import cpu as levels_cpu  # numba

    return not on_disk(levels_cpu.scan_range)  # whatever the network and the options


def unfit(shape: Sequence[int], error: RuntimeError) -> InputError:
    """What images of ``shape`` [C, H, W] are refused with where a layer fails on them."""
    return InputError(
        f"images of {shape[2]} x {shape[1]} pixels and {shape[0]} channels do not fit the "
        f"network ({error}): give --resize and --crop"
    )


def as_run(
    network: Network, shape: Sequence[int], machine: Machine
) -> tuple[Network, Repeats | None]:
    """The network as it runs on such images, on ``meta``: what its pooling copies counts once.

    Raises RuntimeError where the images do not fit the network.
    """
    repeats = repeats_of(network, shape) if machine.compacts else None
    lean = network.to("meta")
    return lean if repeats is None else repeats.once(lean)[0], repeats


@dataclass(frozen=True)
class _Work:
    """What the phases are counted from: bytes of one image alive at once (``image``), of them from
    the boundary on (``behind``), recorded for the scores (``recorded``); ``size``: relevant weights
    behind the boundary (``fc``) and before it; ``columns`` of the first fc layer, the copies of an
    input counted once.
    """

    network: Network
    options: Options
    machine: Machine
    counts: Counts
    spare: int
    image: int
    behind: int
    recorded: int
    size: dict[str, int]
    columns: int | None

    @property
    def item(self) -> int:
        """Bytes of a number of the sweep."""
        return self.machine.dtype.itemsize

    def levels(self, stage: str | None = None) -> int:
        """Levels run of a stage, the first if not said; level 0 is known."""
        return len(self.options.grid(stage or next(iter(self.network.stages)))) - 1

    def conv_chunk(self, levels: int, images: int) -> int:
        """Images at once through the whole network."""
        most = REPLAY_CHUNK if self.gpu else FORWARD_CHUNK
        return min(chunk(self.spare, levels * self.image), most, images)

    @property
    def gpu(self) -> bool:
        return self.machine.device.type == "cuda"


def phases(
    network: Network,
    shape: Sequence[int],
    options: Options,
    machine: Machine,
    counts: Counts,
    spare: int,
) -> dict[str, Phase]:
    """The phases of a run, in order, with ``spare`` bytes for chunks."""
    values = value_sizes(network, shape)
    lean, repeats = as_run(network, shape, machine)
    layers = [network.step(name) for name in network.weighted()]
    recorded = sum(values[s.inputs[0]] + values[s.name] for s in layers)
    late = network.after_boundary()
    work = _Work(
        network,
        options,
        machine,
        counts,
        spare,
        activation_bytes(lean, shape),
        activation_bytes(lean, shape, after_boundary=True),
        4 * options.scoring_images * options.scoring_passes() * recorded,
        _relevant(network),
        None if repeats is None else lean.weights[repeats.layer].shape[1],
    )
    whole = weight_bytes(network)
    largest = 4 * max(w.numel() for w in network.weights.values())
    logits = 4 * network.outputs * (counts.extraction + counts.heldout)
    held = whole * (6 if machine.dtype.itemsize < 4 else 4) // 4 + logits
    scoring = _scoring(work, held)
    curve = 60 * (work.levels() + 1) * counts.extraction  # float64, and sorted for the bias
    chunk_of_one = work.conv_chunk(1, counts.extraction)
    found = {
        LOADING: Phase(whole + largest, whole + largest),
        "unpruned network": Phase(held, held, work.image, 2 * work.image, chunk_of_one),
        "scoring": Phase(scoring, scoring),
    }
    if work.gpu:  # the graph of scoring and ranking keeps its memory
        held = scoring + work.size["conv"]
    else:
        held += work.recorded
    held += curve + work.size["fc"]  # level bytes or, afterwards, the chosen masks
    for stage, names in network.stages.items():
        kind = _fc_stage if late.issuperset(names) else _conv_stage
        found[f"{stage} stage"] = kind(work, held, stage)
    found["held-out test"] = _heldout(work, held)
    return found


def _relevant(network: Network) -> dict[str, int]:
    """Relevant weights behind the boundary (``fc``) and before it (``conv``)."""
    late, found = network.after_boundary(), {"fc": 0, "conv": 0}
    for name in network.layers():
        found["fc" if name in late else "conv"] += math.prod(network.relevant_shape(name))
    return found


def _scoring(work: _Work, held: int) -> int:
    selection = 10 * HISTOGRAM * work.levels()  # counts int64, a table int16
    factored = work.options.criterion in FACTORED
    if not factored or work.options.impl == "torch":
        selection += (40 if factored else 16) * work.size["fc"]
    if work.options.criterion == "ensemble":  # a stage's units, sorted
        selection += RANKED_BYTES * max(
            work.network.relevant(stage) for stage in work.network.stages
        )
    judged = 40 * work.counts.extraction  # margins, activations, two largest logits
    return held + 2 * work.recorded + judged + selection + work.size["fc"] + 5 * work.size["conv"]


def _conv_stage(work: _Work, held: int, stage: str) -> Phase:
    """Level by level, from the images: on a CPU the fc circuit compacted, on a GPU in buffers.

    Interpreted masked kernels run all levels at once.
    """
    conv = work.size["conv"] * (2 + 2 * work.item)
    at_once = 1
    if work.gpu:
        fixed = most = held + work.item * work.size["fc"] + conv
    elif work.machine.masked_kernels:
        at_once = work.levels(stage)
        fixed = most = held + work.item * work.size["fc"] + conv
    else:
        copied = work.size["fc"] * (4 + work.item if work.machine.low else 4)
        most = held + copied + conv
        fixed = most - int((1 - CHOSEN) * copied)
    count = work.conv_chunk(at_once, work.counts.extraction)
    return Phase(fixed, most, at_once * work.image, 2 * at_once * work.image, count)


def _heldout(work: _Work, held: int) -> Phase:
    most = held + (9 if work.gpu else 4) * work.size["fc"] + 10 * work.size["conv"]
    if work.gpu and work.options.random_masks:  # drawn there, beside the circuit's own
        most += work.network.relevant()
    fixed = most - int((1 - CHOSEN) * 4 * work.size["fc"])
    count = work.conv_chunk(1, work.counts.heldout)
    return Phase(fixed, most, work.image, 2 * work.image, count)


def _fc_stage(work: _Work, held: int, stage: str) -> Phase:
    """From boundary values: one pass of all levels over chunks of them, or level by level."""
    network, item, behind = work.network, work.item, work.behind
    masked = work.machine.masked_kernels
    chain = network.fc_chain()
    fractions = work.options.grid(stage)[1:]
    weights = [network.relevant_shape(name) for name in network.late()]
    largest = max(math.prod(w) for w in weights)
    at_once = len(fractions) if masked else 1
    count = feature_chunk(work.spare, behind, len(fractions), masked)
    count = min(count, work.counts.extraction)
    booked = 2 * at_once * behind
    if masked or chain is None:  # values at every level; the masked copy of a layer, or its packing
        fixed = held + 2 * item * largest
        return Phase(fixed, fixed, at_once * behind * item // 4 + behind, booked, count)
    first, columns = weights[0]
    hidden = sum(rows for rows, _ in weights)
    alive = (1 - fractions[0]) ** 0.25
    if work.columns is not None:
        columns = work.columns
    image = 4 * columns + int(2 * item * alive * (columns + hidden))
    image += item * columns if item < 4 else 0
    if work.columns is None:
        scratch, differences = _chain_scratch(fractions, first, columns, count, item)
    else:  # the sums, a level's rows of them, and the largest of the layers behind
        later = max((math.prod(w) for w in weights[1:]), default=0)
        scratch, differences = 8 * first * columns + int(item * alive**2 * later), 0
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

"""Which networks can be swept, found out by building each, small and with random weights.

The table that comes of it is kept beside this file (`TABLE`), written by ``circuitcore ls models
--check --write``, and is what ``circuitcore ls models`` lists.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.inputs.libraries import of_timm, of_torchvision
from circuitcore.inputs.libraries.empty import Undrawn, Valueless, check_structure
from circuitcore.inputs.libraries.families import FAMILIES
from circuitcore.inputs.models import BOUND, check_trace
from circuitcore.network.compact.compaction import compact
from circuitcore.network.forward import Masks, Override, Tally, forward, target_row
from circuitcore.network.graph import Network
from circuitcore.network.trace import trace
from circuitcore.progress import Progress

TABLE = Path(__file__).parent / "census.json"
SIDE = 64  # pixels, or the least that a network says it takes
SIDES = (128, 224, 256)  # tried in turn where that was too few
IMAGES = 2
LARGEST = 90_000_000  # weights: of larger networks the structure alone is checked
KEPT, FILTERS = 0.5, 0.7  # of the weights, and of the filters, in the masked pass
BLOCK = 1_000_003  # random numbers drawn
UNIT = 1  # the output unit that is asked for


@dataclass(frozen=True)
class Found:
    """One network.  ``difference``: of logits to the module's own, over their spread; ``masked``:
    of a pruned network's activations, masked and compacted, over their size; ``fpe``: multiply-adds
    of that compacted pass over the unpruned one's.  None where it is refused, for the reason
    ``why``, or too large to run here.
    """

    model: str
    works: bool
    why: str = ""
    difference: float | None = None
    masked: float | None = None
    fpe: float | None = None


def census(only: Sequence[str] = (), progress: Progress | None = None) -> list[Found]:
    """Check every network, or those whose names fit one of the patterns ``only``, one at a time."""
    chosen = [name for name in networks() if not only or any(fnmatch(name, p) for p in only)]
    if progress is not None:
        progress.start("networks", len(chosen))
    found = []
    for name in chosen:
        found.append(checked(name))
        if progress is not None:
            row = found[-1]
            progress.advance(1, f"{name}: {row.why or 'works'}")
    return found


def networks() -> list[str]:
    """Every classification network of torchvision, and one of each convolutional family of timm."""
    return [*(f"tv:{n}" for n in of_torchvision.names()), *(f"timm:{n}" for n in FAMILIES)]


def checked(name: str) -> Found:
    """Build one network with random weights and run it three ways."""
    library, _, arch = name.partition(":")
    side = _side(arch) if library == "tv" else SIDE

    def build() -> nn.Module:
        make = of_torchvision.unweighted if library == "tv" else of_timm.unweighted
        return make(arch)

    try:
        with Valueless():
            weights = sum(p.numel() for p in build().parameters())
        if weights > LARGEST:
            check_structure(build, name)
            return Found(
                name, True, f"structure alone checked: {weights / 1e6:.0f} million weights"
            )
        return _measured(name, build, side)
    except InputError as error:
        return Found(name, False, str(error).removeprefix(f"{name}: "))
    except Exception as error:  # of a library, or a fault of ours: either way it cannot be swept
        kind = type(error).__name__
        return Found(name, False, f"fails with {kind}: {' '.join(str(error).split())[:200]}")
    finally:
        gc.collect()


def _side(arch: str) -> int:
    import torchvision.models

    least = torchvision.models.get_model_weights(arch)["DEFAULT"].meta.get("min_size", (SIDE,))
    return max(SIDE, *least)


def _measured(name: str, build: Callable[[], nn.Module], side: int) -> Found:
    random = torch.Generator().manual_seed(0)
    with Undrawn():
        module = build()
    with torch.no_grad():
        _filled(module, random)
        images = _settled(module, side, random)
    network = trace(module)
    difference = check_trace(module, network, images[:1], name)
    del module
    with torch.inference_mode():
        whole = Tally()
        forward(network, {"input": images}, [network.result], override=target_row(network, UNIT),
                tally=whole)  # fmt: skip
        masked, compacted, less = _pruned(network, images, random)
    size = max(float(masked.abs().max()), 1e-30)
    return Found(
        name, True, "", difference, float((masked - compacted).abs().max()) / size,
        less.multiply_adds / whole.multiply_adds,
    )  # fmt: skip


def _filled(module: nn.Module, random: torch.Generator) -> None:
    """Random weights of the scale that keeps activations alive, and norms unlike the neutral."""
    drawn = torch.randn(BLOCK, generator=random)
    for tensor in module.parameters():
        values = _tiled(drawn, tensor.shape)
        if tensor.dim() > 1:
            fan = max(tensor[0].numel(), 1)
            tensor.copy_(values).mul_((2 / fan) ** 0.5)
        else:
            tensor.copy_(values).mul_(0.1).add_(0.75)


def _tiled(block: Tensor, shape: Sequence[int]) -> Tensor:
    """Random numbers of a shape, a block of them over and over: drawing each takes too long."""
    count = math.prod(shape)
    return block.repeat(-(-count // len(block)))[:count].view(shape)


def _settled(module: nn.Module, side: int, random: torch.Generator) -> Tensor:
    """Images of the least size that it takes, its running statistics theirs, as after training."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    *fewer, most = sorted({side, *SIDES})
    for pixels in fewer:
        with suppress(AssertionError, RuntimeError):
            return _seen(module, pixels, random)
    return _seen(module, most, random)


def _seen(module: nn.Module, pixels: int, random: torch.Generator) -> Tensor:
    """Images of this size, that the module has been trained with.  Raises what it raises."""
    images = torch.randn(IMAGES, 3, pixels, pixels, generator=random)
    module.train()
    with torch.inference_mode():
        module(images)
    module.eval()
    return images


def _pruned(
    network: Network, images: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor, Tally]:
    """One unit's activations with some weights and filters pruned: masked, and compacted."""
    row = target_row(network, UNIT)
    drawn = torch.rand(BLOCK, generator=random)
    levels, weights = {}, {}
    for name in network.layers():
        weight = row.weights.get(name, network.weights[name])
        kept = _tiled(drawn, weight.shape) < KEPT
        if name != network.last:
            ones = [1] * (weight.dim() - 1)
            kept &= torch.rand(weight.shape[0], *ones, generator=random) < FILTERS
        levels[name] = kept.to(torch.uint8)
        weights[name] = torch.where(kept, weight, 0.0)
    masks = Masks(levels, [0])
    start = {"input": images}
    masked = forward(network, start, [network.result], override=row, masks=masks)[0][0, :, 0]
    override = Override(weights, row.biases, row.fixed)
    tally = Tally()
    blank = {"input": torch.zeros_like(images[:1])}
    compacted = compact(network, override, blank).gathered(override).run(start, tally)
    return masked, compacted, tally


def table(path: Path = TABLE) -> list[Found]:
    """The committed table."""
    return [Found(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def write_tables(rows: Iterable[Found], whole: bool, path: Path = TABLE) -> None:
    """Write the table, a row a line, and the page of it where there is a docs folder.

    ``whole``: these rows are all; otherwise they take their own places in the table.  Numbers are
    kept to two digits, so that one machine's rounding does not show.
    """
    new = {row.model: row for row in rows}
    if not whole:
        new = {row.model: row for row in table(path)} | new
    ordered = [new[name] for name in networks() if name in new]
    kept = [
        {k: float(f"{v:.1e}") if isinstance(v, float) else v for k, v in asdict(row).items()}
        for row in ordered
    ]
    text = "[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n"
    path.write_text(text, encoding="utf-8")
    docs = path.parents[3] / "docs"
    if docs.is_dir():
        (docs / "models.md").write_text(page(table(path)), encoding="utf-8")


def page(rows: Sequence[Found]) -> str:
    """docs/models.md: what works and what is refused, and why."""
    import timm
    import torchvision

    works, refused = [r for r in rows if r.works], [r for r in rows if not r.works]
    measured = [r for r in works if r.difference is not None]
    worst = max((r.difference or 0 for r in measured), default=0)
    head = f"""# Which networks can be swept

Written by `circuitcore ls models --check --write`, with torchvision {torchvision.__version__}
and timm {timm.__version__}: every classification network of torchvision, and one or a few of each
family of timm's convolutional networks, built with random weights and run on {IMAGES} images of
{SIDE} pixels (or the least that it takes).

*difference*: the largest difference of a logit to the module's own, over the spread of the
logits. A network loaded for a sweep is refused above {BOUND:.0e}; the largest here is {worst:.1e}.
*masked*: the largest difference between a pruned network masked and compacted (half of the
weights, a third of the filters are gone), of one unit's activations, over their size.
*FPE*: multiply-adds of that compacted pass over those of the unpruned network.

{len(works)} work, {len(refused)} do not, for the reason beside them.

| network | difference | masked | FPE |
|---|---|---|---|
"""
    lines = []
    for r in works:
        if r.difference is None:
            lines.append(f"| `{r.model}` | {r.why} | | |")
        else:
            lines.append(f"| `{r.model}` | {r.difference:.1e} | {r.masked:.1e} | {r.fpe:.2f} |")
    lines += ["", "| refused | why |", "|---|---|"]
    lines += [f"| `{r.model}` | {r.why.replace('|', '/')} |" for r in refused]
    return head + "\n".join(lines) + "\n"

"""A weights file for an architecture of torchvision's, timm's or our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.libraries import of_timm, of_torchvision
from circuitcore.inputs.libraries.empty import Valueless
from circuitcore.inputs.libraries.source import Source, stored_categories
from circuitcore.inputs.libraries.state import load_into, plain_state, some, weights_sha256
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.weightfile import Stored, read_header, read_weights

HINT = " Is --arch right?"


def of_file(path: Path, arch: str | None, allow_pickle: bool) -> Source:
    """The network ``arch`` (torchvision's name, ``timm:NAME``, ``bundled``) of a file's weights.

    Where these are weights that torchvision publishes they are loaded and preprocessed as it does;
    else a note says which preprocessing is assumed.  Raises UsageError where there is no such
    architecture and InputError where the file does not fit it.
    """
    if arch is None:
        raise UsageError(f"--model file:{path} needs --arch, for example --arch alexnet")
    _check_arch(arch)
    stored = read_weights(path, allow_pickle=allow_pickle)
    name = f"file:{path.name}"
    torchvisions = arch != "bundled" and not arch.startswith("timm:")
    if torchvisions and (weights := of_torchvision.matching(path, arch, stored.state)):
        module = of_torchvision.pretrained(arch, weights, stored.state)
        said = f"{path.name} holds torchvision's {weights}: loaded and preprocessed as these"
        return of_torchvision.published(name, module, weights, [said])
    shapes = _shapes(arch)
    state, left = plain_state(stored.state, shapes.state_dict(), str(path))
    classes = _classes(path, arch, shapes, state)
    with Valueless():
        module = _built(arch, classes)
    expected = module.state_dict()
    digest = weights_sha256({k: v for k, v in state.items() if k in expected})
    load_into(module, state, str(path), arch, HINT)
    own, said = _assumed(arch, module)
    notes = (*stored.notes, *left, *([f"{path.name}: {said}"] if said else []))
    size = _small_size() if arch == "bundled" else None
    listed = _categories(path, stored, classes)
    return Source(name, module.eval(), listed, own, digest, size, notes)


def _check_arch(arch: str) -> None:
    library, _, name = arch.rpartition(":")
    if library == "timm":
        timm = of_timm.imported(f"--arch {arch}")
        if not timm.is_model(name.partition(".")[0]):
            raise UsageError(
                f"--arch {arch}: no such architecture{nearest(name, timm.list_models())}"
            )
    else:
        known = [*of_torchvision.names(), "bundled"]
        if arch not in known:
            raise UsageError(f"--arch {arch}: no such architecture{nearest(arch, known)}")


def _built(arch: str, classes: int | None) -> nn.Module:
    if arch == "bundled":
        from circuitcore.bundled.network import SmallAlexNet

        return SmallAlexNet(classes or 10)
    if arch.startswith("timm:"):
        return of_timm.unweighted(arch.removeprefix("timm:"), classes)
    return of_torchvision.unweighted(arch, classes)


def _shapes(arch: str) -> nn.Module:
    with Valueless():
        return _built(arch, None)


def _classes(path: Path, arch: str, shapes: nn.Module, state: Mapping[str, Tensor]) -> int:
    """How many output units the file's last layer has."""
    layers = [n for n, m in shapes.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise InputError(f"--arch {arch}: has no layer with weights")
    last = state.get(f"{layers[-1]}.weight")
    if last is None or last.dim() < 2:
        raise InputError(
            f"{path}: has no {layers[-1]}.weight, the last layer of {arch}: it holds "
            f"{some(sorted(state))}.{HINT}"
        )
    return int(last.shape[0])


def _assumed(arch: str, module: nn.Module) -> tuple[Preprocessing, str]:
    """The preprocessing, and a line where it is a guess."""
    if arch == "bundled":
        from circuitcore.bundled.network import load_bundled

        own = load_bundled().preprocessing
        return Preprocessing(None, None, own.mean, own.std, len(own.mean)), ""
    if arch.startswith("timm:"):
        own_ = of_timm.own_transform(module)
        said = of_torchvision.described(own_)
        return own_, f"the preprocessing of {arch} is assumed ({said})"
    return of_torchvision.assumed(arch)


def _small_size() -> tuple[int, int]:
    from circuitcore.bundled.network import INPUT_SIZE

    return INPUT_SIZE[1], INPUT_SIZE[2]


def _categories(path: Path, stored: Stored, classes: int) -> tuple[str, ...] | None:
    if path.suffix != ".safetensors":
        return None
    return stored_categories(read_header(path).get("__metadata__", {}), classes)

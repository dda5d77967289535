"""torchvision's networks, built by its own builders and loaded by its own loaders."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.in_hand import own_preprocessing
from circuitcore.inputs.libraries.empty import Undrawn, check_structure
from circuitcore.inputs.libraries.source import Source
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.weightfile import said_plainly

HASH = 8  # digits of a file's sha256 in its name, as torchvision publishes it


def names() -> list[str]:
    """Every classification architecture."""
    import torchvision.models  # here, not above: seconds that the bundled network does not need

    return list(torchvision.models.list_models(module=torchvision.models))


def of_torchvision(text: str) -> Source:
    """The network ``NAME`` or ``NAME@WEIGHTS``, with the transforms and categories of its weights.

    Raises UsageError where there is no such network or weights; InputError where its structure
    cannot be swept, before any download, and where the weights cannot be had.
    """
    import torchvision.models

    arch, _, chosen = text.partition("@")
    if arch not in names():
        near = nearest(arch, names())
        raise UsageError(
            f"--model tv:{text}: torchvision has no classification model {arch!r}{near}"
        )
    enum = torchvision.models.get_model_weights(arch)
    if chosen and chosen not in enum.__members__:
        raise UsageError(f"--model tv:{text}: weights of {arch} are {', '.join(enum.__members__)}")
    weights = enum[chosen] if chosen else enum["DEFAULT"]
    name = f"tv:{arch}@{weights.name}"
    if not kept(weights).exists():
        check_structure(lambda: unweighted(arch), f"tv:{arch}")
    module = pretrained(arch, weights, _fetched(text, weights))
    return published(name, module, weights)


def published(name: str, module: nn.Module, weights: Any, notes: Sequence[str] = ()) -> Source:
    """A module with weights of torchvision's, and what these say of themselves."""
    own = own_preprocessing(weights.transforms())
    categories = tuple(weights.meta["categories"]) if "categories" in weights.meta else None
    return Source(name, module, categories, own, notes=tuple(notes))


def unweighted(arch: str, classes: int | None = None) -> nn.Module:
    """The architecture as its builder makes it for weights of one's own, without training heads."""
    import torchvision.models

    settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if arch in ("googlenet", "inception_v3"):
        settings.update(init_weights=False, aux_logits=False)
    module: nn.Module = torchvision.models.get_model(arch, weights=None, **settings)
    return module


def pretrained(arch: str, weights: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """What torchvision's builder makes of its own weights, given what their file holds.

    Names of old layers, inputs transformed by the network, versions of a layer's format: all that
    a builder does for pretrained weights is done by the builder.
    """
    import torchvision.models

    with Undrawn(), _handed_over(weights, state), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about training heads, which are not run
        module: nn.Module = torchvision.models.get_model_builder(arch)(weights=weights)
    return module.eval()


@contextmanager
def _handed_over(weights: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Builders ask ``weights`` for their state dict, and would read any pickle: give it to them."""
    weights.get_state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del weights.get_state_dict


def kept(weights: Any) -> Path:
    """Where torch keeps the file of some weights once it is downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def _fetched(text: str, weights: Any) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--model tv:{text}: the weights are not here and cannot be downloaded "
            f"({said_plainly(error)}). Fetch {weights.url} on a machine with a network and put the "
            f"file into {kept(weights).parent}"
        ) from None
    return state


def matching(path: Path, arch: str, state: Mapping[str, Tensor]) -> Any | None:
    """Which of torchvision's weights a file holds: by the hash in a published file's name, else by
    the tensors of those that torch keeps here.  None where it is none of them.
    """
    import torchvision.models

    enum = list(torchvision.models.get_model_weights(arch))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for weights in enum:
        stated = Path(urlparse(weights.url).path).stem.rpartition("-")[2].lower()
        if len(stated) >= HASH and digest.startswith(stated):
            return weights
    for weights in enum:
        if kept(weights).exists():
            held = torch.load(kept(weights), map_location="cpu", weights_only=True)
            if held.keys() == state.keys() and all(torch.equal(held[k], state[k]) for k in held):
                return weights
    return None


def assumed(arch: str) -> tuple[Preprocessing, str]:
    """The preprocessing of an architecture's newest weights, and a line saying it is a guess."""
    import torchvision.models

    newest = torchvision.models.get_model_weights(arch)["DEFAULT"]
    own = own_preprocessing(newest.transforms())
    return own, (
        f"none of torchvision's weights of {arch}: the preprocessing of {newest.name} is assumed "
        f"({described(own)})"
    )


def described(own: Preprocessing) -> str:
    """A preprocessing in the words of its options."""
    mean, std = (",".join(f"{v:.4g}" for v in values) for values in (own.mean, own.std))
    return (
        f"--resize {own.resize}, {own.interpolation}, --crop {own.crop}, --mean {mean}, --std {std}"
    )

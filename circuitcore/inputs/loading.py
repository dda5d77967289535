"""Load the network that ``--model`` names: the bundled one, torchvision's, timm's, a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.in_hand import probe_input
from circuitcore.inputs.libraries.of_file import of_file
from circuitcore.inputs.libraries.of_timm import of_timm
from circuitcore.inputs.libraries.of_torchvision import of_torchvision
from circuitcore.inputs.libraries.permanent import permanent
from circuitcore.inputs.libraries.source import Source, transformed_input
from circuitcore.inputs.libraries.state import weights_sha256
from circuitcore.inputs.models import Model, check_trace
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.network.trace import aside, trace
from circuitcore.options import Options


def load_model(options: Options) -> Model:
    """Load ``options.model`` with its preprocessing, as changed by the flags.

    Raises UsageError for a name that does not exist and InputError for weights that cannot be used.
    """
    name = options.model
    kind, _, rest = name.partition(":")
    if name == "bundled":
        source = _bundled()
    elif rest == "alexnet-shapes":
        raise UsageError(f"--model {name}: shapes without weights, for `plan --target` alone")
    elif kind == "tv" and rest:
        source = of_torchvision(rest)
    elif kind == "timm" and rest:
        source = of_timm(rest)
    elif kind == "file" and rest:
        source = of_file(Path(rest).expanduser(), options.arch, options.allow_pickle)
    else:
        raise UsageError(
            f"--model {name}: one of bundled, tv:NAME@WEIGHTS, timm:NAME, "
            f"file:PATH.safetensors{_meant(name)}"
        )
    own = _flags(source.preprocessing, options)
    return traced(replace(source, preprocessing=own), named=rest if kind == "file" else name)


def _meant(name: str) -> str:
    """What a name without a library, or of none that is known, may have been meant for."""
    import torchvision.models as tv

    if Path(name).expanduser().is_file():
        return f"; did you mean 'file:{name}', with --arch?"
    own = name.partition("@")[0].lower()
    return (
        f"; did you mean 'tv:{own}'?"
        if own in tv.list_models(module=tv)
        else nearest(name, ["bundled"])
    )


def traced(source: Source, named: str | None = None) -> Model:
    """The model of a module as its library made it, held against the module's own forward pass.

    Raises InputError where the module cannot be traced, or computes other logits than its steps.
    """
    module = permanent(source.module)
    own = source.preprocessing
    plain = module
    if getattr(module, "transform_input", False):
        plain = aside(module, hooks=True)
        plain.transform_input = False  # type: ignore[assignment]
    folded = transformed_input(module, own)
    try:
        network = trace(plain)
    except InputError as error:
        raise InputError(f"{named or source.name}: {error}") from None
    size = source.size
    difference = check_trace(
        module, network, probe_input(folded, size), source.name, probe_input(own, size)
    )
    digest = source.sha256 or weights_sha256(source.module.state_dict())
    return Model(
        source.name, network, digest, source.categories, folded,
        difference=difference, notes=source.notes,
    )  # fmt: skip


def _flags(own: Preprocessing, options: Options) -> Preprocessing:
    changes: dict[str, Any] = {}
    for size in ("resize", "crop"):
        value = getattr(options, size)
        if value is not None:
            changes[size] = None if value == "none" else value
    if changes and own.transform is not None:
        if len(changes) < 2:
            raise UsageError(
                f"--{next(iter(changes))}: the network's own transform does more than resize and "
                "crop the centre; give both --resize and --crop to take its place"
            )
        changes["transform"] = None
    for each in ("mean", "std"):
        value = getattr(options, each)
        if value is not None:
            if len(value) not in (1, own.channels):
                raise UsageError(f"--{each}: the network's images have {own.channels} channels")
            changes[each] = tuple(value) * (own.channels if len(value) == 1 else 1)
    return replace(own, **changes)


def _bundled() -> Source:
    from circuitcore.bundled.network import INPUT_SIZE, load_bundled

    module, categories, own = load_bundled()
    preprocessing = Preprocessing(None, None, tuple(own.mean), tuple(own.std), len(own.mean))
    return Source("bundled", module, tuple(categories), preprocessing, size=INPUT_SIZE[1:])

"""Load the network that ``--model`` names: the bundled one, torchvision's, timm's, a file."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.in_hand import (
    own_preprocessing,
)
from circuitcore.inputs.models import Model, check_trace
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.weightfile import read_header, read_weights, tensors_sha256
from circuitcore.network.graph import Network
from circuitcore.network.trace import trace
from circuitcore.options import Options


def load_model(options: Options) -> Model:
    """Load ``options.model`` with its preprocessing, as changed by the flags.

    Raises UsageError for a name that does not exist and InputError for weights that cannot be used.
    """
    name = options.model
    kind, _, rest = name.partition(":")
    if name == "bundled":
        model = _bundled()
    elif rest == "alexnet-shapes":
        raise UsageError(f"--model {name}: shapes without weights, for `plan --target` alone")
    elif kind == "tv" and rest:
        model = _torchvision(rest)
    elif kind == "timm" and rest:
        model = _timm(rest)
    elif kind == "file" and rest:
        model = _file(Path(rest).expanduser(), options)
    else:
        raise UsageError(
            f"--model {name}: one of bundled, tv:NAME@WEIGHTS, timm:NAME, file:PATH.safetensors"
        )
    return replace(model, preprocessing=_flags(model.preprocessing, options))


def _flags(own: Preprocessing, options: Options) -> Preprocessing:
    changes: dict[str, Any] = {}
    for size in ("resize", "crop"):
        value = getattr(options, size)
        if value is not None:
            changes[size] = None if value == "none" else value
    for each in ("mean", "std"):
        value = getattr(options, each)
        if value is not None:
            if len(value) not in (1, own.channels):
                raise UsageError(f"--{each}: the network's images have {own.channels} channels")
            changes[each] = tuple(value) * (own.channels if len(value) == 1 else 1)
    return replace(own, **changes)


def _build(
    name: str, module: nn.Module, state: dict[str, Tensor], source: str
) -> tuple[Network, str]:
    """Load a state dict into a module that has no memory of its own, and trace it."""
    missing, unexpected = [], []
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
        elif state[key].shape != tensor.shape:
            have, want = tuple(state[key].shape), tuple(tensor.shape)
            missing.append(f"{key} (has {have}, {name} needs {want})")
    unexpected = [k for k in state if k not in expected and not _auxiliary(k)]
    if missing or unexpected:
        raise InputError(
            f"{source}: does not fit {name}. Missing: {_some(missing)}. "
            f"Unexpected: {_some(unexpected)}. Is --arch right?"
        )
    full = {k: state.get(k, torch.zeros((), dtype=torch.long)) for k in expected}
    module.load_state_dict(
        {
            k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
            for k, v in full.items()
        },
        assign=True,
    )
    try:
        network = trace(module)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return network, tensors_sha256({k: v for k, v in full.items() if v.is_floating_point()})


def _auxiliary(key: str) -> bool:
    """Training-time heads of GoogLeNet and Inception, which eval mode does not run."""
    return key.lower().startswith("aux")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4]) or "none"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _bundled() -> Model:
    from circuitcore.bundled.network import load_bundled

    module, categories, own = load_bundled()
    state = module.state_dict()
    channels = len(own.mean)
    return Model(
        "bundled",
        trace(module),
        tensors_sha256(state),
        tuple(categories),
        Preprocessing(None, None, tuple(own.mean), tuple(own.std), channels),
    )


def _torchvision_names() -> list[str]:
    import torchvision.models  # here, not above: seconds that the bundled network does not need

    return list(torchvision.models.list_models(module=torchvision.models))


def _empty(arch: str, classes: int | None) -> nn.Module:
    """The architecture without memory for its weights (they are assigned from the file)."""
    settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if arch in ("googlenet", "inception_v3"):
        settings.update(init_weights=False, aux_logits=False)
    with torch.device("meta"):
        if arch == "bundled":
            from circuitcore.bundled.network import SmallAlexNet

            return SmallAlexNet(classes or 10)
        import torchvision.models

        module: nn.Module = torchvision.models.get_model(arch, weights=None, **settings)
    return module


def _torchvision(text: str) -> Model:
    arch, _, chosen = text.partition("@")
    if arch not in _torchvision_names():
        near = nearest(arch, _torchvision_names())
        raise UsageError(
            f"--model tv:{text}: torchvision has no classification model {arch!r}{near}"
        )
    import torchvision.models

    enum = torchvision.models.get_model_weights(arch)
    names = list(enum.__members__)
    if chosen and chosen not in names:
        raise UsageError(f"--model tv:{text}: weights of {arch} are {', '.join(names)}")
    weights = enum[chosen] if chosen else enum["DEFAULT"]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"--model tv:{text}: the weights are not here and cannot be downloaded ({error}). "
            f"Fetch {weights.url} on a machine with a network and put the file into {folder}"
        ) from None
    network, sha256 = _build(arch, _empty(arch, None), state, f"tv:{text}")
    categories = tuple(weights.meta["categories"]) if "categories" in weights.meta else None
    name = f"tv:{arch}@{weights.name}"
    return Model(name, network, sha256, categories, own_preprocessing(weights.transforms()))


def _file(path: Path, options: Options) -> Model:
    arch = options.arch
    if arch is None:
        raise UsageError(f"--model file:{path} needs --arch, for example --arch alexnet")
    known = [*_torchvision_names(), "bundled"]
    if arch not in known:
        raise UsageError(f"--arch {arch}: no such architecture{nearest(arch, known)}")
    state = read_weights(path, allow_pickle=options.allow_pickle)
    modules = _empty(arch, None).named_modules()
    end = [n for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    last = state.get(f"{end}.weight")
    if last is None or last.dim() not in (2, 4):
        raise InputError(
            f"{path}: has no {end}.weight, the last layer of {arch}: it holds "
            f"{_some(sorted(state))}. Is --arch right?"
        )
    network, sha256 = _build(arch, _empty(arch, last.shape[0]), state, str(path))
    categories = None
    if path.suffix == ".safetensors":
        listed = read_header(path).get("__metadata__", {}).get("categories")
        with contextlib.suppress(ValueError, TypeError):
            import json

            names = json.loads(listed)
            categories = tuple(map(str, names)) if len(names) == network.outputs else None
    if arch == "bundled":
        preprocessing = _bundled().preprocessing
    else:
        import torchvision.models

        weights = torchvision.models.get_model_weights(arch)
        preprocessing = own_preprocessing(weights["DEFAULT"].transforms())
    return Model(f"file:{path.name}", network, sha256, categories, preprocessing)


def _timm(name: str) -> Model:
    try:
        import timm
    except ImportError:
        raise UsageError(
            f"--model timm:{name} needs timm: pip install 'circuitcore[timm]'"
        ) from None
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"--model timm:{name}: no such model{nearest(name, timm.list_models())}")
    try:
        module = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # hub errors have many types, most of them only at run time
        raise InputError(
            f"--model timm:{name}: the weights are not here and cannot be downloaded ({error}). "
            "Save them as safetensors on a machine with a network and use file: with --arch"
        ) from None
    own = timm.data.resolve_model_data_config(module)
    crop = own["input_size"][-1]
    network = trace(module)
    image = torch.randn((1, *own["input_size"]), generator=torch.Generator().manual_seed(0))
    check_trace(module, network, image, f"timm:{name}")
    return Model(
        f"timm:{name}",
        network,
        tensors_sha256({k: v for k, v in module.state_dict().items() if v.is_floating_point()}),
        None,
        Preprocessing(
            round(crop / own["crop_pct"]),
            crop,
            tuple(own["mean"]),
            tuple(own["std"]),
            len(own["mean"]),
            own["interpolation"],
        ),
    )

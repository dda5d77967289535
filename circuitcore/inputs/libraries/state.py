"""A checkpoint's tensors under the names of the network they are for, and into it.

What training leaves in a state dict is taken off here: wrappers' prefixes, pruning masks, weight
and spectral norms; what a network cannot be given is refused by its name.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.inputs.weightfile import said_plainly, tensors_sha256

PREFIXES = ("_orig_mod.", "module.", "model.")  # torch.compile's, DataParallel's, Lightning's
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as published files have it
PARAMETRISED = re.compile(r"^(?:(.*)\.)?parametrizations\.([^.]+)\.(.+)$")


def plain_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """Tensors under the names of a network's own, and lines on what was left out.

    ``expected``: the network's own state dict.  Prefixes of wrappers go, weights made of
    a mask, a weight norm or a spectral norm are made for good, float32.  Raises InputError for
    numbers that are no floats (quantised weights) and for parametrisations it does not know.
    """
    prefix = _prefix(state, {name.rpartition(".")[0] for name in expected})
    plain = OrderedDict((k[len(prefix) :], v) for k, v in state.items() if k.startswith(prefix))
    beside = [k for k in state if not k.startswith(prefix)]
    notes = [f"{where}: left out, beside {prefix}...: {some(beside)}"] if beside else []
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        plain._metadata = OrderedDict(  # type: ignore[attr-defined]
            (k[len(prefix) :], v) for k, v in versions.items() if f"{k}.".startswith(prefix)
        )
    for key in list(plain):
        if key not in expected and (new := OLD_DENSENET.sub(r"\1\2", key)) in expected:
            plain[new] = plain.pop(key)
    for key in plain:
        _refuse_type(plain[key], key, where, expected.get(key))
    _make_permanent(plain, where)
    return plain, notes


def some(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(listed[:4]) or "none"
    return shown + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _prefix(state: Mapping[str, Tensor], modules: Collection[str]) -> str:
    """The wrappers' prefix under which most names are those of the network's modules."""
    candidates = {"": 0}
    for key in state:
        rest, off = key, ""
        while start := next((p for p in PREFIXES if rest.startswith(p)), None):
            off, rest = off + start, rest[len(start) :]
            candidates[off] = 0
    for off in candidates:
        inside = (k[len(off) :] for k in state if k.startswith(off))
        candidates[off] = sum(_owner(name) in modules for name in inside)
    if not any(candidates.values()):  # of another network: what all names share
        return max((c for c in candidates if all(k.startswith(c) for k in state)), key=len)
    return max(candidates, key=lambda off: (candidates[off], -len(off)))


def _owner(name: str) -> str:
    found = PARAMETRISED.match(name)
    return (found[1] or "") if found else name.rpartition(".")[0]


def _refuse_type(tensor: Tensor, key: str, where: str, expected: Tensor | None) -> None:
    if tensor.dtype in FLOATS and not tensor.is_quantized:
        return
    small = tensor.is_floating_point() or tensor.dtype in (torch.int8, torch.uint8)
    if expected is None:
        wrong = (small or tensor.is_quantized) and not key.endswith("_mask")
    else:
        wrong = expected.is_floating_point()
    if wrong:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"{where}: {key} is {kind}: a quantised checkpoint, whose numbers mean nothing without "
            "their scales. Give one in float32, float64, float16 or bfloat16"
        )


def _make_permanent(state: OrderedDict[str, Tensor], where: str) -> None:
    """Weights in the place of what a mask, a norm or a parametrisation makes them of."""
    for key in [k for k in state if k.endswith(("_orig", "_g"))]:
        base = key.removesuffix("_orig").removesuffix("_g")
        if f"{base}_mask" in state and key.endswith("_orig"):
            parts = ("_orig", "_mask")
            made: Callable[..., Tensor] = torch.mul
        elif {f"{base}_u", f"{base}_v"} <= state.keys() and key.endswith("_orig"):
            parts, made = ("_orig", "_u", "_v"), _spectral  # type: ignore[assignment]
        elif f"{base}_v" in state and key.endswith("_g"):
            parts, made = ("_g", "_v"), _weight_norm
        else:
            continue
        state[base] = made(*(state.pop(base + part).float() for part in parts))
    parametrised: dict[str, dict[str, str]] = {}
    for key in state:
        if found := PARAMETRISED.match(key):
            base = f"{found[1]}.{found[2]}" if found[1] else found[2]
            parametrised.setdefault(base, {})[found[3]] = key
    for base, keys in parametrised.items():
        if set(keys) == {"original0", "original1"}:
            names, made = ("original0", "original1"), _weight_norm
        elif set(keys) == {"original", "0._u", "0._v"}:
            names, made = ("original", "0._u", "0._v"), _spectral  # type: ignore[assignment]
        else:
            raise InputError(
                f"{where}: {base} is made by a parametrisation whose code the file does not hold: "
                "save it after torch.nn.utils.parametrize.remove_parametrizations"
            )
        state[base] = made(*(state.pop(keys[name]).float() for name in names))


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """g v / |v|, the norm over all but the dimension along which g has its values."""
    dim = next((d for d, size in enumerate(g.shape) if size != 1), 0) if g.dim() else -1
    return torch._weight_norm(v, g, dim)


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The weight over its largest singular value as training last estimated it."""
    return weight / torch.dot(u, torch.mv(weight.flatten(1), v))


def auxiliary(key: str) -> bool:
    """Training-time heads of GoogLeNet and Inception, which eval mode does not run."""
    return key.lower().startswith("aux")


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 of a network's own floats, as stored; training-time heads do not count."""
    return tensors_sha256(
        {k: v for k, v in state.items() if v.is_floating_point() and not auxiliary(k)}
    )


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str, name: str, hint: str = ""
) -> None:
    """Load a plain state dict into a module by the module's own loader, converted to float32.

    Raises InputError naming what is missing, unexpected or of another shape, and ``hint``.
    """
    expected = module.state_dict()
    given = OrderedDict(
        (k, v.float() if v.is_floating_point() else v)
        for k, v in state.items()
        if k in expected or not auxiliary(k)
    )
    versions = getattr(state, "_metadata", None)
    if versions is None:  # as saved by this version of the library: safetensors keeps none
        versions = {n: {"version": v} for n, m in module.named_modules()
                    if (v := getattr(m, "_version", None)) is not None}  # fmt: skip
    given._metadata = versions  # type: ignore[attr-defined]
    try:
        missing, unexpected = module.load_state_dict(given, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        shapes = [
            f"{k} (has {tuple(given[k].shape)}, {name} needs {tuple(v.shape)})"
            for k, v in expected.items()
            if k in given and given[k].shape != v.shape
        ]
        missing = [k for k in expected if k not in given and not _counts(k)] + shapes
        unexpected = [k for k in given if k not in expected]
        if not missing and not unexpected:
            raise InputError(
                f"{source}: cannot be loaded into {name}: {said_plainly(error)}"
            ) from None
    missing = [key for key in missing if not _counts(key)]
    if missing or unexpected:
        raise InputError(
            f"{source}: does not fit {name}. Missing: {some(missing)}. Unexpected: "
            f"{some(unexpected)}. Found: {some(state)}.{hint}"
        )
    for key, tensor in module.named_buffers():
        if tensor.is_meta:  # a counter of training that the file does not hold
            owner, _, last = key.rpartition(".")
            setattr(module.get_submodule(owner), last, torch.zeros((), dtype=tensor.dtype))

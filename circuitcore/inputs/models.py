"""A network to be swept, with what its weights say of themselves; a module in hand as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.inputs.in_hand import (
    check_module,
    identity,
    preprocessing_of,
    probe_input,
)
from circuitcore.inputs.libraries.permanent import permanent
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.weightfile import tensors_sha256
from circuitcore.machine.state import undisturbed
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.network.trace import aside, trace, tracing

BOUND = 1e-4  # of logits' spread, docs/models.md has what networks reach


@dataclass(frozen=True, repr=False)
class Model:
    """A network with what its weights say of themselves."""

    name: str
    network: Network
    sha256: str  # of the weights
    categories: tuple[str, ...] | None  # names of the output units, if the weights carry them
    preprocessing: Preprocessing
    identity: Mapping[str, str] = field(default_factory=dict)  # more of its keys, of one in hand
    check: Callable[[Tensor], object] | None = None  # of one in hand, on one image's input
    difference: float | None = None  # of logits to the module's own on a probe image, over spread
    notes: tuple[str, ...] = ()  # what the user should know of how it was loaded
    module: nn.Module | None = None  # that in hand, as it was given

    def __repr__(self) -> str:
        weights = self.network.relevant()
        return f"Model {self.name}: {self.network.outputs} outputs, {weights:,} weights each"

    @classmethod
    def of(
        cls,
        module: nn.Module,
        transform: Callable[[Any], Any] | None,
        categories: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Model:
        """A module in hand: any torchvision- or timm-like network, with its own transform object.

        ``transform``: makes one image's input [channels, height, width] of a PIL image, as
        torchvision's ``weights.transforms()`` or timm's ``create_transform`` do; None where the
        images come as tensors that are the network's input.  ``categories``: names of the output
        units, in order.  The module is left as it is: its mode, device, hooks and tensors; hooks
        are called once, with a probe image.

        Raises InputError naming the layer where the network cannot be traced (`network.trace`),
        where ``categories`` are not as many as its outputs, and, here or on the first image of a
        run, where the module's forward does something its layers do not show.
        """
        with undisturbed():
            return _in_hand(check_module(module), transform, categories, name)


def _in_hand(
    module: nn.Module,
    transform: Callable[[Any], Any] | None,
    categories: Sequence[str] | None,
    name: str | None,
) -> Model:
    network = trace(permanent(module)).to("cpu", torch.float32)
    if isinstance(categories, str):
        raise InputError("categories: a list of names, not one text")
    listed = categories.values() if isinstance(categories, Mapping) else categories
    names = None if listed is None else tuple(map(str, listed))
    if names is not None and len(names) != network.outputs:
        raise InputError(f"{len(names)} categories for {network.outputs} output units")
    if names is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"categories: {twice!r} is there more than once; names tell units apart")
    preprocessing = preprocessing_of(transform, network.channels)
    label = name or f"module:{type(module).__name__}"

    def check(image: Tensor) -> float:
        return check_trace(module, network, image, label)

    difference = None
    if not preprocessing.ready:
        with suppress(RuntimeError):  # an image of another size than the network's own
            difference = check(probe_input(preprocessing))
    floats = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    return Model(
        label,
        network,
        tensors_sha256(floats),
        names,
        preprocessing,
        identity(network, preprocessing),
        check,
        difference,
        module=module,
    )


def _own_logits(module: nn.Module, shown: Tensor) -> Tensor:
    """What the module gives for the image as it lies, channels last as our own pass has it."""
    try:
        found: Tensor = module(shown)
    except RuntimeError:
        if shown.is_contiguous():
            raise
        found = module(shown.contiguous())  # it views its maps: as a caller's batch lies
    return found


def check_trace(
    module: nn.Module, network: Network, image: Tensor, name: str, given: Tensor | None = None
) -> float:
    """The largest difference of logits to the module's own, over their spread.

    ``image``: network input [1, ...]; ``given``: what the module is given in its place, where it
    transforms its input itself.  Raises InputError above `BOUND`, which rounding does not reach;
    a module in half precision may differ by its own rounding.
    """
    some = next(module.parameters())
    with torch.inference_mode(), tracing:
        shown = (image if given is None else given).clone().to(some.device, some.dtype)
        own = _own_logits(aside(module, hooks=True), shown).float().cpu()
        logits = forward(network, {"input": image}, [network.result])[0]
    largest = float(logits.abs().max())
    spread = max(
        float(logits.max() - logits.min()), 1e-3 * largest, torch.finfo(torch.float32).tiny
    )
    rounding = 4 * torch.finfo(some.dtype).eps * largest if some.dtype != torch.float32 else 0.0
    difference = (
        (logits - own).abs().max() if logits.shape == own.shape else torch.tensor(torch.nan)
    )
    relative = float(difference) / spread
    if not relative <= max(BOUND, rounding / spread):
        raise InputError(
            f"{name}: its forward does something its layers do not show: logits of a probe image "
            f"differ by {relative:.1e} of their spread, {BOUND:.0e} is allowed; refused"
        )
    return relative


def said_of(model: Model) -> list[str]:
    """What loading a model has to tell: its notes, and how far its logits are from its module's."""
    told = list(model.notes)
    if model.difference is not None:
        told.append(
            f"{model.name}: logits of a probe image differ from the module's own by at most "
            f"{model.difference:.1e} of their spread"
        )
    return told

"""timm's networks, with the transform that timm itself makes of a model's configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.in_hand import plain_steps, preprocessing_of
from circuitcore.inputs.libraries.empty import Undrawn, check_structure
from circuitcore.inputs.libraries.source import Source
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.weightfile import said_plainly


def of_timm(name: str) -> Source:
    """The network ``NAME`` or ``NAME.TAG`` with timm's weights, and its own transform.

    Raises UsageError where there is no such network; InputError where its structure cannot be
    swept, before any download, and where the weights cannot be had.
    """
    timm = imported(f"--model timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"--model timm:{name}: no such model{nearest(name, timm.list_models())}")
    check_structure(lambda: unweighted(name), f"timm:{name}")
    try:
        with Undrawn():
            module = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # hub errors have many types, most of them only at run time
        raise InputError(
            f"--model timm:{name}: the weights are not here and cannot be downloaded "
            f"({said_plainly(error)}). Save them on a machine with a network "
            "(safetensors.torch.save_file(model.state_dict(), PATH)) and use --model file:PATH "
            f"--arch timm:{name}"
        ) from None
    return Source(f"timm:{name}", module, None, own_transform(module))


def imported(asked: str) -> Any:
    """timm.  Raises UsageError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise UsageError(f"{asked} needs timm: pip install 'circuitcore[timm]'") from None
    return timm


def unweighted(name: str, classes: int | None = None) -> nn.Module:
    """The architecture as timm makes it for weights of one's own."""
    settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module: nn.Module = imported(name).create_model(name, pretrained=False, **settings)
    return module.eval()


def own_transform(module: nn.Module) -> Preprocessing:
    """What `timm.data.create_transform` makes of the module's configuration, for evaluation."""
    timm = imported("this network")
    data = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**data, is_training=False)
    channels = int(data["input_size"][0])
    return plain_steps(transform, channels) or preprocessing_of(transform, channels)

"""A circuit as plain torch has it: the state dict of the pruned network, and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.network.graph import Network
from circuitcore.records import Category
from circuitcore.runs.circuitfile import StoredCircuit
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.intact import GIVEN, files_of
from circuitcore.runs.means import moved
from circuitcore.runs.paths import file_stem, plain_name


def pruned_state(
    network: Network, unit: int, stored: StoredCircuit, means: Mapping[str, Tensor], last: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dict of the pruned network, and masks, of one output unit's circuit.

    The first is the whole state dict: loaded into the same architecture in plain torchvision, its
    output unit gives the circuit's activation plus the circuit's bias (all other rows of the last
    layer are unchanged, so they are not the unpruned network's logits); of another target the layer
    it was cut at gives the circuit's value there, the layers behind it are whole.  Where a
    rectifier follows the last layer no tensor has room for that bias.  What pruned weights carry
    (``--ablate mean``) is in layers' biases, of a layer without one in the running mean of the
    batch norm behind it.  The second holds one 0/1 float32 mask a weight, named
    ``<layer>.weight``, for ``torch.nn.utils.prune.custom_from_mask``.

    ``network``: whole, not cut at a target; ``last``: the layer whose row is the target's.  Raises
    InputError where no tensor has room for what a layer's pruned weights carry.
    """
    state = state_dict(network)
    whole = {layer: _whole(network, layer, unit, kept, last) for layer, kept in stored.kept.items()}
    masks = {f"{layer}.weight": as_module(network, layer, mask) for layer, mask in whole.items()}
    for layer, mask in whole.items():
        pruned = torch.where(mask > 0, network.weights[layer], 0.0)
        state[f"{layer}.weight"] = as_module(network, layer, pruned)
        if layer in means:
            _add_moved(network, state, layer, mask == 0, means[layer])
    record = stored.record
    if isinstance(record, Category) and record.circuit is not None and network.shifts:
        _add_bias(state, last, unit, record.circuit.bias)
    return {name: each.contiguous() for name, each in state.items()}, masks


def _whole(network: Network, layer: str, unit: int, kept: Tensor, last: str) -> Tensor:
    """A layer's mask, float32, shaped as its weights: of the ``last`` all rows but the unit's."""
    if layer != last:
        return kept.float()
    mask = torch.ones_like(network.weights[layer])
    mask[unit] = kept[0].float()
    return mask


def place_of(
    run: RunFolder, unit: int, category: str, out: Path | None, ending: str = ".safetensors"
) -> Path:
    """Where a file of a circuit that is given away goes.  Raises InputError as `check_out` does.

    ``ending``: of its name, where ``out`` does not say what it is.
    """
    if out is None:
        return run.folder / GIVEN / f"{file_stem(unit, category)}{ending}"
    check_out(run, out, f"{plain_name(category)}{ending}")
    return out


def check_out(run: RunFolder, out: Path, such_as: str) -> None:
    """Raise InputError where ``out`` is a folder, a device, or one of the run's own files."""
    if out.is_dir():
        raise InputError(f"--out {out}: a folder; give the file to write, such as {such_as}")
    if out.exists() and not out.is_file():
        raise InputError(f"--out {out}: not a file; give one to write, such as {such_as}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is no folder")
    own = {path.resolve() for path in files_of(run.folder) if path.parent.name != GIVEN}
    if out.resolve() in own:
        raise InputError(f"--out {out}: a file of the run itself; give another, such as {such_as}")


@contextmanager
def told_where() -> Iterator[None]:
    """Makes an InputError that names the file of what a disk answers to a file asked for."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise InputError(f"{error.filename or 'the file'}: {said}; give another --out") from error


def _add_bias(state: dict[str, Tensor], last: str, unit: int, bias: float) -> None:
    """Add a circuit's bias to its output unit's own."""
    own = state.get(f"{last}.bias")
    if own is None:
        raise InputError(f"layer {last!r} has no bias: the circuit's bias has no place")
    own[unit] += bias


def _add_moved(
    network: Network, state: dict[str, Tensor], layer: str, pruned: Tensor, inputs: Tensor
) -> None:
    """Add what a layer's pruned weights carry to its bias, or take it off the norm behind it."""
    gone = moved(network.weights[layer], pruned, inputs)
    if f"{layer}.bias" in state:
        state[f"{layer}.bias"] += gone
        return
    readers = [step for step in network.steps if layer in step.inputs]
    mean = f"{readers[0].name}.running_mean" if readers else ""
    if [step.op for step in readers] != ["batchnorm"] or mean not in state:
        raise InputError(
            f"layer {layer!r} has no bias, and no batch norm alone behind it: what its pruned "
            "weights carry on average has no place; `Circuit.apply` and `compact` give it one"
        )
    state[mean] -= gone


def state_dict(network: Network) -> dict[str, Tensor]:
    """The network's tensors under the names, and of the shapes, its torch module gives them."""
    state = {
        f"{name}.weight": as_module(network, name, weight).clone()
        for name, weight in network.weights.items()
    }
    state |= {f"{name}.bias": bias.clone() for name, bias in network.biases.items()}
    return state | {name: tensor.clone() for name, tensor in network.others.items()}


def as_module(network: Network, layer: str, weight: Tensor) -> Tensor:
    """A layer's weights, or their mask, of the shape its module has them in.

    Raises InputError naming the layer where the module makes them anew at every call.
    """
    form = network.step(layer).form
    if form == "remade":
        raise InputError(
            f"layer {layer!r} makes its weights anew at every call (weight standardisation): no "
            "state of the module gives the circuit"
        )
    return weight.flatten(1) if form == "linear" else weight

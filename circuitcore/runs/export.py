"""Export a circuit to plain torch: a state dict, and masks for ``torch.nn.utils.prune``."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save

from circuitcore.errors import InputError
from circuitcore.inputs.models import Model
from circuitcore.machine.files import write_atomically
from circuitcore.network.graph import Network
from circuitcore.records import Category
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.means import means_in, moved


def export(run: RunFolder, unit: int, model: Model, out: Path | None) -> tuple[Path, Path]:
    """Write ``<name>.safetensors`` and ``<name>.masks.safetensors`` of one output unit's circuit.

    The first is the pruned network's whole state dict: loaded into the same architecture in plain
    torchvision, its output unit gives the circuit's activation plus the circuit's bias (all other
    rows of the last layer are unchanged, so they are not the unpruned network's logits); of another
    target the layer it was cut at gives the circuit's value there, the layers behind it are whole.
    Where a rectifier follows the last layer no tensor has room for that bias: it is in the header
    alone.  What pruned weights carry (``--ablate mean``) is in layers' biases, of a layer without
    one in the running mean of the batch norm behind it.
    The second holds one 0/1 float32 mask a weight, named ``<layer>.weight``, for
    ``torch.nn.utils.prune.custom_from_mask``.  Returns both paths.  Raises InputError where the
    category is not done, has no circuit, or the weights of ``model`` are not the run's, and where
    no tensor has room for what a layer's pruned weights carry.
    """
    stored = read_circuit(run.circuit_path(unit))
    if stored.record.circuit is None:
        why = stored.record.undefined or "it is not defined"
        raise InputError(f"{run.folder}: {stored.record.category!r} has no circuit: {why}")
    if model.sha256 != run.manifest["model"]["weights_sha256"]:
        raise InputError(
            f"{run.folder}: the model's weights are not those of the run (sha256 differs)"
        )
    network, last = model.network, run.manifest["model"]["last"]
    state, means = state_dict(network), means_in(run.folder, run.manifest)
    whole = {layer: _whole(network, layer, unit, kept, last) for layer, kept in stored.kept.items()}
    masks = {f"{layer}.weight": as_module(network, layer, mask) for layer, mask in whole.items()}
    for layer, mask in whole.items():
        pruned = torch.where(mask > 0, network.weights[layer], 0.0)
        state[f"{layer}.weight"] = as_module(network, layer, pruned)
        if layer in means:
            _add_moved(network, state, layer, mask == 0, means[layer])
    header = {
        "circuitcore": "export/1",
        "category": stored.record.category,
        "index": str(unit),
        "model": model.name,
        **({"ablate": "mean"} if means else {}),
    }
    if isinstance(stored.record, Category):
        bias = stored.record.circuit.bias
        header["bias"] = repr(bias)
        if network.shifts:
            _add_bias(state, last, unit, bias)
    path = _place(run, unit, stored.record.category, out)
    second = path.with_name(path.name.removesuffix(".safetensors") + ".masks.safetensors")
    write_atomically(path, save({k: v.contiguous() for k, v in state.items()}, metadata=header))
    write_atomically(second, save(masks, metadata=header))
    return path, second


def _whole(network: Network, layer: str, unit: int, kept: torch.Tensor, last: str) -> torch.Tensor:
    """A layer's mask, float32, shaped as its weights: of the ``last`` all rows but the unit's."""
    if layer != last:
        return kept.float()
    mask = torch.ones_like(network.weights[layer])
    mask[unit] = kept[0].float()
    return mask


def _place(run: RunFolder, unit: int, category: str, out: Path | None) -> Path:
    """Where the state dict goes.  Raises InputError where that is a folder."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", category)
    if out is not None and out.is_dir():
        raise InputError(
            f"--out {out}: a folder; give the file to write, such as {plain}.safetensors"
        )
    return out or run.folder / "export" / f"{unit:04d}-{plain}.safetensors"


def _add_bias(state: dict[str, torch.Tensor], last: str, unit: int, bias: float) -> None:
    """Add a circuit's bias to its output unit's own."""
    own = state.get(f"{last}.bias")
    if own is None:
        raise InputError(f"layer {last!r} has no bias: the circuit's bias has no place")
    own[unit] += bias


def _add_moved(
    network: Network, state: dict[str, torch.Tensor], layer: str, pruned: torch.Tensor,
    inputs: torch.Tensor,
) -> None:  # fmt: skip
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
            "weights carry on average has no place; `Circuit.apply` gives it one"
        )
    state[mean] -= gone


def state_dict(network: Network) -> dict[str, torch.Tensor]:
    """The network's tensors under the names, and of the shapes, its torch module gives them."""
    state = {
        f"{name}.weight": as_module(network, name, weight).clone()
        for name, weight in network.weights.items()
    }
    state |= {f"{name}.bias": bias.clone() for name, bias in network.biases.items()}
    return state | {name: tensor.clone() for name, tensor in network.others.items()}


def as_module(network: Network, layer: str, weight: torch.Tensor) -> torch.Tensor:
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

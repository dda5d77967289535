"""The circuit that is given away, with the network it is of: all that its files are made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from circuitcore.engine.footprint import unfit
from circuitcore.engine.passes import compacted
from circuitcore.errors import InputError
from circuitcore.inputs.libraries.of_timm import unweighted as timm_unweighted
from circuitcore.inputs.libraries.of_torchvision import unweighted as tv_unweighted
from circuitcore.inputs.libraries.permanent import permanent
from circuitcore.inputs.models import Model
from circuitcore.inputs.read import InHand, model_of
from circuitcore.inputs.targets import aimed
from circuitcore.network.ablation import means_of
from circuitcore.network.compact.module import CompactCircuit
from circuitcore.network.graph import Network
from circuitcore.network.repeats import repeats_of
from circuitcore.options import Options
from circuitcore.records import Category
from circuitcore.runs.circuitfile import StoredCircuit
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.means import means_in


@dataclass(frozen=True)
class Subject:
    """A circuit of a run and its network.

    ``network``: what leads to the target, with what pruned weights carry; ``model``: whole;
    ``means``: mean inputs by layer, none where pruned weights carry nothing.
    """

    run: RunFolder
    unit: int
    stored: StoredCircuit
    options: Options
    model: Model
    network: Network
    means: Mapping[str, Tensor]
    given: InHand

    @property
    def name(self) -> str:
        """The category's or target's."""
        return self.stored.record.category

    @property
    def bias(self) -> float:
        """The circuit's, in units of the logit; 0 of a target that is no category."""
        record = self.stored.record
        alone = isinstance(record, Category) and record.circuit is not None
        return record.circuit.bias if alone else 0.0  # type: ignore[union-attr]


def subject_of(run: RunFolder, unit: int, given: InHand, **engine: Any) -> Subject:
    """A circuit and its network, read.

    ``engine``: options of how to compute, on the CPU unless they name a device: nobody expects
    files to be written by a GPU.  Raises InputError where the category is not done, has no circuit,
    or the weights of the model are not the run's.
    """
    if not {"device", "gpu"} & engine.keys():
        engine = {"impl": "auto", **engine, "device": "cpu"}
    stored = run.circuit(unit)
    options = run.options(**engine)
    model = model_of(options, given)
    if model.sha256 != run.manifest["model"]["weights_sha256"]:
        raise InputError(
            f"{run.folder}: the model's weights are not those of the run (sha256 differs)"
        )
    network = aimed(model, options)[0].network if options.target else model.network
    means = means_in(run.folder, run.manifest)
    if means:
        network = replace(network, means=means_of(network, _of(network, means)))
    return Subject(run, unit, stored, options, model, network, means, given)


def _of(network: Network, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mean for name, mean in means.items() if name in network.weights}


@torch.no_grad()
def compact_module(
    subject: Subject, shape: Sequence[int], whole: bool = False, bias: bool = True
) -> CompactCircuit:
    """The circuit compacted for images of ``shape`` [C, H, W], on the CPU in float32.

    ``whole``: the unpruned network made the same way, up to the same target.  Raises InputError
    where such images do not fit the network.
    """
    network, kept = subject.network, {} if whole else subject.stored.kept
    blank = {"input": torch.zeros(1, *shape, dtype=next(iter(network.weights.values())).dtype)}
    try:
        repeats = repeats_of(network, shape)
        found = compacted(network, subject.unit, kept, blank, repeats)
    except RuntimeError as error:
        raise unfit(shape, error) from None
    return CompactCircuit(found, subject.bias if bias else 0.0, shape)


def plain_module(subject: Subject) -> nn.Module:
    """The architecture as its library makes it, or the module in hand, to load a state into.

    Raises InputError where a module in hand cannot be copied.
    """
    if subject.model.module is not None:
        try:
            return copy.deepcopy(permanent(subject.model.module)).float().cpu().eval()
        except Exception as error:
            raise InputError(f"the module cannot be copied ({error})") from error
    source, outputs = architecture(subject), subject.model.network.outputs
    if source == "bundled":
        from circuitcore.bundled.network import SmallAlexNet

        return SmallAlexNet(classes=outputs).eval()
    kind, _, name = source.partition(":")
    made = timm_unweighted if kind == "timm" else tv_unweighted
    return made(name, outputs).eval()


def architecture(subject: Subject) -> str:
    """``bundled``, ``tv:NAME``, ``timm:NAME``, or ``in hand``."""
    if subject.model.module is not None:
        return "in hand"
    named = subject.options.model
    if named.startswith("file:"):
        arch = subject.options.arch or ""
        return arch if arch == "bundled" or arch.startswith("timm:") else f"tv:{arch}"
    return named.partition("@")[0]

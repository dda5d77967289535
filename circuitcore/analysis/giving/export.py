"""Write a circuit for others: each file is read back and tried before it takes its name.

<name>.safetensors         the pruned network's state dict
<name>.masks.safetensors   masks for ``torch.nn.utils.prune``
<name>.onnx                the compacted circuit as ONNX, where it is asked for
<name>.pt2                 the compacted circuit as a program of torch (`compact`)
<name>.card.md             the card: what they are, numbers, how to load them
<name>.card.json           the same for programs, with the hash of each file
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from circuitcore.analysis.giving.card import card_text
from circuitcore.analysis.giving.facts import facts_of, file_facts, merged
from circuitcore.analysis.giving.programs import (
    onnx_bytes,
    onnx_in,
    program_bytes,
    program_in,
    program_of,
    require_onnx,
)
from circuitcore.analysis.giving.sample import Checked, Sample, image_shape, sample_of
from circuitcore.analysis.giving.speed import (
    BATCH,
    Speed,
    device_name,
    quartiles,
    side_by_side,
)
from circuitcore.analysis.giving.subject import (
    Subject,
    compact_module,
    plain_module,
    subject_of,
)
from circuitcore.errors import CircuitcoreError, InputError
from circuitcore.inputs.read import InHand
from circuitcore.inputs.targets import aimed
from circuitcore.machine.device import machine
from circuitcore.machine.files import sealed, write_atomically, write_tried
from circuitcore.network.compact.module import CompactCircuit
from circuitcore.network.forward import forward
from circuitcore.network.trace import trace
from circuitcore.progress import Progress
from circuitcore.records import Category
from circuitcore.runs.export import place_of, pruned_state, told_where
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.intact import CARD

ENDING, CARD_TEXT = ".safetensors", ".card.md"


class Exported(tuple[Path, Path]):
    """The state dict's file and the masks' file; ``onnx`` where it was asked for.

    ``card`` (Markdown) and ``facts`` (the same as JSON) tell of them; ``checked`` by file name: how
    its activations stood against the run's, None where there was nothing to try it on.
    """

    card: Path
    facts: Path
    onnx: Path | None
    checked: dict[str, Checked | None]


@dataclass(frozen=True)
class CompactFile:
    """A compacted circuit's file, its card, how it stood against the run, and how fast it is."""

    file: Path
    card: Path
    facts: Path
    checked: Checked | None
    speed: Speed | None


@told_where()
def export(
    run: RunFolder, unit: int, given: InHand, out: Path | None, progress: Progress,
    *, onnx: bool = False, **engine: Any,
) -> Exported:  # fmt: skip
    """Write state dict, masks and card of one output unit's circuit; with ``onnx`` that too.

    Cost: `sample.sample_of`, and a pass over its images for each file.  Raises InputError where the
    category is not done, has no circuit, or the weights are not the run's, where no tensor has room
    for what a layer's pruned weights carry; UsageError where the extra is not installed;
    CircuitcoreError where what was written is not the circuit.
    """
    if onnx:
        require_onnx()
    subject = subject_of(run, unit, given, **engine)
    path = place_of(run, unit, subject.name, out)
    last = str(run.manifest["model"]["last"])
    state, masks = pruned_state(subject.model.network, unit, subject.stored, subject.means, last)
    sample, header = sample_of(subject, progress), _header(subject)
    files: dict[str, Any] = {}
    content = save(state, metadata=header)
    biased = subject.bias if subject.model.network.shifts else 0.0
    _write(path, content, files, sample, lambda read: _of_state(subject, read, progress), biased)
    second = _beside(path, ".masks.safetensors")
    _write_masks(second, save(masks, metadata=header), files, masks)
    third = _beside(path, ".onnx") if onnx else None
    if third is not None:
        shape = image_shape(subject) if sample is None else sample.shape
        content = onnx_bytes(compact_module(subject, shape))
        _write(third, content, files, sample, onnx_in, subject.bias, input=list(shape))
    found = Exported((path, second))
    found.card, found.facts = _write_card(subject, path, files, sample)
    found.onnx = third
    found.checked = {name: _checked(each) for name, each in files.items()}
    return found


@told_where()
def compact(
    run: RunFolder, unit: int, given: InHand, out: Path | None, progress: Progress,
    *, timed: bool = True, **engine: Any,
) -> CompactFile:  # fmt: skip
    """Write one output unit's circuit as a smaller dense network that torch alone runs.

    ``timed``: measure it beside the unpruned network, some 20 seconds.  Raises as `export` does,
    and InputError where the size of the run's images is not known.
    """
    subject = subject_of(run, unit, given, **engine)
    path = place_of(run, unit, subject.name, out, ".pt2")
    sample = sample_of(subject, progress)
    shape = image_shape(subject) if sample is None else sample.shape
    module, files = compact_module(subject, shape), dict[str, Any]()
    content = program_bytes(module)
    _write(path, content, files, sample, program_in, subject.bias, input=list(shape))
    speed = _speed(subject, module, sample, progress) if timed and sample else None
    card, facts = _write_card(subject, path, files, sample, speed)
    return CompactFile(path, card, facts, _checked(files[path.name]), speed)


def _beside(path: Path, ending: str) -> Path:
    """The same name with another ending."""
    stem = path.name
    for known in (ENDING, ".pt2", ".onnx"):
        stem = stem.removesuffix(known)
    return path.with_name(stem + ending)


def _header(subject: Subject) -> dict[str, str]:
    """What safetensors files say of themselves."""
    record = subject.stored.record
    header = {
        "circuitcore": "export/1",
        "category": record.category,
        "index": str(subject.unit),
        "model": subject.model.name,
        **({"ablate": "mean"} if subject.means else {}),
        "key": subject.stored.key,
        "weights_sha256": subject.model.sha256,
    }
    return {**header, "bias": repr(subject.bias)} if isinstance(record, Category) else header


def _write(
    path: Path, content: bytes, files: dict[str, Any], sample: Sample | None,
    read: Callable[[bytes], Callable[[Tensor], Tensor] | None], bias: float, **more: Any,
) -> None:  # fmt: skip
    """Write a file once what is read back of it gives the run's activations."""
    told: dict[str, Any] = {"checked": None, **more}

    def tried(again: bytes) -> None:
        function = read(again)
        if sample is not None and function is not None:
            found = sample.check(path.name, sample.run(function), bias)
            told["checked"] = found.model_dump(mode="json", exclude_none=True)

    write_tried(path, content, tried)
    files[path.name] = file_facts(content, **told)


def _checked(each: Mapping[str, Any]) -> Checked | None:
    return Checked(**each["checked"]) if each.get("checked") else None


def _write_masks(
    path: Path, content: bytes, files: dict[str, Any], masks: Mapping[str, Tensor]
) -> None:
    """Write masks once those that are read back are the circuit's, each bit."""

    def tried(again: bytes) -> None:
        found = load(again)
        same = found.keys() == masks.keys()
        if not same or not all(torch.equal(found[name], mask) for name, mask in masks.items()):
            raise CircuitcoreError(f"{path}: read back it holds other masks than the circuit's")

    write_tried(path, content, tried)
    files[path.name] = file_facts(content)


def _of_state(
    subject: Subject, content: bytes, progress: Progress
) -> Callable[[Tensor], Tensor] | None:
    """The plain module with a state that was read back; None where it takes no such state."""
    try:
        module = plain_module(subject)
        module.load_state_dict(load(content))
    except (InputError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        progress.note(f"the state dict was not tried in the module itself: {said}")
        return None
    if subject.options.target:
        return _at_target(subject, module)

    def run(images: Tensor) -> Tensor:
        found: Tensor = module(images)
        return found.flatten(1)[:, subject.unit]

    return run


def _at_target(subject: Subject, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module's value at the target: read as a network anew, and cut there."""
    from dataclasses import replace

    model = replace(subject.model, network=trace(module))
    network = aimed(model, subject.options)[0].network

    def run(images: Tensor) -> Tensor:
        return forward(network, {"input": images}, [network.result])[0][:, subject.unit]

    return run


def _write_card(
    subject: Subject, path: Path, files: Mapping[str, Any], sample: Sample | None,
    speed: Speed | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """Card and facts of the files beside them, those too that are there from before."""
    card, document = _beside(path, CARD_TEXT), _beside(path, CARD)
    facts = merged(facts_of(subject), document, files)
    if sample is not None:
        facts["input"] = list(sample.shape)
    if speed is not None:
        facts["speed"] = speed.model_dump(mode="json")
    text = card_text(facts).encode()
    facts["files"] = {**facts["files"], card.name: file_facts(text)}
    write_atomically(card, text)
    write_atomically(document, sealed(facts))
    return card, document


def _speed(subject: Subject, module: CompactCircuit, sample: Sample, progress: Progress) -> Speed:
    """The circuit's program and the unpruned network's, side by side on the run's device."""
    device = machine(subject.options).device
    whole = compact_module(subject, sample.shape, whole=True, bias=False)
    progress.note("measuring its speed beside the unpruned network's: up to half a minute")
    images = sample.batch(BATCH).to(device)
    both: list[Any] = [program_of(each.to(device)).module() for each in (module, whole)]
    mine, theirs = side_by_side(both[0], both[1], images)
    flag = "" if device.type == "cpu" else f" --device {device}"
    run = os.path.relpath(subject.run.folder)  # as it may be typed here, and no folder beyond
    run = subject.run.folder.name if run.startswith(os.pardir) else run
    return Speed(
        circuit_seconds=quartiles(mine),
        network_seconds=quartiles(theirs),
        ratio=quartiles([b / a for a, b in zip(mine, theirs, strict=True)]),
        circuit_multiply_adds=module.multiply_adds,
        network_multiply_adds=whole.multiply_adds,
        batch=BATCH,
        rounds=len(mine),
        threads=torch.get_num_threads(),
        device=device_name(device),
        torch=torch.__version__,
        command=f"circuitcore compact {shlex.quote(run)} {subject.unit}{flag}",
    )

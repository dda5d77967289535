"""What there is to know of a circuit that is given away, as one document beside its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import circuitcore
from circuitcore.analysis.controls import CONTROLS
from circuitcore.analysis.giving.licence import licence_of
from circuitcore.analysis.giving.subject import Subject, architecture
from circuitcore.analysis.targets import control_rows
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.machine.files import read_sealed
from circuitcore.options import TARGET_DEFAULTS, Options
from circuitcore.records import Category
from circuitcore.runs.folder import NOT_KEPT
from circuitcore.runs.intact import CARD_FORMAT

OF_RECORD = ("unpruned", "empty", "circuit", "faithfulness", "random_masks", "judge", "pool")
PLACED = ("model", "images", "categories", "folder")  # options, and where images were
KINDS = {".pt2": "program", ".onnx": "onnx", ".masks.safetensors": "masks",
         ".safetensors": "state"}  # fmt: skip


def facts_of(subject: Subject) -> dict[str, Any]:
    """All but the files, JSON throughout."""
    record, options = subject.stored.record, subject.options
    said = record.model_dump(mode="json")
    target = "category" if isinstance(record, Category) else "target"
    chosen = _unplaced(options.as_json(exclude=NOT_KEPT))
    own = {**Options().as_json(), **(TARGET_DEFAULTS if options.target else {})}
    return {
        "format": CARD_FORMAT,
        "circuitcore": circuitcore.__version__,
        target: record.category,
        "index": record.index,
        "key": subject.stored.key,
        "network": {
            "name": subject.model.name,
            "architecture": architecture(subject),
            "outputs": subject.model.network.outputs,
            "last": subject.run.manifest["model"]["last"],
            "weights_sha256": subject.model.sha256,
            "licence": licence_of(subject),
        },
        "preprocessing": _preprocessing(subject.model.preprocessing),
        "images": _unplaced(subject.run.manifest["images"]),
        "bias": subject.bias if target == "category" else None,
        "bias_in_state": target == "category" and subject.model.network.shifts,
        "numbers": {name: said[name] for name in OF_RECORD if said.get(name) is not None},
        "controls": _controls(subject),
        "layers": [
            {"layer": name, "kept": int(mask.sum()), "of": mask.numel()}
            for name, mask in subject.stored.kept.items()
        ],
        "options": chosen,
        "changed": {n: v for n, v in chosen.items() if own.get(n) != v},
        "versions": subject.run.manifest["versions"],
    }


def _unplaced(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the folders that files lie in here, which are nobody else's business."""
    found = dict(values)
    for name in PLACED:
        value = found.get(name)
        if isinstance(value, str) and "/" in value:
            kind = "file:" if value.startswith("file:") else ""
            found[name] = kind + Path(value).name
    return found


def _controls(subject: Subject) -> list[dict[str, Any]]:
    """Rows of the run's controls for this circuit, where it has them."""
    rows = control_rows(subject.run.folder / CONTROLS)
    return [row for row in rows if subject.name in (row.get("category"), row.get("target"))]


def _preprocessing(own: Preprocessing) -> dict[str, Any]:
    transform = None if own.transform is None else type(own.transform).__name__
    steps = getattr(own.transform, "transforms", None)
    return {
        "resize": own.resize,
        "crop": own.crop,
        "interpolation": own.interpolation,
        "mean": list(own.mean),
        "std": list(own.std),
        "channels": own.channels,
        "transform": transform if steps is None else [str(step) for step in steps],
        "ready": own.ready,
    }


def file_facts(content: bytes, **more: Any) -> dict[str, Any]:
    """Of one file: bytes, hash, and what else is known of it."""
    digest = hashlib.sha256(content).hexdigest()
    return {"bytes": len(content), "sha256": digest, "torch": torch.__version__, **more}


def kind_of(name: str) -> str:
    """What a file is, by its name: ``state``, ``masks``, ``program`` or ``onnx``."""
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), "state")


def merged(facts: Mapping[str, Any], card: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    """A circuit's facts with its files, those too that were given away before and are there still.

    What an earlier card says of other circuits or options is dropped.
    """
    before: Any = {}
    with suppress(OSError, ValueError):  # none, or damaged: made anew
        before = read_sealed(card)
    mine = isinstance(before, dict) and before.get("key") == facts["key"]
    kept = before.get("files", {}) if mine else {}
    kept = {
        name: each
        for name, each in kept.items()
        if name.endswith(tuple(KINDS)) and _is(card.with_name(name), each)
    }
    speed = before.get("speed") if mine and any(kind_of(n) == "program" for n in kept) else None
    found = {**facts, "files": {**kept, **files}}
    return found if speed is None else {**found, "speed": speed}


def _is(path: Path, told: Any) -> bool:
    try:
        return bool(hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"])
    except (OSError, KeyError, TypeError):
        return False

"""A run folder: manifest, image list, one committed file a category, and what is derived from them.

    RUN/manifest.json   images.parquet   units/ab/abcd....safetensors   failed/   logs/
        means.safetensors                             where pruned weights carry mean inputs
        curves.parquet   overlap.parquet   report.html      derived, rebuilt at any time

A unit's key is the sha256 of everything that changes its numbers and of nothing that does not, so
running the same command again goes on where the last run stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

import circuitcore
from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.categories import Category as Unit
from circuitcore.inputs.categories import finder
from circuitcore.inputs.images.codec import decoder_name
from circuitcore.inputs.in_hand import fingerprint
from circuitcore.inputs.read import IN_HAND, Inputs
from circuitcore.kernels import verdicts
from circuitcore.machine.device import resolve_dtype
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.network.target import DIRECTION
from circuitcore.options import Options, changing, options_of
from circuitcore.records import Found
from circuitcore.runs.circuitfile import (
    StoredCircuit,
    checked_key,
    read_circuit,
    read_record,
    read_unit_header,
)
from circuitcore.runs.means import MEANS
from circuitcore.runs.paths import MANIFEST, meant, unit_file
from circuitcore.runs.paths import canonical as canonical
from circuitcore.runs.paths import unit_key as unit_key
from circuitcore.runs.tables import IMAGES, write_images

NUMERICS = 3  # raised when the same inputs would give other numbers
PROBE = "probe_sha256"  # of one image's input: in the keys of runs since it was added
PLAN = "plan.json"
NOT_KEPT = frozenset(changing("call"))
FORMAT = "circuitcore.run/1"
AGAIN = "run the same sweep again: what is damaged is set aside and made anew"


def configuration(inputs: Inputs, options: Options) -> dict[str, Any]:
    """Everything that changes the numbers of a run, and nothing else."""
    images = sorted((i.split, i.category, i.sha256) for i in inputs.images)
    preprocessing = inputs.model.preprocessing
    return {
        "numerics": NUMERICS,
        "weights_sha256": inputs.model.sha256,
        "images_sha256": hashlib.sha256(canonical(images)).hexdigest(),
        "decoder": decoder_name(preprocessing.decoder),
        "resize": preprocessing.resize,
        "crop": preprocessing.crop,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        PROBE: fingerprint(preprocessing),
        "dtype": resolve_dtype(options),
        "screen": options.screen,
        **options.method(),
        **inputs.model.identity,
        **({} if inputs.aim is None else {"target": inputs.aim.key()}),
    }


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists, with its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def path(self, unit: int) -> Path:
        """The file of output unit ``unit``, whether it is there or not."""
        return self.folder / unit_file(self.manifest["configuration"], unit)

    def units(self) -> dict[int, Path]:
        """Files of the finished categories by output unit, in unit order."""
        every = {c["index"]: self.path(c["index"]) for c in self.manifest["categories"]}
        return {unit: path for unit, path in every.items() if path.exists()}

    def finished(self, unit: int) -> bool:
        """Whether a whole, undamaged file of this unit is there."""
        try:
            return checked_key(self.path(unit)) == self.path(unit).stem
        except InputError:
            return False

    @property
    def of_targets(self) -> bool:
        """Whether it is a run of other targets than categories."""
        return "target" in self.manifest

    def records(self) -> list[Found]:
        """The finished categories' (or targets') records, in unit order."""
        return list(self.each_record())

    def each_record(self) -> Iterator[Found]:
        """`records`, read one after another."""
        try:
            for path in self.units().values():
                yield self._with_file(read_record(path)[1], path)
        except InputError as error:
            raise InputError(f"{error}; {AGAIN}") from None

    def _with_file(self, record: Found, path: Path) -> Found:
        if record.circuit is None:
            return record
        file = path.relative_to(self.folder).as_posix()
        circuit = record.circuit.model_copy(update={"file": file})
        found: Found = record.model_copy(update={"circuit": circuit})
        return found

    def unit_of(self, category: str | int) -> int:
        """Output unit of a category by name, folder or number.  Raises UsageError."""
        listed = [Unit(c["index"], c["name"], c["folder"]) for c in self.manifest["categories"]]
        found = finder(listed)(category)
        if found is None:
            text, known = str(category), [c.name for c in listed]
            raise UsageError(f"{self.folder}: no category {text!r}{nearest(text, known)}")
        return found.index

    def circuit_path(self, unit: int) -> Path:
        """The committed file of output unit ``unit``.  Raises InputError where it is not done."""
        path = self.path(unit)
        if not path.exists():
            name = next(c["name"] for c in self.manifest["categories"] if c["index"] == unit)
            raise InputError(f"{self.folder}: {name!r} is not done yet; run the sweep again")
        return path

    def circuit(self, unit: int) -> StoredCircuit:
        """The circuit of output unit ``unit``.  Raises InputError where none is committed."""
        stored = read_circuit(self.circuit_path(unit))
        self.check_circuit(stored.record)
        return stored

    def check_circuit(self, record: Found) -> None:
        """Raise InputError, with the reason, where a category that is done has no circuit."""
        if record.circuit is None:
            why = record.undefined or "it is not defined"
            raise InputError(f"{self.folder}: {record.category!r} has no circuit: {why}")

    def options(self, **changes: Any) -> Options:
        """The options the run was made with, some of them changed.  Raises OptionsError."""
        return options_of({**self.manifest["options"], "out": str(self.folder), **changes})

    def other_versions(self) -> str | None:
        """That other versions of what numbers may depend on made it, where that is so."""
        made, now = self.manifest.get("versions", {}), versions()
        other = [k for k in ("circuitcore", "torch") if k in made and made[k] != now[k]]
        if not other:
            return None
        listed = ", ".join(f"{name} {made[name]}, now {now[name]}" for name in other)
        return (
            f"{self.folder}: begun with {listed}; its circuits are kept, numbers being made alike "
            f"(numerics {NUMERICS})"
        )

    def contents(self) -> str:
        """Which unit files are there, with what in them: what a derived table is of."""
        told = [f"{unit} {read_unit_header(path).sha256}" for unit, path in self.units().items()]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


def open_run(folder: Path) -> RunFolder:
    """Open a run folder.  Raises InputError where it is none, or its manifest is damaged."""
    try:
        manifest = read_sealed(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        there = "it has no" if folder.is_dir() else "there is no such folder, and so no"
        raise InputError(f"{folder}: no run folder ({there} {MANIFEST}){meant(folder)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST}: damaged: {error}; {AGAIN}") from None
    if lacks := _lacks(manifest):
        raise InputError(f"{folder / MANIFEST}: damaged: it has no {lacks}; {AGAIN}")
    if manifest.get("format", FORMAT) != FORMAT:
        raise InputError(
            f"{folder / MANIFEST}: format {manifest['format']!r}, this version reads {FORMAT!r}: "
            "use the version of circuitcore that wrote it"
        )
    return RunFolder(folder, manifest)


def _lacks(manifest: Any) -> str | None:
    """What a manifest needs and has not."""
    if not isinstance(manifest, dict):
        return "names and values"
    kinds = {"configuration": dict, "options": dict, "categories": list}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return name
    for each in manifest["categories"]:
        whole = isinstance(each, dict) and isinstance(each.get("index"), int)
        if not whole or not all(isinstance(each.get(n), str) for n in ("name", "folder")):
            return "whole categories"
    return None


def create_run(folder: Path, inputs: Inputs, options: Options, device: torch.device) -> RunFolder:
    """Open the run folder, or make it: manifest first, atomically, then the image list.

    Raises InputError naming the differing keys where the folder holds another configuration.
    """
    if (folder / MANIFEST).exists():
        run = open_run(folder)
        refuse_other(run, inputs, options, f"--out {folder}")
    else:
        config = configuration(inputs, options)
        run = RunFolder(folder, _manifest(inputs, options, device, config))
        _refuse_strangers(run)
        write_atomically(folder / MANIFEST, sealed(run.manifest))
    if not (folder / IMAGES).exists():
        write_images(folder / IMAGES, inputs)
    return run


def refuse_other(run: RunFolder, inputs: Inputs, options: Options, where: str) -> None:
    """Raise InputError naming the differing keys where a run was made with other than these."""
    config, old = configuration(inputs, options), run.manifest["configuration"]
    config = {k: v for k, v in config.items() if k != PROBE or k in old}  # older runs have none
    differing = [k for k in sorted({*old, *config}) if old.get(k) != config.get(k)]
    if not differing:
        return
    given = [(k, old.get(k), config.get(k)) for k in differing]
    shown = "\n".join(
        f"  {k}: {_short(there)} there, {_short(now)} now{where}"
        for k, there, now, where in _as_given(given)
    )
    again = {"threshold", "stop", "reference"} >= {k.removeprefix("fc_").removeprefix("conv_")
                                                   for k in differing}  # fmt: skip
    raise InputError(
        f"{where}: holds a run of another configuration:\n{shown}\n"
        "Give another --out, or the same options"
        + (f"; 'circuitcore extract {run.folder}' chooses anew from its curves" if again else "")
    )


def _refuse_strangers(run: RunFolder) -> None:
    """Raise InputError where a folder without a manifest has circuits, and none of this run's."""
    there = {path.stem for path in run.folder.glob("units/*/*.safetensors")}
    own = {run.path(c["index"]).stem for c in run.manifest["categories"]}
    if there and not there & own:
        raise InputError(
            f"--out {run.folder}: its {MANIFEST} is gone, and its {len(there)} circuits are of "
            "another configuration: give the options it was made with, or another --out"
        )


def _manifest(
    inputs: Inputs, options: Options, device: torch.device, config: dict[str, Any]
) -> dict[str, Any]:
    """What a new run is made with."""
    network = inputs.model.network
    never = {*network.layers(), DIRECTION}
    skipped = [name for name in network.weighted() if name not in never]
    return {
        "format": FORMAT,
        "model": {
            "name": inputs.model.name,
            "weights_sha256": inputs.model.sha256,
            "outputs": network.outputs,
            "last": network.last,
            **({} if network.shifts else {"shifts": False}),
            **({"skipped": skipped} if skipped else {}),
            "relevant_weights": network.relevant(),
        },
        "images": {
            "folder": inputs.source.place,
            "mapping": inputs.mapping.rule,
            **{s: len(inputs.split(s)) for s in ("scoring", "extraction", "heldout")},
        },
        **({} if inputs.aim is None else {"target": inputs.aim.key()}),
        "categories": [
            {"index": c.index, "name": c.name, "folder": c.folder} for c in inputs.categories
        ],
        "configuration": config,
        "options": {**options.as_json(exclude=NOT_KEPT), **_located(options)},
        "device": str(device),
        "kernels": verdicts.states(device),
        "shared_fpe": inputs.shared_fpe,
        "versions": versions(),
    }


def versions() -> dict[str, Any]:
    """Versions of what makes the numbers here."""
    return {
        "circuitcore": circuitcore.__version__,
        "numerics": NUMERICS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _located(options: Options) -> dict[str, str]:
    """What options name on this disk, by whole paths: a run is opened from anywhere."""
    found = {}
    if options.images not in ("bundled", IN_HAND):
        found["images"] = os.path.abspath(Path(options.images).expanduser())
    if options.model.startswith("file:"):
        file = Path(options.model.removeprefix("file:")).expanduser()
        found["model"] = f"file:{os.path.abspath(file)}"
    if options.categories is not None:
        found["categories"] = os.path.abspath(options.categories.expanduser())
    return found


def _as_given(differing: list[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any, str]]:
    """Settings that differ, as options are given: once where both stages differ alike."""
    by_name = {name: (there, now, "") for name, there, now in differing}
    for name in ("levels", "threshold"):
        fc, conv = (by_name.get(f"{stage}_{name}") for stage in ("fc", "conv"))
        if fc is not None and fc == conv:
            del by_name[f"fc_{name}"], by_name[f"conv_{name}"]
            by_name[name] = *fc[:2], f" (fc_{name} and conv_{name})"
    return [(name, *by_name[name]) for name in sorted(by_name)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def remove_refused(folder: Path) -> None:
    """Delete a run folder that was made for a sweep then refused, unless anything is done in it."""
    if not (folder / MANIFEST).exists() or any(folder.glob("units/*/*")):
        return
    for path in (PLAN, MEANS, IMAGES, "quarantine/images.json", MANIFEST):
        (folder / path).unlink(missing_ok=True)
    for path in ("quarantine", "units", "."):
        with suppress(OSError):  # not there, or not empty
            (folder / path).rmdir()

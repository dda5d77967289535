"""What a run of other targets than categories reads: the cut network, directions, images.


There is no category that an image could belong to.  So any folder of images will do, and labels of
one that has them are not looked at: extraction and held-out images are drawn from it at random, and
of up to 500 others (of ``train`` where the layout has it) those score a target in which it is the
most active, as Hamblin et al. score on the images of interest.  None is in two sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.categories import Category
from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.image_files import PARTS, Folder, ImageFile, Images
from circuitcore.inputs.images.listing import Listing
from circuitcore.inputs.images.policy import is_image
from circuitcore.inputs.models import Model
from circuitcore.inputs.pixels import Preprocessing, to_input
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.network.target import channels, cut, is_map, step_called
from circuitcore.options import Options
from circuitcore.options.values import Targets, read_targets

POOL = 500  # images among which those that score a target are looked for
ALL = "all"  # the one group that unlabelled images are
NO_CATEGORY = -1
CHUNK = 64


@dataclass(frozen=True)
class Aim:
    """Targets of one layer: ``names`` by index; ``pool``: over positions, None where there are
    none; ``sha256`` of the directions, "" of units.
    """

    layer: str
    units: tuple[int, ...]
    names: tuple[str, ...]
    pool: str | None
    sha256: str = ""

    def key(self) -> dict[str, Any]:
        """What of it changes the numbers."""
        return {"layer": self.layer, "units": list(self.units), "sha256": self.sha256}

    def categories(self) -> tuple[Category, ...]:
        """The targets in the place of a run's categories."""
        both = zip(self.units, self.names, strict=True)
        return tuple(Category(unit, name, name) for unit, name in both)


def aimed(model: Model, options: Options) -> tuple[Model, Aim]:
    """The model with its network cut at ``--target``, and what it is cut at.

    Raises UsageError for a layer or unit that is not there, InputError for a direction that does
    not fit.
    """
    asked = read_targets(options.target)
    assert asked is not None
    network = model.network
    name = step_called(network, asked.layer)
    pool = options.pool_target if is_map(network, name) else None
    if pool is None and options.pool_target != "max":
        raise UsageError(
            f"--pool-target {options.pool_target}: a unit of {asked.layer} has no positions"
        )
    if not asked.files:
        found = cut(network, name, options.pool_target)
        beyond = [unit for unit in asked.units if unit >= found.outputs]
        if beyond:
            raise UsageError(
                f"--target {asked.layer}:{beyond[0]}: the layer has units 0 to {found.outputs - 1}"
            )
        names = tuple(f"{asked.layer}:{unit}" for unit in asked.units)
        return replace(model, network=found), Aim(asked.layer, asked.units, names, pool)
    matrix = _directions(asked, channels(network, name))
    found = cut(network, name, options.pool_target, matrix)
    names = tuple(f"{asked.layer}:{Path(file).name}" for file in asked.files)
    digest = hashlib.sha256(matrix.numpy().tobytes()).hexdigest()
    aim = Aim(asked.layer, tuple(range(len(names))), names, pool, digest)
    return replace(model, network=found), aim


def _directions(asked: Targets, count: int) -> Tensor:
    """The vectors of all files: float32 [K, count]."""
    rows = []
    for file in asked.files:
        row = _vector(Path(file).expanduser())
        said = f"--target {asked.layer}:{file}"
        if row.numel() != count or max(row.shape, default=0) != count:
            raise InputError(f"{said}: shape {tuple(row.shape)}, the layer has {count} channels")
        if not bool(torch.isfinite(row).all()) or not bool(row.any()):
            raise InputError(f"{said}: a direction is finite and not zero")
        rows.append(row.flatten().float())
    return torch.stack(rows)


def _vector(file: Path) -> Tensor:
    try:
        if file.suffix == ".npy":
            return torch.from_numpy(np.asarray(np.load(file, allow_pickle=False), np.float64))
        found = list(load_file(file).values())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"--target {file}: cannot be read: {error}") from None
    if len(found) != 1:
        raise InputError(f"--target {file}: holds {len(found)} tensors, one is needed")
    return found[0]


class Unlabelled:
    """Images of a source as one group, in an order drawn from ``seed``: an `Images`.

    ``train`` and ``val`` as the source has them; of a plain folder, which may hold folders, ``val``
    is all but the last images, at most `POOL`, that are not among its first ``wanted``.
    """

    def __init__(self, source: Images, wanted: int, seed: int) -> None:
        self._source, self._seed = source, seed
        self._alone = isinstance(source, Listing) and source.alone
        self._plain = _is_plain(source)
        if _is_plain(source):
            self._listed = self._divided(_images_in(source.root), wanted)
        elif self._alone:
            every = [name for names in self._parts().values() for name in names]
            self._listed = self._divided(sorted(every), wanted)
        else:
            self._listed = {part: self._drawn(names) for part, names in self._parts().items()}

    def _parts(self) -> dict[str, list[str]]:
        groups = self._source.categories()
        return {p: [n for g in groups for n in self._source.listed(p, g)] for p in PARTS}

    def _divided(self, names: Sequence[str], wanted: int) -> dict[str, list[str]]:
        names = self._drawn(names)
        size = min(POOL, max(len(names) - wanted, 0))
        return {"val": names[: len(names) - size], "train": names[len(names) - size :]}

    def _drawn(self, names: Sequence[str]) -> list[str]:
        order = np.random.default_rng([self._seed, 29]).permutation(len(names))
        return [names[place] for place in order]

    @property
    def place(self) -> str:
        """The source's."""
        return self._source.place

    def parts(self) -> dict[str, list[str]]:
        """One category in each."""
        return {part: [ALL] for part in PARTS}

    def categories(self) -> list[str]:
        """One."""
        return [ALL]

    def notes(self) -> list[str]:
        """The source's, but for how it would be split by category."""
        return [] if self._plain or self._alone else self._source.notes()

    def listed(self, part: str, category: str) -> list[str]:
        """All names of a part, in the order drawn."""
        return self._listed[part]

    def where(self, *name: str) -> str:
        """As the source calls it."""
        return self._source.where(*(part for part in name if part != ALL))

    def sha256(self, name: str) -> str:
        """The source's."""
        return self._source.sha256(name)

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """The source's."""
        return self._source.pixels(name, preprocessing)


def _images_in(root: Path) -> list[str]:
    """Images of a folder and of those in it, sorted."""
    return sorted(
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if is_image(file.name) and not file.name.startswith(".")
    )


def _is_plain(source: Images) -> TypeGuard[Folder]:
    """Whether it is a folder without ImageNet's layout."""
    if not isinstance(source, Folder):
        return False
    if not source.root.is_dir():
        raise InputError(f"--images {source.root}: no such folder")
    return not all((source.root / part).is_dir() for part in PARTS)


def unlabelled(source: Images, options: Options) -> tuple[Unlabelled, tuple[int, int, int]]:
    """The images of a run of targets, and how many score (may score), extract and are held out."""
    wanted = options.extraction_images + options.heldout_images + options.max_bad
    found = Unlabelled(source, wanted, options.seed)
    pool = min(POOL, len(found.listed("train", ALL)) - options.max_bad)
    scoring = max(pool, options.scoring_images)
    return found, (scoring, options.extraction_images, options.heldout_images)


@dataclass
class Pool:
    """Images of which some score a target: those in which it is the most active.

    ``files``: P of them, of which ``count`` score a target.  They are decoded, and the cut network
    is run on them, once.
    """

    source: Images
    files: Sequence[ImageFile]
    model: Model
    count: int
    _values: Tensor | None = field(default=None, repr=False)

    @cached_property
    def pixels(self) -> np.ndarray:
        """Decoded: [P, channels, height, width]."""
        return decode_all(self.source, self.files, self.model.preprocessing)

    def values(self, device: torch.device) -> Tensor:
        """Every target's value on every image: float32 [P, K], on the CPU."""
        if self._values is None:
            network = self.model.network.to(device)
            self._values = _run(network, self.pixels, self.model.preprocessing, device)
        return self._values

    def most_active(self, unit: int, device: torch.device) -> list[int]:
        """Places of the ``count`` images of largest value, the largest first, ties in order."""
        own = self.values(device)[:, unit]
        found: list[int] = own.argsort(descending=True, stable=True)[: self.count].tolist()
        return found

    def images(self, unit: int, device: torch.device) -> Tensor:
        """These images as network input, float32 on ``device``."""
        rows = self.most_active(unit, device)
        return to_input(self.pixels[rows], self.model.preprocessing, device)

    def names(self, unit: int, device: torch.device) -> list[str]:
        """What these images are called."""
        return [self.files[row].path for row in self.most_active(unit, device)]


@torch.inference_mode()
def _run(
    network: Network, pixels: np.ndarray, preprocessing: Preprocessing, device: torch.device
) -> Tensor:
    parts = [
        forward(network, {"input": to_input(part, preprocessing, device)}, [network.result])[0]
        for part in np.array_split(pixels, -(-len(pixels) // CHUNK))
    ]
    return torch.cat(parts).float().cpu()

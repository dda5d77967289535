"""All that a run reads from outside: the model, and which images score, extract and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.categories import Category, map_folders
from circuitcore.inputs.categories import Mapping as FolderMapping
from circuitcore.inputs.decoding import decode_all, unreadable_images
from circuitcore.inputs.image_files import (
    PARTS,
    ImageFile,
    Images,
    choose_images,
    repeated_images,
)
from circuitcore.inputs.images.codec import decoder_name
from circuitcore.inputs.images.opening import open_images
from circuitcore.inputs.loading import load_model
from circuitcore.inputs.models import Model, said_of
from circuitcore.inputs.pixels import to_input
from circuitcore.inputs.targets import ALL, NO_CATEGORY, Aim, Pool, aimed, unlabelled
from circuitcore.network.ablation import Means
from circuitcore.network.stages import staged
from circuitcore.options import Options
from circuitcore.options.values import parse_stages
from circuitcore.progress import Progress

IN_HAND = "in hand"  # stands in the options for a model or images given as objects


@dataclass(frozen=True)
class InHand:
    """A model and images given as objects; None where the options name them."""

    model: Model | None = None
    images: Images | None = None

    @property
    def any(self) -> bool:
        """Whether another process could not read the same again."""
        return self.model is not None or self.images is not None


@dataclass(frozen=True)
class Inputs:
    """Model and image list of a run: all that its keys depend on, before any pixel is decoded."""

    model: Model
    source: Images
    mapping: FolderMapping
    images: tuple[ImageFile, ...]
    left_out: Mapping[str, str]  # unreadable images, and what is wrong with them
    aim: Aim | None = None  # of other targets than categories, which then are these
    pool: Pool | None = None
    notes: tuple[str, ...] = ()  # how the images were read, what is left out otherwise
    averaged: bool = False  # pruned weights carry the mean over all scoring images

    @property
    def categories(self) -> tuple[Category, ...]:
        """The output units that have images."""
        return self.mapping.categories

    @property
    def shared_fpe(self) -> float:
        """Passes over the extraction set that are run once for all.

        The unpruned network's, over the pool, and over scoring images that are averaged.
        """
        pool = 0 if self.pool is None else len(self.pool.files) / len(self.split("extraction"))
        return 1.0 + pool + self.averaged_fpe

    @property
    def averaged_fpe(self) -> float:
        """The part of it that finds mean inputs."""
        scoring, once = len(self.split("scoring")), len(self.split("extraction"))
        return scoring / once if self.averaged else 0.0

    def tell(self, progress: Progress) -> None:
        """Tell the user what there is to know of how model and images were read."""
        for note in (*said_of(self.model), *self.notes):
            progress.note(note)

    def split(self, name: str) -> list[ImageFile]:
        """The images of ``scoring``, ``extraction`` or ``heldout``."""
        return [image for image in self.images if image.split == name]

    def averaging(self, means: Means) -> Inputs:
        """The same with a network whose pruned weights carry these."""
        network = replace(self.model.network, means=means)
        return replace(self, model=replace(self.model, network=network))

    def scoring_images(self, unit: int, device: torch.device) -> Tensor:
        """Normalised scoring images of one category or target, float32 on ``device``."""
        if self.pool is not None:
            return self.pool.images(unit, device)
        files = [image for image in self.split("scoring") if image.category == unit]
        pixels = decode_all(self.source, files, self.model.preprocessing)
        return to_input(pixels, self.model.preprocessing, device)


def images_of(options: Options) -> Images:
    """The images that ``--images`` names."""
    return open_images(options.images, options.scoring_images, labelled=not options.target)


def read_inputs(options: Options, given: InHand | None = None) -> Inputs:
    """Load the model and choose the images, with ``--max-bad`` those that can be decoded.

    Raises InputError or UsageError as `load_model`, `open_images`, `map_folders` and
    `choose_images` do.
    """
    given = given or InHand()
    _refuse_missing("model", options.model, given.model)
    _refuse_missing("images", options.images, given.images)
    _refuse_settings(options, given.model)
    decoder_name(options.decoder)  # refused before anything is read
    source = given.images or images_of(options)
    model = model_of(options, given)
    model = replace(model, preprocessing=replace(model.preprocessing, decoder=options.decoder))
    if options.target:
        return _of_targets(options, source, model)
    parts = source.parts()
    drops = options.incomplete == "drop"
    # all of them, though some be dropped: by rank a category would else become its neighbour
    folders = sorted(set().union(*parts.values())) if drops else source.categories()
    mapping = map_folders(folders, model.network.outputs, model.categories, options.categories)
    notes = list(source.notes())
    counts = options.scoring_images, options.extraction_images, options.heldout_images
    if drops and (lacking := _incomplete(source, mapping.categories, counts)):
        mapping = replace(
            mapping, categories=tuple(c for c in mapping.categories if c not in lacking)
        )
        listed = ", ".join(f"{c.name} ({why})" for c, why in lacking.items())
        notes.append(f"categories left out for want of images: {listed}")
        if not mapping.categories:
            raise InputError(f"{source.where()}: no category has images enough: {listed}")
    pairs = [(c.index, c.folder) for c in mapping.categories]
    images, bad, again = _chosen(source, pairs, counts, model, options)
    if again:
        shown = ", ".join(sorted(again)[:3]) + " ..." * (len(again) > 3)
        notes.append(f"images left out that are there already ({len(again)}): {shown}")
    averaged = options.ablate == "mean"
    return Inputs(model, source, mapping, tuple(images), bad, notes=tuple(notes), averaged=averaged)


def _incomplete(
    source: Images, categories: Sequence[Category], counts: tuple[int, int, int]
) -> dict[Category, str]:
    """Categories that have too few images, and why."""
    need = dict(zip(PARTS, (counts[0], counts[1] + counts[2]), strict=True))
    lacking = {}
    for category in categories:
        have = {part: len(source.listed(part, category.folder)) for part in PARTS}
        short = [f"{have[p]} of {need[p]} in {p}" for p in PARTS if have[p] < need[p]]
        if short:
            lacking[category] = ", ".join(short)
    return lacking


def _chosen(
    source: Images,
    pairs: Sequence[tuple[int, str]],
    counts: tuple[int, int, int],
    model: Model,
    options: Options,
) -> tuple[list[ImageFile], dict[str, str], set[str]]:
    """The images of a run, the unreadable ones and the repeated ones left out."""
    bad: dict[str, str] = {}
    again: set[str] = set()
    hashes: dict[str, str] = {}
    while True:  # what takes the place of one image may be unreadable or repeated itself
        before = len(bad) + len(again)
        if options.max_bad:
            bad = unreadable_images(
                source, pairs, counts, model.preprocessing, options.max_bad, again
            )
        if options.duplicates == "drop":
            again |= repeated_images(source, pairs, counts, {*bad, *again}, hashes)
        if len(bad) + len(again) == before:
            break
    return choose_images(source, pairs, counts, {*bad, *again}, hashes), bad, again


def _of_targets(options: Options, source: Images, model: Model) -> Inputs:
    """The same where the network is cut at ``--target``.  Raises as `aimed` and `choose_images`."""
    model, aim = aimed(model, options)
    group, counts = unlabelled(source, options)
    pairs = [(NO_CATEGORY, ALL)]
    bad: dict[str, str] = {}
    if options.max_bad:
        bad = unreadable_images(group, pairs, counts, model.preprocessing, options.max_bad)
    images = tuple(choose_images(group, pairs, counts, bad))
    scoring = [image for image in images if image.split == "scoring"]
    pool = Pool(group, scoring, model, options.scoring_images)
    mapping = FolderMapping(aim.categories(), f"units of {aim.layer}")
    averaged = options.ablate == "mean"
    return Inputs(model, group, mapping, images, bad, aim, pool, tuple(group.notes()), averaged)


def model_of(options: Options, given: InHand | None = None) -> Model:
    """The model alone, its layers in the stages asked for.  Raises as `read_inputs` does for it."""
    given = given or InHand()
    _refuse_missing("model", options.model, given.model)
    model = given.model or load_model(options)
    if not options.stages and not options.skip:
        return model
    groups = parse_stages(options.stages) if options.stages else ()
    return replace(model, network=staged(model.network, groups, options.skip))


def _refuse_missing(what: str, named: str, given: object | None) -> None:
    if named == IN_HAND and given is None:
        raise InputError(
            f"the {what} of this run came in hand, as an object of the calling program: "
            f"open it there, circuitcore.open_run(RUN, {what}=...)"
        )


def _refuse_settings(options: Options, model: Model | None) -> None:
    changed = [n for n in ("resize", "crop", "mean", "std") if getattr(options, n) is not None]
    if model is not None and changed:
        raise UsageError(f"--{changed[0]}: a model in hand brings its own transform")

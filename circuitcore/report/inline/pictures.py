"""Small pictures of a run's images: one a category, and what its circuit said of single ones.

The run folder says which images; they lie where the manifest says, or are gone.  A picture is shown
only where its file is still the one that the run judged, by its sha256.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from circuitcore.errors import CircuitcoreError
from circuitcore.inputs.image_files import Images
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.read import IN_HAND, images_of
from circuitcore.machine.room import cores
from circuitcore.report.drawing.small import small_svg
from circuitcore.runs.circuitfile import read_decisions
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.images.decisions import Decision
from circuitcore.runs.tables import IMAGES, read_rows

KIND = "image/webp"
QUALITY = 70
WHOLE = Preprocessing(resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """An image: which of `Pictures.thumbs` it is (None: not to be had), and what was said of it.

    ``category``: what it is of; ``margin`` and ``unpruned`` as of `decisions.Decision`, None where
    they are infinite (a network of one output).
    """

    thumb: int | None
    category: str
    margin: float | None
    unpruned: float | None


@dataclass(frozen=True)
class Seen:
    """What a circuit said of held-out images: hits the surest first, misses the nearest first.

    ``hit``, ``missed``: how many there are of the category's images whose decisions are kept.
    """

    hit: int
    missed: int
    hits: Sequence[Shown]
    misses: Sequence[Shown]
    alarms: Sequence[Shown]


@dataclass(frozen=True)
class Pictures:
    """Thumbnails, WebP as base64; one a category by unit, and `Seen` by unit.

    ``missing``: why pictures are missing, where some are; ``drawings``: of circuits, SVG by unit.
    """

    thumbs: Sequence[str] = ()
    own: Mapping[int, int] = field(default_factory=dict)
    seen: Mapping[int, Seen] = field(default_factory=dict)
    drawings: Mapping[int, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Album:
    """A run's held-out images: their rows in its list, and where they are read from, if they are.

    ``missing``: why they are not.
    """

    run: RunFolder
    rows: Sequence[Row] = ()
    source: Images | None = None
    missing: str = ""

    @property
    def place(self) -> str:
        """Where the manifest says that images are."""
        return str(self.run.manifest["images"]["folder"])


def album_of(run: RunFolder) -> Album:
    """The held-out images of a run; none of a run of other targets."""
    if run.of_targets:
        return Album(run)
    try:
        rows = [row for row in read_rows(run.folder / IMAGES) if row["split"] == "heldout"]
    except CircuitcoreError as error:
        return Album(run, missing=f"No pictures: {error}.")
    options = run.options()
    if options.images == IN_HAND:
        why = "No pictures: the images of this run came in hand, as objects of a program."
        return Album(run, rows, missing=why)
    found = Album(run, rows)
    try:
        return replace(found, source=images_of(options))
    except (CircuitcoreError, OSError):
        return replace(found, missing=f"No pictures: images not found at {found.place}.")


def pictures_of(album: Album, units: Sequence[int], side: int, most: int) -> Pictures:
    """Pictures of ``side`` pixels of the categories ``units`` of a run.

    ``most``: how many hits, misses and false alarms of each; 0 for one picture a category alone.
    Cost: one file read and decoded a picture.
    """
    run, rows = album.run, album.rows
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row["category"], place)
    names = {c["index"]: c["name"] for c in run.manifest["categories"]}
    own = {unit: first[names[unit]] for unit in units if names[unit] in first}
    decided = {unit: _Decided.of(run, unit, len(rows)) for unit in units} if most else {}
    listed = (d.image for each in decided.values() for d in each.first(most))
    wanted = dict.fromkeys([*own.values(), *listed])
    made, missing = _thumbnails(album, {place: rows[place] for place in wanted}, side)
    number = {place: n for n, place in enumerate(made)}
    return Pictures(
        thumbs=list(made.values()),
        own={unit: number[place] for unit, place in own.items() if place in number},
        seen={unit: each.seen(most, rows, number) for unit, each in decided.items() if any(each)},
        missing=missing,
    )


def drawings_of(run: RunFolder, units: Sequence[int]) -> dict[int, str]:
    """Small drawings of circuits by unit, of those that `show` has been asked for."""
    found = {unit: small_svg(run, unit) for unit in units}
    return {unit: svg for unit, svg in found.items() if svg is not None}


class _Decided(NamedTuple):
    """The decisions of a category by kind, the surest to be the category first."""

    hits: list[Decision]
    misses: list[Decision]
    alarms: list[Decision]

    @classmethod
    def of(cls, run: RunFolder, unit: int, images: int) -> _Decided:
        kept = read_decisions(run.path(unit)) or []
        every = sorted((d for d in kept if d.image < images), key=lambda d: -d.margin)
        return cls(
            [d for d in every if d.target and d.margin > 0],
            [d for d in every if d.target and not d.margin > 0],
            [d for d in every if not d.target],
        )

    def first(self, most: int) -> list[Decision]:
        """So many of each kind."""
        return [d for kind in self for d in kind[:most]]

    def seen(self, most: int, rows: Sequence[Row], number: Mapping[int, int]) -> Seen:
        """So many of each with their pictures; ``number``: which picture an image has."""

        def shown(d: Decision) -> Shown:
            margins = (m if np.isfinite(m) else None for m in (d.margin, d.unpruned))
            return Shown(number.get(d.image), rows[d.image]["category"], *margins)

        each = [[shown(d) for d in kind[:most]] for kind in self]
        return Seen(len(self.hits), len(self.misses), *each)


def _thumbnails(album: Album, wanted: Mapping[int, Row], side: int) -> tuple[dict[int, str], str]:
    """Pictures by place, those that are to be had, and what to say of the others."""
    source = album.source
    if source is None:
        return {}, album.missing
    with ThreadPoolExecutor(max(1, min(8, cores()))) as pool:
        found = list(pool.map(lambda row: _thumbnail(source, row, side), wanted.values()))
    made = {n: each for n, each in zip(wanted, found, strict=True) if each is not None}
    lost = len(wanted) - len(made)
    if not lost:
        return made, ""
    if not made:
        return {}, f"No pictures: images not found at {album.place}."
    said = f"{lost} of {len(wanted)} images are not, or no longer as they were, at {album.place}."
    return made, said


def _thumbnail(source: Images, row: Row, side: int) -> str | None:
    """One image's middle square, at most ``side`` pixels wide; None where it is not the run's."""
    try:
        if source.sha256(row["path"]) != row["sha256"]:
            return None
        pixels = source.pixels(row["path"], WHOLE)
    except (CircuitcoreError, OSError, LookupError, ValueError):
        return None
    return encoded(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), side)


def encoded(image: Image.Image, side: int) -> str:
    """The middle square of an RGB image as base64 of a WebP file, never enlarged."""
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    box = (left, top, left + square, top + square)
    size = min(side, square)
    image = image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=6)
    return base64.b64encode(out.getvalue()).decode()

"""Which files of a run folder are not what was written there, and what becomes of those.

Every file holds a digest of its own content, so each is judged alone; `jobs.verifying` holds them
against one another.  What is damaged is never trusted: it is moved to ``RUN/quarantine``, and made
anew by who needs it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from itertools import count
from pathlib import Path

from circuitcore.errors import InputError
from circuitcore.machine.files import read_sealed
from circuitcore.progress import Progress, Silent
from circuitcore.runs.circuitfile import checked_key
from circuitcore.runs.families import FOLDER, read_family
from circuitcore.runs.images.exemplarfile import EXEMPLARS, read_tensors
from circuitcore.runs.means import MEANS, read_means
from circuitcore.runs.tables import read_table

QUARANTINE = "quarantine"
GIVEN = "export"  # where circuits are that are given away, with a card each
CARD = ".card.json"
CARD_FORMAT = "circuitcore.card/1"
OWN = (  # of a run folder, as patterns; what a program of the user's leaves there is not
    "manifest.json", "images.parquet", "plan.json", "units/??/*.safetensors", "failed/*.json",
    "curves.parquet", "overlap.parquet", "controls.json", "resamples.json", "transfer/*.json",
    "lesions/*.json", "report.html", "structure.json", "means.safetensors",
    "reproduction/*.safetensors", "reproduction/*.json", "reproduction.html", "export/*",
    "unfinished/*.parquet", "exemplars.safetensors", "anatomy/*.json", "pages/*.html",
)  # fmt: skip
SEALED_PAGE = re.compile(rb"<!-- sha256 ([0-9a-f]{64}) -->\n\Z")


def sealed_page(text: bytes) -> bytes:
    """An HTML page with the sha256 of what stands before it as its last line."""
    return text + b"<!-- sha256 %b -->\n" % hashlib.sha256(text).hexdigest().encode()


def damage(path: Path) -> str | None:
    """What is wrong with one file of a run folder, None if it is what was written.

    Files that are no run's own are not judged.  Cost: the whole file is read.
    """
    try:
        if path.parent.name == GIVEN:
            return _given_damage(path)
        if path.name == MEANS:
            read_means(path.parent)
        elif path.name == EXEMPLARS:
            read_tensors(path)
        elif path.parent.name == FOLDER and path.suffix == ".safetensors":
            read_family(path)
        elif path.suffix == ".safetensors":
            return None if checked_key(path) == path.stem else "the key inside is not its name"
        if path.suffix == ".parquet":
            read_table(path)
        elif path.suffix == ".json":
            read_sealed(path)
        elif path.suffix == ".html":
            _check_page(path.read_bytes())
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        return f"damaged: {said}"
    return None


def _given_damage(path: Path) -> str | None:
    """What is wrong with a file of a circuit that is given away; what no card tells of is not ours.

    A card is sealed, and has the sha256 of the files that it tells of.
    """
    if path.name.endswith(CARD):
        read_sealed(path)
        return None
    for card in path.parent.glob(f"*{CARD}"):
        try:
            told = read_sealed(card)
            digest = told["files"][path.name]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):  # damaged itself, or of other files
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return None
        return f"damaged: its content does not match the sha256 in {card.name}"
    return None


def _check_page(text: bytes) -> None:
    found = SEALED_PAGE.search(text)
    if found is None:
        if b"sha256" in text[-100:] or not text.rstrip().endswith(b"</html>"):
            raise ValueError("its end is not that of a page")  # pages of earlier versions end so
    elif hashlib.sha256(text[: found.start()]).hexdigest().encode() != found[1]:
        raise ValueError("its content does not match its sha256")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: what lies in another one is nobody's to judge or move."""
    return (folder / "manifest.json").is_file() or any(folder.glob("units/??/*.safetensors"))


def files_of(folder: Path) -> Iterator[Path]:
    """A run's own files, sorted: not logs, what is in quarantine, or what lies there beside."""
    for pattern in OWN:
        yield from sorted(path for path in folder.glob(pattern) if not path.is_dir())


def damaged(folder: Path, progress: Progress | None = None) -> dict[Path, str]:
    """What is wrong by file."""
    files, shown = list(files_of(folder)), progress or Silent()
    shown.start("files", len(files))
    found = {}
    for path in files:
        if (said := damage(path)) is not None:
            found[path] = said
        shown.advance(1, path.name)
    return found


def set_aside(folder: Path, path: Path, why: str, note: Callable[[str], None]) -> None:
    """Move a damaged file to ``RUN/quarantine``, under its own name and a number, and say so."""
    there = folder / QUARANTINE
    there.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        kept = there / f"{path.name}.{number}"
        try:
            os.close(os.open(kept, os.O_CREAT | os.O_EXCL))  # taken: two may be at it at once
        except FileExistsError:
            continue
        break
    try:
        os.replace(path, kept)
    except FileNotFoundError:  # the other one did it
        kept.unlink()
        return
    note(f"{path}: {why}; set aside as {kept}")


def set_aside_damaged(
    folder: Path, note: Callable[[str], None], only: Collection[Path] | None = None
) -> int:
    """Set aside whatever is damaged (of ``only`` these files); returns how many that were."""
    found = damaged(folder) if only is None else {p: s for p in only if (s := _there(p))}
    for path, why in found.items():
        set_aside(folder, path, why, note)
    return len(found)


def _there(path: Path) -> str | None:
    return damage(path) if path.exists() else None

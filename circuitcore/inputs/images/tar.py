"""Images in tar files, as they are or as WebDataset writes them: nothing is unpacked.

Every file's headers are read once (`offsets`); an image is then read from its offset, where its
header is held against the index.  What an image is:

    train/<category>/1.jpg   ImageNet's layout in a file; the files' own names may say train and val
    <category>/1.jpg         a folder a category, one data set alone
    key.jpg + key.cls        WebDataset: a label or number beside each image, or key.json with
                             "label" or "cls"

Members are names alone, whatever they are called; names that are whole paths or climb (``..``) are
refused nevertheless, links and devices are passed over.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import passed_over
from circuitcore.inputs.images.listing import PART_OF, Listing, listing
from circuitcore.inputs.images.offsets import Offsets, offsets_of
from circuitcore.inputs.images.policy import is_image

ENDING = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABELS = (".cls", ".json")
LARGEST_LABEL = 2**20
SHARD = re.compile(r"(.*?\.tar):(.*)", re.DOTALL | re.IGNORECASE)
LINKS = "links or devices"


def read_tars(files: Sequence[Path], place: str, scoring: int) -> Listing:
    """The images of tar files, in the order of files and members.

    Names are ``shard.tar:member``.  Raises InputError as `offsets.scanned` does, where two files
    have one name, and where an image has no label.
    """
    where = f"--images {place}"
    if twice := [n for n, c in Counter(f.name for f in files).items() if c > 1]:
        raise InputError(f"{where}: two tar files are called {twice[0]}")
    shards = {file.name: offsets_of(file) for file in files}
    rows: list[tuple[str, str, str]] = []
    passed: Counter[str] = Counter()
    for name, shard in shards.items():
        own = next((p for p in map(_part, re.split(r"[^A-Za-z]+", name)) if p), "")
        rows += [(part or own, c, f"{name}:{n}") for part, c, n in _labelled(shard, where)]
        passed[LINKS] += shard.others
        passed += Counter(
            PurePosixPath(n).suffix.lower()
            for n in shard.members
            if not is_image(n) and not n.endswith(LABELS)
        )

    def read(name: str) -> bytes:
        shard, member = SHARD.fullmatch(name).groups()  # type: ignore[union-attr]
        return shards[shard].read(member, f"{where}: {name}")

    return listing(place, rows, read, scoring, passed_over(+passed))


def _part(name: str) -> str:
    return PART_OF.get(name.lower(), "")


def _labelled(shard: Offsets, where: str) -> Iterator[tuple[str, str, str]]:
    """(part, category, name) of a tar file's images."""
    labels = sorted((name for name in shard.members if name.endswith(LABELS)), reverse=True)
    beside = {_key(name): name for name in labels}  # .cls before .json
    for name in shard.members:
        if not is_image(name):
            continue
        folders = [f for f in PurePosixPath(name).parts[:-1] if f != "."]
        at = next((i for i, folder in enumerate(folders) if _part(folder)), -1)
        part = _part(folders[at]) if at >= 0 else ""
        if (key := _key(name)) in beside:
            yield part, _label(shard, beside[key], where), name
        elif len(folders) > at + 1:
            yield part, folders[-1], name
        else:
            raise InputError(
                f"{where}: {shard.file.name}:{name} has no label: neither a folder of its category "
                f"nor {key}.cls or {key}.json beside it"
            )


def _key(name: str) -> str:
    """What WebDataset calls the key: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(shard: Offsets, name: str, where: str) -> str:
    """The label in a .cls or .json member."""
    where = f"{where}: {shard.file.name}:{name}"
    if (size := shard.members[name][1]) > LARGEST_LABEL:
        raise InputError(f"{where}: {size:,} bytes are no label")
    try:
        text = shard.read(name, where).decode("utf-8-sig").strip()
        if name.endswith(".json"):
            table = json.loads(text)
            text = next(table[k] for k in ("label", "cls", "class") if k in table)
            if isinstance(text, bool) or not isinstance(text, str | int):
                raise ValueError("the label is neither a name nor a whole number")
    except (StopIteration, TypeError):
        raise InputError(f"{where}: no label, cls or class in it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no label: {error}") from None
    label = str(text).strip()
    if not label or not label.isprintable():
        raise InputError(f"{where}: {label[:40]!r} is no label")
    return label

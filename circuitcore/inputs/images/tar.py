"""Images in tar files, as they are or as WebDataset writes them: nothing is unpacked.

Every file's headers are read once; an image is then read from its offset, where its header is held
against what was read before.  What an image is:

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
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import passed_over
from circuitcore.inputs.images.listing import PART_OF, Listing, listing
from circuitcore.inputs.images.policy import is_image

BLOCK = 512
ENDING = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABELS = (".cls", ".json")
LARGEST_LABEL = 2**20


@dataclass(frozen=True)
class Member:
    """Where a member's bytes are, and the header in front of them."""

    file: Path
    offset: int
    size: int
    header: bytes

    def read(self, where: str) -> bytes:
        """The bytes.  Raises InputError where the file was changed or cut since."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset - BLOCK)
                header, content = file.read(BLOCK), file.read(self.size)
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror}") from None
        if header != self.header or len(content) != self.size:
            raise InputError(f"{where}: the tar file was changed while it was in use")
        return content


def read_tars(files: Sequence[Path], place: str, scoring: int) -> Listing:
    """The images of tar files, in the order of files and members.

    Names are ``shard.tar:member``.  Cost: one pass over the headers.  Raises InputError where a
    file is compressed, cut off or damaged, where names are paths or stand twice, and where an image
    has no label.
    """
    found: dict[str, Member] = {}
    rows: list[tuple[str, str, str]] = []
    passed: Counter[str] = Counter()
    if twice := [n for n, c in Counter(f.name for f in files).items() if c > 1]:
        raise InputError(f"--images {place}: two tar files are called {twice[0]}")
    for file in files:
        members, others = scanned(file)
        passed += others
        found |= {f"{file.name}:{name}": member for name, member in members.items()}
        part = next((p for p in map(_part, re.split(r"[^A-Za-z]+", file.stem)) if p), "")
        rows += [(p or part, c, f"{file.name}:{n}") for p, c, n in _labelled(file, members)]

    def read(name: str) -> bytes:
        return found[name].read(f"--images {place}: {name}")

    return listing(place, rows, read, scoring, passed_over(passed))


def scanned(file: Path) -> tuple[dict[str, Member], Counter[str]]:
    """The plain members of a tar file by name, and how many others are passed over."""
    where = f"--images {file}"
    members: dict[str, Member] = {}
    passed: Counter[str] = Counter()
    try:
        with tarfile.open(file, "r:") as tar, file.open("rb") as raw:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                _check_name(info.name, where)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    passed["links or devices"] += 1
                    continue
                if info.name in members:
                    raise InputError(f"{where}: {info.name!r} stands there twice")
                raw.seek(info.offset_data - BLOCK)
                header = raw.read(BLOCK)
                members[info.name] = Member(file, info.offset_data, info.size, header)
            raw.seek(tar.offset)
            if raw.read(BLOCK) != b"\0" * BLOCK:
                raise InputError(f"{where}: cut off or damaged after {len(members)} members")
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        hint = ": unpack it once, for random access (gunzip)" if _compressed(file) else ""
        raise InputError(f"{where}: no whole tar file: {error}{hint}") from None
    return members, passed


def _compressed(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(6)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _check_name(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InputError(f"{where}: the member {name!r} is a path out of it; refused")


def _part(name: str) -> str:
    return PART_OF.get(name.lower(), "")


def _labelled(file: Path, members: dict[str, Member]) -> Iterator[tuple[str, str, str]]:
    """(part, category, name) of a tar file's images."""
    labels = {name: member for name, member in members.items() if name.endswith(LABELS)}
    beside = {_key(name): name for name in sorted(labels, reverse=True)}  # .cls before .json
    for name in members:
        if not is_image(name):
            continue
        folders = PurePosixPath(name).parts[:-1]
        folders = folders[folders[:1] == (".",) :]
        part = next((_part(f) for f in folders if _part(f)), "")
        if (key := _key(name)) in beside:
            yield part, _label(file, beside[key], labels[beside[key]]), name
        elif folders and not _part(folders[-1]):
            yield part, folders[-1], name
        else:
            raise InputError(
                f"--images {file}: {name} has no label: neither a folder of its category nor "
                f"{key}.cls or {key}.json beside it"
            )


def _key(name: str) -> str:
    """What WebDataset calls the key: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(file: Path, name: str, member: Member) -> str:
    """The label in a .cls or .json member."""
    where = f"--images {file}: {name}"
    if member.size > LARGEST_LABEL:
        raise InputError(f"{where}: {member.size:,} bytes are no label")
    try:
        text = member.read(where).decode("utf-8-sig").strip()
        if name.endswith(".json"):
            table = json.loads(text)
            text = next(table[k] for k in ("label", "cls", "class") if k in table)
            if isinstance(text, bool) or not isinstance(text, str | int):
                raise ValueError("the label is neither a name nor a whole number")
        label = str(text).strip()
    except (StopIteration, TypeError):
        raise InputError(f"{where}: no label, cls or class in it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no label: {error}") from None
    if not label or not label.isprintable():
        raise InputError(f"{where}: {label[:40]!r} is no label")
    return label

"""Where the members of a tar file are: read from its headers once, kept in the cache folder."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet

from circuitcore.errors import InputError
from circuitcore.kernels import cache
from circuitcore.machine.files import write_atomically

BLOCK = 512
WORTH_KEEPING = 1000  # members: fewer are read as quickly again
VERSION = 1  # raised when the same file would give another index


@dataclass(frozen=True)
class Offsets:
    """Of the plain members of ``file``, in order: offset and size by name.

    ``others``: how many links, devices and sparse files are passed over.
    """

    file: Path
    members: Mapping[str, tuple[int, int]]
    others: int

    def read(self, name: str, where: str) -> bytes:
        """The bytes of a member.  Raises InputError where the file was changed since."""
        offset, size = self.members[name]
        try:
            with self.file.open("rb") as file:
                file.seek(offset - BLOCK)
                header, content = file.read(BLOCK), file.read(size)
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror}") from None
        except tarfile.TarError:  # no header there, or one whose checksum is wrong
            found = -1
        if found != size or len(content) != size:
            raise InputError(f"{where}: the tar file was changed while it was in use")
        return content


def offsets_of(file: Path) -> Offsets:
    """As `scanned`, but of a large file once: until its size or time of change differs."""
    try:
        about = file.stat()
    except OSError as error:
        raise InputError(f"--images {file}: cannot be read: {error.strerror}") from None
    told = f"{VERSION} {file.resolve()} {about.st_size} {about.st_mtime_ns}"
    name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    kept = cache.folder() / "tars" / f"{name}.parquet"
    with suppress(OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        table = pyarrow.parquet.read_table(kept)
        names, offsets, sizes = (table[c].to_pylist() for c in ("name", "offset", "size"))
        decoded = [n.decode("utf-8", "surrogateescape") for n in names]
        others = int(table.schema.metadata[b"others"])
        return Offsets(file, dict(zip(decoded, zip(offsets, sizes, strict=True), strict=True)),
                       others)  # fmt: skip
    found = scanned(file)
    if len(found.members) >= WORTH_KEEPING:
        with suppress(OSError):  # a cache folder that cannot be written costs time alone
            _keep(kept, found)
    return found


def _keep(path: Path, found: Offsets) -> None:
    table = pa.table(
        {
            "name": [name.encode("utf-8", "surrogateescape") for name in found.members],
            "offset": [offset for offset, _ in found.members.values()],
            "size": [size for _, size in found.members.values()],
        }
    ).replace_schema_metadata({b"others": str(found.others).encode()})
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def scanned(file: Path) -> Offsets:
    """The members of a tar file.  Cost: one pass over the headers, some 0.1 ms each.

    Raises InputError where the file is compressed, cut off or damaged, and where names are paths
    out of it or stand twice.
    """
    where = f"--images {file}"
    members: dict[str, tuple[int, int]] = {}
    others = 0
    try:
        with tarfile.open(file, "r:") as tar, file.open("rb") as raw:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                _check_name(info.name, where)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    others += 1
                    continue
                if info.name in members:
                    raise InputError(f"{where}: {info.name!r} stands there twice")
                members[info.name] = info.offset_data, info.size
            raw.seek(tar.offset)
            if raw.read(BLOCK) != b"\0" * BLOCK:
                raise InputError(f"{where}: cut off or damaged after {len(members)} members")
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        hint = ": unpack it once, for random access (gunzip)" if _compressed(file) else ""
        raise InputError(f"{where}: no whole tar file: {error}{hint}") from None
    return Offsets(file, members, others)


def _compressed(file: Path) -> bool:
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return False


def _check_name(name: str, where: str) -> None:
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise InputError(f"{where}: the member {name!r} is a path out of it; refused")

"""Files that are there whole or not at all, and documents that tell when they were damaged.

A temporary file is named after who writes it, so that it can be swept away once that process is
gone: ``.NAME.SYSTEM-PID-RANDOM.tmp``, where SYSTEM stands for this boot of this machine or
container, in which alone a process number means anything.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
SEAL = "sha256"  # of a document's content, kept in itself
NAMED = (
    40  # characters of a file's name in that of its temporary file: names have 255 bytes at most
)
UNKNOWN_OWNER_SECONDS = 3600.0
NO_SUCH_CALL = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even through a power cut."""
    write_tried(path, content, None)


def write_tried(path: Path, content: bytes, tried: Callable[[bytes], object] | None) -> None:
    """`write_atomically` once ``tried`` took what is read back; where it raises nothing is there.

    What was there before stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if tried is not None:
            tried(temporary.read_bytes())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is told
            temporary.unlink(missing_ok=True)
        raise
    _keep_names(path.parent)


def temporary_for(path: Path) -> Path:
    """A name beside a file, that of a temporary file of this process; another one at every call."""
    return path.with_name(f".{path.name[:NAMED]}.{owner_name()}{TEMPORARY}")


def owner_name() -> str:
    """``SYSTEM-PID-RANDOM`` of this process, another one at every call; see `owner_gone`."""
    return f"{_system()}-{os.getpid()}-{secrets.token_hex(4)}"


def owner_gone(name: str) -> bool | None:
    """Whether the process of ``SYSTEM-PID-RANDOM`` has ended; None where that cannot be known."""
    system, _, rest = name.partition("-")
    number = rest.partition("-")[0]
    if system != _system() or not number.isdecimal():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # there, and another user's
        return None
    return False


def _keep_names(folder: Path) -> None:
    """Have the system write down the names in a folder, where its file system can."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
    finally:
        os.close(opened)


@functools.cache
def _system() -> str:
    """Eight digits for this boot of this machine or container."""
    told = [platform.node()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def sweep_orphans(folder: Path) -> int:
    """Delete temporary files whose process is gone; returns how many.

    Where that cannot be known, those over an hour old.
    """
    gone = 0
    for path in folder.glob(f"**/.*{TEMPORARY}"):
        with suppress(OSError):  # gone meanwhile, or not ours to delete
            if _orphaned(path):
                path.unlink()
                gone += 1
    return gone


def _orphaned(path: Path) -> bool:
    if owner_gone(path.name.removesuffix(TEMPORARY).rpartition(".")[2]):
        return True
    return long_untouched(path)


def long_untouched(path: Path) -> bool:
    """Whether nothing wrote to a file for an hour, by the clocks there are.  Raises OSError."""
    return time.time() - path.stat().st_mtime > UNKNOWN_OWNER_SECONDS


def sealed(document: dict[str, Any]) -> bytes:
    """A document as JSON text that holds the sha256 of its own content."""
    return json.dumps({**document, SEAL: _content(document)}, indent=1).encode()


def unsealed(text: bytes) -> Any:
    """The document of `sealed`, or one without a seal, as earlier versions wrote it.

    Raises ValueError where it is damaged, or no JSON.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        return found
    seal = found.pop(SEAL, None)
    if seal is not None and seal != _content(found):
        raise ValueError("its content does not match its sha256")
    # one spoiled in its very name is no seal to json, but still one by what it says
    for name, value in found.items():
        others = {key: v for key, v in found.items() if key != name}
        if isinstance(value, str) and len(value) == 64 and value == _content(others):
            raise ValueError(f"its {SEAL} is called {name!r}")
    return found


def read_sealed(path: Path) -> Any:
    """`unsealed` of a file.  Raises OSError, ValueError."""
    return unsealed(path.read_bytes())


def _content(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""How much memory a process may still use: the least that any limit on it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NO_LIMIT = 1 << 60  # control groups say "max", or a number of about this size
GROUPS = {  # kind of control groups: where they are, the files of the limit, of the use
    "": ("", "memory.max", "memory.current"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_host_memory(root: Path = Path("/")) -> int:
    """Host memory that can be used without swapping or being killed for it, in bytes.

    The least of what the machine has available, what each control group above this process
    (a container, a SLURM job) leaves, and what is left of its address space.
    """
    return max(min(_available(root), *_left_in_groups(root), _left_of_addresses(root)), 0)


def _available(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(pages) // 2


def _left_in_groups(root: Path) -> Iterator[int]:
    yield NO_LIMIT
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, own = (line + "::").split(":")[:3]
            if not {"", "memory"} & set(kinds.split(",")):
                continue
            place, most, used = GROUPS["memory" if "memory" in kinds.split(",") else ""]
            # inside a container the path may be the host's, and the group itself at the top
            folder = groups / place / own.lstrip("/")
            for each in (folder, *folder.parents):
                if groups not in (each, *each.parents):
                    break
                with suppress(OSError, ValueError):
                    limit = int((each / most).read_text())
                    if limit < NO_LIMIT:
                        yield limit - int((each / used).read_text()) + _cached(each)


def _cached(group: Path) -> int:
    """Bytes of files that a group's use counts and the system would give up."""
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _left_of_addresses(root: Path) -> int:
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int((root / "proc/self/statm").read_text().split()[0])
            return most - pages * resource.getpagesize()
    return NO_LIMIT

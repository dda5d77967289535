"""What a process may use, memory and cores: the least that any limit on it leaves."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NO_LIMIT = 1 << 60  # control groups say "max", or a number of about this size
FILES = {  # by kind of control groups: of the memory's limit, of its use
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_host_memory(root: Path = Path("/")) -> int:
    """Host memory that can be used without swapping or being killed for it, in bytes.

    The least of what the machine has available, what each control group above this process
    (a container, a SLURM job) leaves, and what is left of its address space.
    """
    return max(min(_available(root), *_left_in_groups(root), _left_of_addresses(root)), 0)


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, one at least.

    The least of those that it may run on (``taskset``, a container's set), what the quota of each
    control group above it pays for, and what SLURM gave the task.
    """
    own = getattr(os, "sched_getaffinity", None)
    here = len(own(0)) if own else os.cpu_count() or 1
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    asked = int(slurm) if slurm.isdecimal() else here
    return max(min(here, asked, *_quotas(root)), 1)


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores that each control group above this process pays for, a part of one as one."""
    yield NO_LIMIT
    for folder, kind in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            if kind:
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            if quota > 0 and period > 0:
                yield math.ceil(quota / period)


def _groups(root: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Control groups above this process, from its own up; with the kind of those of the first sort.

    Inside a container the path may be the host's, and the group itself at the top.
    """
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, own = (line + "::").split(":")[:3]
            if not {"", kind} & set(kinds.split(",")):
                continue
            found = kind if kind in kinds.split(",") else ""
            folder = groups / found / own.lstrip("/")
            for each in (folder, *folder.parents):
                if groups not in (each, *each.parents):
                    break
                yield each, found


def _available(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(pages) // 2


def _left_in_groups(root: Path) -> Iterator[int]:
    yield NO_LIMIT
    for each, kind in _groups(root, "memory"):
        most, used = FILES[kind]
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

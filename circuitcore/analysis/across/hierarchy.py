"""How near two categories stand in a hierarchy of names.

``wordnet.tsv`` holds the hypernyms (of nouns, WordNet 3.0) of ImageNet's 1,000 synsets: an id a
line and its parents.  WordNet 3.0 Copyright 2006 by Princeton University, all rights reserved;
its licence lies beside it in ``LICENSE-wordnet``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from circuitcore.errors import InputError

WORDNET = Path(__file__).parent / "wordnet.tsv"
Parents = Mapping[str, tuple[str, ...]]


def hierarchy_of(names: Sequence[str], file: Path | None) -> tuple[Parents, str] | None:
    """Parents by name and what they are called: ``file``'s, else WordNet's for ImageNet's ids.

    A line of a file is a name and its parent or parents, tabs between; a name without parents is a
    root.  None where there is no file and the names are no ids of WordNet.  Raises InputError where
    a category is not in the file, a name is its own ancestor, or a line cannot be read.
    """
    if file is None:
        known = all(re.fullmatch(r"n\d{8}", name) for name in names) and bool(names)
        return (
            (read(WORDNET), "WordNet 3.0") if known and read(WORDNET).keys() >= {*names} else None
        )
    parents = read(file)
    missing = [name for name in names if name not in parents]
    if missing:
        raise InputError(
            f"--hierarchy {file}: no line for {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; a line is a category, "
            "a tab and its parent"
        )
    return parents, str(file)


@cache
def read(file: Path) -> Parents:
    """Parents by name.  Raises InputError as `hierarchy_of` does."""
    parents: dict[str, tuple[str, ...]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--hierarchy {file}: cannot be read: {said}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *above = (part.strip() for part in re.split(r"\t| (?=n\d{8})", line) if part.strip())
        if name in parents:
            raise InputError(f"--hierarchy {file}: line {number}: {name!r} has a line already")
        parents[name] = tuple(above)
    for name in [above for each in parents.values() for above in each]:
        parents.setdefault(name, ())
    _depths(parents, file)
    return parents


def _depths(parents: Parents, file: Path | str = "") -> dict[str, int]:
    """Names on the shortest way from a root, both ends counted: a root's is 1."""
    depths: dict[str, int] = {}
    left = dict(parents)
    while left:
        known = {
            name: 1 + min((depths[p] for p in above), default=0)
            for name, above in left.items()
            if all(p in depths for p in above)
        }
        if not known:
            raise InputError(f"--hierarchy {file}: {sorted(left)[0]!r} is its own ancestor")
        depths |= known
        left = {name: above for name, above in left.items() if name not in known}
    return depths


def similarity(parents: Parents, names: Sequence[str]) -> np.ndarray:
    """Wu & Palmer's (1994): 2 d(lowest common ancestor) / (d(a) + d(b)), float64 [K, K].

    d: depth, a root's 1; 0 for names under different roots.
    """
    depths = _depths(parents)
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        for each in _ancestors(parents, name):
            members.setdefault(each, []).append(place)
    lowest = np.zeros((len(names), len(names)))
    for name in sorted(members, key=depths.__getitem__):
        lowest[np.ix_(members[name], members[name])] = depths[name]
    own = np.array([depths[name] for name in names], float)
    return 2 * lowest / (own[:, None] + own[None, :])


def _ancestors(parents: Parents, name: str) -> set[str]:
    """The name itself and all above it."""
    found, todo = set(), [name]
    while todo:
        each = todo.pop()
        if each not in found:
            found.add(each)
            todo += parents[each]
    return found

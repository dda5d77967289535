"""Which folder is which output unit, and whether that assignment can be right.

Folders are mapped by name or number, never by rank alone unless there are exactly as many folders
as output units.  Before a sweep the unpruned network's confusion matrix is held against the
assignment: labels in another order are found before they cost a night.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import bdtrc

from circuitcore.errors import InputError, UsageError, nearest

BETTER = 0.10  # an assignment this much more accurate stops the sweep
NEAR_CHANCE = 1e-3  # so is an accuracy that chance reaches this often


@dataclass(frozen=True)
class Category:
    """An output unit that has images."""

    index: int
    name: str
    folder: str


@dataclass(frozen=True)
class Mapping:
    """The categories in unit order and how their folders were matched."""

    categories: tuple[Category, ...]
    rule: str


def map_folders(
    folders: Sequence[str], outputs: int, own: Sequence[str] | None, listed: Path | None
) -> Mapping:
    """Match category folders to output units.

    ``own`` are the weights' category names, ``listed`` a file of names, one a line in unit order.
    Names are the same however Unicode composes them, and told apart by case only where they differ
    by nothing else.  Raises InputError where a folder fits no unit or two, or two fit one, naming
    them and the nearest names.
    """
    names = _read_names(listed, outputs) if listed else own
    if names is not None:
        matched = _by_name(folders, names, outputs)
        if matched is not None:
            return Mapping(matched, "by name")
        if listed is not None:
            known = {folded(n) for n in names}
            stray = next(f for f in folders if folded(f) not in known)
            raise InputError(
                f"--categories {listed}: the folder {stray!r} is not among its "
                f"{len(names)} names{nearest(stray, names)}"
            )
    if all(f.isdecimal() for f in folders) and len({int(f) for f in folders}) == len(folders):
        numbers = sorted((int(f), f) for f in folders)
        if numbers[-1][0] < outputs:
            named = [Category(i, names[i] if names else f, f) for i, f in numbers]
            return Mapping(tuple(named), "by number: the folder's name is the unit's index")
    if len(folders) == outputs:
        known = {folded(n) for n in names or ()}
        partly = [f for f in folders if folded(f) in known]
        if partly:
            stray = next(f for f in folders if folded(f) not in known)
            raise InputError(
                f"the folder {stray!r} is no category of the model although {partly[0]!r} is"
                f"{nearest(stray, names or ())}; rename it or give --categories FILE"
            )
        ranked = [Category(i, f, f) for i, f in enumerate(sorted(folders))]
        return Mapping(tuple(ranked), "by rank: sorted folder names, as torchvision's ImageFolder")
    stray = folders[0]
    if names is not None:
        known = {folded(n) for n in names}
        stray = next((f for f in folders if folded(f) not in known), stray)
    raise InputError(
        f"the folder {stray!r} is no category of the model"
        f"{nearest(stray, names) if names else ''}; "
        f"{len(folders)} folders cannot be matched to {outputs} output units by rank: "
        "give --categories FILE, one folder name a line in the order of the output units"
    )


def composed(name: str) -> str:
    """A name as one sequence of characters: "é" is one, however a file system spells it."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name without case."""
    return composed(composed(name).casefold())


def _read_names(file: Path, outputs: int) -> list[str]:
    try:
        names = [n.strip() for n in file.read_text(encoding="utf-8-sig").splitlines() if n.strip()]
    except FileNotFoundError:
        raise InputError(f"--categories {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--categories {file}: cannot be read: {error}") from None
    if len(names) != outputs:
        raise InputError(
            f"--categories {file}: {len(names)} names, the model has {outputs} output units"
        )
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < outputs else []
    if twice:
        raise InputError(f"--categories {file}: {twice[0]!r} stands there more than once")
    return names


def _by_name(
    folders: Sequence[str], names: Sequence[str], outputs: int
) -> tuple[Category, ...] | None:
    if len(names) != outputs:
        return None
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        exact.setdefault(composed(name), []).append(i)
        loose.setdefault(folded(name), []).append(i)
    taken: dict[int, str] = {}
    for folder in folders:
        units = exact.get(composed(folder)) or loose.get(folded(folder), [])
        if len(units) > 1:
            raise InputError(
                f"the folder {folder!r} could be unit {units[0]} or {units[1]}: both have that "
                "name; give --categories FILE with distinct names"
            )
        if not units:
            return None
        if units[0] in taken:
            raise InputError(
                f"the folders {taken[units[0]]!r} and {folder!r} would both be unit {units[0]} "
                f"({names[units[0]]!r}): rename or join them"
            )
        taken[units[0]] = folder
    return tuple(Category(unit, names[unit], taken[unit]) for unit in sorted(taken))


def finder(categories: Sequence[Category]) -> Callable[[str | int], Category | None]:
    """A look-up of categories: by name, then by folder, then by number; a number by unit alone.

    Names and folders are told apart as `map_folders` does.  The look-up
    raises UsageError for a name that two categories have.
    """
    numbers = {c.index: c for c in categories}
    keys: list[Callable[[Category], str]] = [
        lambda c: composed(c.name),
        lambda c: folded(c.name),
        lambda c: composed(c.folder),
        lambda c: folded(c.folder),
        lambda c: str(c.index),
    ]
    tables = []
    for key in keys:
        table: dict[str, list[Category]] = {}
        for category in categories:
            table.setdefault(key(category), []).append(category)
        tables.append(table)

    def find(wanted: str | int) -> Category | None:
        if not isinstance(wanted, str):
            return numbers.get(int(wanted))
        exact, loose = composed(wanted), folded(wanted)
        several: list[Category] = []
        for table, text in zip(tables, (exact, loose, exact, loose, wanted), strict=True):
            found = table.get(text, [])
            if len(found) == 1:
                return found[0]
            several = several or found
        if several:
            folders = " or ".join(repr(c.folder) for c in several[:3])
            raise UsageError(f"two categories are called {wanted!r}: give a folder, {folders}")
        return None

    return find


def select(categories: Sequence[Category], wanted: Sequence[str | int]) -> list[Category]:
    """The categories asked for by name, folder or unit number; all of them if none is asked for.

    Raises UsageError naming the nearest names.
    """
    if not wanted:
        return list(categories)
    find = finder(categories)
    chosen: list[Category] = []
    for name in wanted:
        found = find(name)
        if found is None:
            raise UsageError(_unknown(str(name), categories, find))
        if found not in chosen:
            chosen.append(found)
    return chosen


def _unknown(
    text: str, categories: Sequence[Category], find: Callable[[str | int], Category | None]
) -> str:
    """That there is no such category, and what may have been meant."""
    names = [c.name for c in categories]
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    if (Path(text) / "manifest.json").is_file():
        return (
            f"no category {text!r}: it is a run folder; --out {text} goes on with it, while "
            "extract, evaluate, stability and others ask about it"
        )
    elif len(parts) > 1 and all(find(part) for part in parts):
        near = f": several are words of their own, {' '.join(parts)}"
    else:
        near = nearest(text, names)
    return (
        f"no category {text!r} among the {len(names)} with images{near} "
        "('circuitcore ls categories' lists them)"
    )


def check_assignment(
    predicted: np.ndarray,
    actual: np.ndarray,
    categories: Sequence[Category],
    outputs: int,
    stop: bool = True,
) -> float:
    """Accuracy of the unpruned network, if the assignment of folders to units can be right.

    ``predicted`` and ``actual`` are units, one an image.  Raises InputError where the network has
    one output, and if ``stop`` where another assignment would be over 10 points more accurate (it
    is shown), accuracy is near chance, or the images are too few to tell it from chance.
    """
    from scipy.optimize import linear_sum_assignment  # a second to import

    if outputs < 2:
        raise InputError(
            "the network has one output: a category is told from others by their outputs"
        )
    units = np.array([c.index for c in categories])
    confusion = _confusion(predicted, actual, units, outputs)
    total = int(confusion.sum())
    hits = int(confusion[np.arange(len(units)), units].sum())
    accuracy = hits / total
    if not stop:
        return accuracy
    rows, best = linear_sum_assignment(-confusion)
    possible = float(confusion[rows, best].sum() / total)
    on = "or --labels as-given goes on (for a control network)"
    if possible > accuracy + BETTER:
        moved = [(categories[r], int(b)) for r, b in zip(rows, best, strict=True) if b != units[r]]
        raise InputError(
            f"the labels seem to be in another order than the model's: accuracy is {accuracy:.1%}, "
            f"with this assignment it would be {possible:.1%}:\n{_moves(moved, categories)}\n"
            f"Give --categories FILE with the folder names in the order of the output units, {on}"
        )
    chance = 1 / outputs
    if chance**total > NEAR_CHANCE:  # even without one mistake
        raise InputError(
            f"{total} extraction images are too few to tell whether the network knows the "
            f"categories: {hits} are right, and chance alone gets {chance:.1%} of them right. Give "
            f"more images (--extraction-images), {on}"
        )
    if bdtrc(hits - 1, total, chance) > NEAR_CHANCE:
        raise InputError(
            f"accuracy of the unpruned network on these images is {accuracy:.1%}, near chance "
            f"({chance:.1%}): are the weights, the preprocessing (--resize, --crop, --mean, "
            f"--std) and the category order (--categories) right? Mend that, {on}"
        )
    return accuracy


def _confusion(
    predicted: np.ndarray, actual: np.ndarray, units: np.ndarray, outputs: int
) -> np.ndarray:
    """Images of each unit by the output that they are predicted as, [units, outputs]."""
    confusion = np.zeros((len(units), outputs))
    for row, unit in enumerate(units):
        hit, counts = np.unique(predicted[actual == unit], return_counts=True)
        confusion[row, hit] = counts
    return confusion


def _moves(moved: Sequence[tuple[Category, int]], categories: Sequence[Category]) -> str:
    """Lines that say which folder belongs to which unit instead."""
    named = {c.index: c.name for c in categories}
    lines = [
        f"  folder {category.folder!r} -> unit {unit} ({named.get(unit, 'no folder')}), "
        f"now unit {category.index}"
        for category, unit in moved
    ]
    return "\n".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" * (len(lines) > 20))

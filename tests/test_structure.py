"""The house: which folder may import which, how full folders and how long functions may grow."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # from the street up: a room imports from floors below its own, never beside or above
    {"errors", "progress", "options", "records", "__init__"},
    {"kernels"},
    {"bundled", "machine", "network"},
    {"inputs", "scoring"},
    {"engine", "runs"},
    {"extraction"},
    {"analysis"},
    {"report"},
    {"jobs"},
    {"api"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = 13  # in a folder
ROOMS = 16  # at the top of circuitcore/
LONG, LONGER, FEW = 50, 60, 2  # lines of a function; how many may be longer than LONG
FOLDERS = ("circuitcore", "kernels", "cli")


def modules() -> dict[str, Path]:
    """Every module by its installed name."""
    found = {}
    for path in (p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        parts = parts if parts[0] == "circuitcore" else ["circuitcore", *parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a file imports, inside functions too; whether for its types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("circuitcore"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else str(node.module)), id(node) in typed
        elif isinstance(node, ast.Import):
            yield from (
                (a.name, id(node) in typed) for a in node.names if a.name.startswith("circuitcore")
            )


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_arrow_runs_up(module):
    own = FLOOR[room(module)]
    for target, _ in imports(MODULES[module]):
        assert target in MODULES, f"{module} imports {target}, which is not there"
        inside = room(target) == room(module)
        assert inside or FLOOR[room(target)] < own or own == 0, f"{module} imports {target}"


def test_no_circle():
    """Not among single files either; imports that only name types do not count."""
    arrows = {m: {t for t, typed in imports(p) if not typed} - {m} for m, p in MODULES.items()}
    left = dict(arrows)
    while ends := [m for m, targets in left.items() if not targets & left.keys()]:
        for end in ends:
            del left[end]
    assert not left, f"these import one another: {sorted(left)}"


def test_the_listed_packages_are_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    assert sorted(listed) == sorted(there)


def test_no_folder_is_crowded():
    folders = {path.parent for path in MODULES.values()}
    crowded = {f: n for f in folders if (n := len([p for p in f.iterdir() if p.is_file()])) > FILES}
    assert not crowded
    assert len({room(m) for m in MODULES if m != "circuitcore"} - {"kernels", "cli"}) <= ROOMS


def test_functions_are_short():
    """Outside the kernels, whose loops are long; a docstring counts."""
    long = {}
    for module, path in MODULES.items():
        if room(module) == "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.lineno + 1
                if lines > LONG:
                    long[f"{module}.{node.name}"] = lines
    assert len(long) <= FEW and max(long.values(), default=0) <= LONGER, long

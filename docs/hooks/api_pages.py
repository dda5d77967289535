"""The API's pages: which names are public is read from the package, the rest from docstrings."""

import ast
from collections.abc import Iterable
from pathlib import Path

import circuitcore

ROOT = Path(__file__).parents[2]
VERBS = """# Functions

What the command line can do, as functions of Python: the same names, the same options, the same
messages as exceptions. Nothing is printed; what torch was set to is put back.

```python
import circuitcore as cc

run = cc.sweep(categories=["Bag", "Coat"], out="runs/first")
```
"""
CLASSES = """# Classes

What the functions return and take. A run and its circuits stay on disk until they are asked for.
"""
ERRORS = """# Errors

Every error that is not a bug is one of these; its message says what is wrong, where, and how to
mend it. The [exit codes](../runs.md#exit-codes) of the command line are theirs.
"""
RECORDS = """# Records

What a sweep finds out, as `Circuit.record` holds it, as unit files keep it and as `--format json`
prints it (`circuitcore/schemas/sweep.json` is their JSON schema). Fractions are of 1, biases in
units of the logit.

## Of a sweep
"""
ANSWERS = """
## Answers

The rows and records that `area`, `compare`, `controls`, `evaluate`, `lesion`, `stability`,
`structure`, `reproduce` and `plan` answer with: the columns of their tables, the keys of their
JSON.
"""
KERNELS = """# Kernels

The operations under a sweep, each with its equation. `impl` forces one version: `triton`, `numba`
or `torch`; `auto` is the rule of `circuitcore.kernels.dispatch`. In the folder of an operation
`operation.py` is what is called, `reference.py` the same in plain torch, `gpu.py` and `cpu.py` are
the fast ones. [Which test holds each to its reference](../extending.md#the-operations).
"""


def pages() -> dict[str, str]:
    """Markdown by place on the site."""
    homes = {name: _home(name) for name in circuitcore.__all__}
    errors = [name for name, home in homes.items() if home == "errors"]
    functions = [name for name in homes if name.islower()]
    classes = [name for name in homes if name not in {*errors, *functions}]
    found = {
        "functions": VERBS + _public(functions),
        "classes": CLASSES + _public(classes),
        "errors": ERRORS + _public(errors),
        "records": RECORDS + _records(),
        "kernels": KERNELS + _kernels(),
    }
    return {f"reference/{name}.md": text for name, text in found.items()}


def _home(name: str) -> str:
    """The module that a public name lives in, without importing it (and torch with it)."""
    return "errors" if name in vars(circuitcore) else circuitcore._HOME.get(name, "api.verbs")


def _public(names: Iterable[str]) -> str:
    parts = []
    for name in names:
        parts.append(
            f"\n::: circuitcore.{_home(name)}.{name}\n    options:\n"
            f"      heading: circuitcore.{name}\n      toc_label: {name}\n"
        )
        path = ROOT / "circuitcore" / f"{_home(name).replace('.', '/')}.py"
        parts += [_fields(node) for node in _records_of(path) if node.name == name]
    return "".join(parts)


def _records() -> str:
    """The records of a sweep, and those that questions are answered with, wherever they stand."""
    parts = list(map(_record, _records_of(ROOT / "circuitcore" / "records.py")))
    parts.append(ANSWERS)
    for folder in ("analysis", "extraction/planning", "jobs/profiling"):
        for path in sorted((ROOT / "circuitcore" / folder).rglob("*.py")):
            parts += map(_record, _records_of(path))
    return "".join(parts)


def _records_of(path: Path) -> list[ast.ClassDef]:
    """Classes of a module that are records (pydantic models), or records of such."""
    found: dict[str, ast.ClassDef] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            if bases & {"BaseModel", "Record", *found}:
                found[node.name] = node
    return [node for name, node in found.items() if name[0] != "_"]


def _record(node: ast.ClassDef) -> str:
    return f"\n### {node.name}\n\n{ast.get_docstring(node) or ''}\n{_fields(node)}"


def _fields(node: ast.ClassDef) -> str:
    """What a record holds, as a table."""
    rows = []
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            kind = ast.unparse(field.annotation)
            default = f"`{ast.unparse(field.value)}`" if field.value is not None else ""
            rows.append(f"| `{field.target.id}` | `{kind}` | {default} |\n")
    bases = [ast.unparse(base) for base in node.bases]
    more = [base for base in bases if base not in ("BaseModel", "Record") and base[0] != "_"]
    said = f"\nAnd what `{more[0]}` holds.\n" if more else ""
    head = "\n| field | type | default |\n|---|---|---|\n" if rows else ""
    return head + "".join(rows) + said


def _kernels() -> str:
    """Each operation's public functions, found without importing it."""
    parts = []
    for path in sorted((ROOT / "kernels").glob("*/operation.py")):
        operation, tree = path.parent.name, ast.parse(path.read_text(encoding="utf-8"))
        names = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
        ]
        parts.append(f"\n## {operation}\n\n{ast.get_docstring(tree) or ''}\n")
        parts += [
            f"\n::: kernels.{operation}.operation.{name}\n    options:\n      heading_level: 3\n"
            f"      heading: circuitcore.kernels.{operation}.operation.{name}\n"
            f"      toc_label: {name}\n"
            for name in names
        ]
    return "".join(parts)

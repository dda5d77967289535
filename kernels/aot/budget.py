"""The committed budget of compiled kernels: what each may take of the machine, and must hold.

``budget.json``: {Triton version: {"kernel/config/dtype/target": figures}}.  The figures belong to
one version of the compiler; under another there is nothing to compare with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitcore.kernels.aot.targets import target

BUDGET = Path(__file__).with_name("budget.json")
FIGURES = (
    "registers",
    "spills",
    "stack",
    "shared",
    "matrix_instructions",
    "async_copies",
    "wide_loads",
    "issue",
)


@dataclass(frozen=True)
class CompiledKernel:
    """What one compilation came to; ``shared`` and ``stack`` in bytes, ``spills`` in registers."""

    op: str
    kernel: str
    config: str
    dtype: str
    target: str
    registers: int
    spills: int
    stack: int
    shared: int
    matrix_instructions: dict[str, int] = field(default_factory=dict)
    async_copies: int = 0
    wide_loads: int = 0
    issue: float = 0.0  # matrix cycles / issue cycles of the main loop (`issue`); 0: not known
    occupancy: float = 0.0
    reason: str = ""  # why no tcgen05 on sm_100

    @property
    def key(self) -> str:
        return f"{self.kernel}/{self.config}/{self.dtype}/{self.target}"


def triton_version() -> str:
    """The installed Triton's version, the budget's key."""
    import triton

    return str(triton.__version__)


def read_budget(path: Path = BUDGET) -> dict[str, dict[str, Any]]:
    """The installed Triton's entries; empty where the budget has none for its version."""
    return _read(path).get(triton_version(), {})


def _read(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(path.read_text()) if path.exists() else {}


def unsound(record: CompiledKernel) -> list[str]:
    """What no kernel may do, whatever its budget: spill, or take more memory than a block has."""
    faults = [
        f"{name} {getattr(record, name)}" for name in ("spills", "stack") if getattr(record, name)
    ]
    device = target(record.target)
    if record.shared > device.shared_per_block:
        faults.append(f"shared {record.shared} > {device.shared_per_block} of {device.device}")
    return faults


def worse(record: CompiledKernel, entry: dict[str, Any] | None) -> list[str]:
    """What is worse in ``record`` than its budget ``entry`` allows; empty where nothing is."""
    if entry is None:
        return ["not in budget.json: run python -m circuitcore.kernels.aot --write-budget"]
    faults = unsound(record)
    if record.registers > entry["registers"]:
        faults.append(f"registers {record.registers} > {entry['registers']}")
    for name in entry["matrix_instructions"]:
        if not record.matrix_instructions.get(name):
            faults.append(f"no {name} any more")
    for name in ("async_copies", "wide_loads"):
        if entry[name] and not getattr(record, name):
            faults.append(f"no {name} any more")
    if record.issue < 0.95 * entry.get("issue", 0.0):
        faults.append(f"matrix / issue cycles {record.issue} < {entry['issue']}")
    slow = record.matrix_instructions and "tcgen05" not in record.matrix_instructions
    if record.target == "sm_100" and slow and not entry.get("reason"):
        faults.append("no tcgen05, and the budget entry does not say why (reason)")
    return faults


def write_budget(records: Iterable[CompiledKernel], path: Path = BUDGET) -> None:
    """Replace the installed Triton's entries for the targets in ``records``; reasons are kept."""
    records = list(records)
    budget = _read(path)
    before = budget.get(triton_version(), {})
    compiled = {record.target for record in records}
    entries = {k: v for k, v in before.items() if k.rpartition("/")[2] not in compiled}
    for record in records:
        entries[record.key] = {name: getattr(record, name) for name in FIGURES}
        reason = record.reason or before.get(record.key, {}).get("reason", "")
        if reason and record.target == "sm_100":
            entries[record.key]["reason"] = reason
    budget[triton_version()] = entries
    versions = []
    for version, known in sorted(budget.items()):
        rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(known.items()))
        versions.append(f" {json.dumps(version)}: {{\n{rows}\n }}")
    path.write_text("{\n" + ",\n".join(versions) + "\n}\n")

"""Sparse, category-computing circuits in convolutional networks (Andrade & Konkle, 2025).

    import circuitcore as cc

    run = cc.sweep(categories=["Trouser", "Bag"])      # the bundled example
    run["Bag"].masks["features.0"]                     # True: kept

Public names are imported when they are first used: ``import circuitcore`` alone is quick.  The
folders are the steps of the method: ``network`` and ``inputs`` (what is read), ``scoring``,
``engine`` (how levels run), ``extraction`` (which level is chosen), ``runs`` (on disk),
``analysis``, ``report``, ``jobs``, and ``api`` in front of them all.
"""

import importlib
from typing import TYPE_CHECKING, Any

from circuitcore.errors import (
    CircuitcoreError,
    DeviceError,
    InputError,
    PartialError,
    UsageError,
)

if TYPE_CHECKING:
    from circuitcore.api.circuit import Circuit
    from circuitcore.api.run import Run
    from circuitcore.api.table import Overlaps, Table
    from circuitcore.api.verbs import (
        categories,
        compare,
        open_run,
        plan,
        reproduce,
        score,
        scores,
        stability,
        sweep,
    )
    from circuitcore.extraction.planning.plan import Plan
    from circuitcore.inputs.models import Model

__version__ = "0.1.0"
__all__ = [
    "Circuit", "CircuitcoreError", "DeviceError", "InputError", "Model", "Overlaps", "PartialError",
    "Plan", "Run", "Table", "UsageError", "categories", "compare", "open_run", "plan", "reproduce",
    "score", "scores", "stability", "sweep",
]  # fmt: skip
_HOME = {
    "Circuit": "api.circuit",
    "Model": "inputs.models",
    "Overlaps": "api.table",
    "Plan": "extraction.planning.plan",
    "Run": "api.run",
    "Table": "api.table",
}


def __getattr__(name: str) -> Any:
    """A public name, from where it lives; AttributeError for anything else."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME.get(name, 'api.verbs')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

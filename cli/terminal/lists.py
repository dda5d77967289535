"""What `ls` lists: networks and devices; runs and categories say what they are themselves."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitcore.errors import UsageError

if TYPE_CHECKING:
    from circuitcore.progress import Progress


def devices() -> list[dict[str, Any]]:
    """The devices of this machine."""
    from circuitcore.machine.device import list_devices

    return [asdict(device) for device in list_devices()]


def models(shown: Progress) -> list[dict[str, Any]]:
    """Models that can be swept, with the names of their weights; a line on stderr on the others."""
    import torchvision.models as tv

    from circuitcore.inputs.libraries.census import table

    rows = [{"model": "bundled", "weights": "with circuitcore"}]
    refused = []
    for found in table():
        library, _, name = found.model.partition(":")
        if not found.works:
            refused.append(found.model)
        elif library == "tv":
            listed = ", ".join(w.name for w in tv.get_model_weights(name))
            rows.append({"model": found.model, "weights": listed})
        else:
            rows.append({"model": found.model, "weights": "timm's"})
    if refused:
        shown.note(
            f"{len(refused)} networks that were tried cannot be swept ({refused[0]}, ...); why "
            "says docs/models.md, or 'circuitcore ls models --check --only NAME'"
        )
    return rows


def checked(only: tuple[str, ...], write: bool, shown: Progress) -> list[dict[str, Any]]:
    """The table of what works, made anew."""
    from circuitcore.inputs.libraries.census import census, write_tables
    from circuitcore.machine.state import undisturbed

    with undisturbed():
        found = census(only, shown)
    if not found:
        raise UsageError(f"--only {' '.join(only)}: no such network; 'circuitcore ls models'")
    if write:
        write_tables(found, whole=not only)
    return [asdict(each) for each in found]

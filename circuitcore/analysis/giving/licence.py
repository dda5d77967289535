"""Under which licence the weights of a network are, as far as whoever publishes them says so."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from circuitcore.analysis.giving.subject import Subject, architecture


def licence_of(subject: Subject) -> str:
    """In words; ``unknown: see ...`` where nobody says so."""
    name = subject.model.name
    source = architecture(subject)
    if name == "bundled":
        return (
            "MIT, as circuitcore; trained on Fashion-MNIST, MIT too "
            "(circuitcore/bundled/LICENSE-fashion-mnist)"
        )
    if name.startswith("tv:"):
        return _torchvisions(name)
    if name.startswith("timm:"):
        return _timms(name.removeprefix("timm:"))
    if source == "in hand":
        return "unknown: see where the module's weights are from"
    return f"unknown: see where {subject.options.model.removeprefix('file:')} is from"


def _torchvisions(name: str) -> str:
    """Of ``tv:NAME@WEIGHTS``: torchvision states one for few of its weights."""
    meta: dict[str, Any] = {}
    with suppress(Exception):  # a version without these weights
        import torchvision.models

        arch, _, weights = name.removeprefix("tv:").partition("@")
        meta = torchvision.models.get_model_weights(arch)[weights].meta
    if said := meta.get("license"):
        return str(said)
    recipe = f" and {meta['recipe']}" if meta.get("recipe") else ""
    return (
        "unknown: torchvision states none for these weights; see "
        f"https://pytorch.org/vision/stable/models.html{recipe}"
    )


def _timms(name: str) -> str:
    config: Any = None
    with suppress(Exception):
        import timm

        config = timm.get_pretrained_cfg(name)
    if said := getattr(config, "license", None):
        return str(said)
    hub = getattr(config, "hf_hub_id", None)
    place = f"https://huggingface.co/{hub}" if hub else "https://huggingface.co/timm"
    return f"unknown: timm states none for these weights; see {place}"

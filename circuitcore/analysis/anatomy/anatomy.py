"""All there is to draw of one circuit: its layers, the units that carry most, what connects them.

Kept in ``RUN/anatomy/KEY.json`` beside the circuit's own file, so that the report shows it without
the network; pictures (filters, maps, images) are made anew when it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from circuitcore.analysis.across.usage import Usage
from circuitcore.analysis.anatomy.flow import Flow, flow
from circuitcore.analysis.anatomy.live import Live, live_circuit
from circuitcore.analysis.score_files import scores_of
from circuitcore.errors import InputError
from circuitcore.inputs.read import Inputs
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.network.graph import Network
from circuitcore.records import Record
from circuitcore.runs.circuitfile import StoredCircuit, read_unit_header
from circuitcore.runs.folder import RunFolder

FOLDER = "anatomy"
MOST_UNITS = 8  # of a layer that are drawn
MOST_RIBBONS = 24  # between two layers


class Unit(Record):
    """A unit that is drawn.  ``flow``: through it, over that of its layer; ``shared``: other
    circuits of the run that keep a weight into it, None of the target's own layer.
    """

    unit: int
    flow: float
    shared: int | None


class AnatomyLayer(Record):
    """One layer of a circuit.  ``weights`` relevant ones, of which the circuit keeps ``nominal``,
    of which ``live`` carry something; ``units``, of which ``units_kept`` and ``units_live`` have
    such weights into them; ``shown``: the most of those, by flow to what is shown behind them.
    """

    layer: str
    stage: str
    op: str
    weights: int
    nominal: int
    live: int
    units: int
    units_kept: int
    units_live: int
    shown: list[Unit]


class Ribbon(Record):
    """The flow from one shown unit to another, over that between their two layers."""

    source: str
    source_unit: int
    layer: str
    unit: int
    flow: float


class Anatomy(Record):
    """One circuit from the inside.  ``others``: circuits that ``Unit.shared`` counts among."""

    category: str
    index: int
    others: int
    nominal: int
    live: int
    layers: list[AnatomyLayer]
    ribbons: list[Ribbon]


def anatomy(
    run: RunFolder, stored: StoredCircuit, inputs: Inputs, others: Usage, most: int = MOST_UNITS
) -> Anatomy:
    """The anatomy of one circuit, its network and scoring images being at hand.

    ``others``: `usage` of the run; ``most``: units that are drawn of a layer.  Cost: scoring it
    once, one image, and a pass over its weights.
    """
    unit, network = stored.record.index, inputs.model.network
    images = inputs.scoring_images(unit, torch.device("cpu"))
    scores = scores_of(network, images, unit, run.options())
    circuit = live_circuit(network, unit, stored.kept, images[:1])
    through = flow(circuit, scores)
    shown = _shown(circuit, through, most)
    shared = others.shared(unit)
    layers = [
        _layer(network, circuit, through, name, shown[name], shared.get(name))
        for name in circuit.live
    ]
    return Anatomy(
        category=stored.record.category,
        index=unit,
        others=len(set(others.units) - {unit}),
        nominal=sum(layer.nominal for layer in layers),
        live=sum(layer.live for layer in layers),
        layers=layers,
        ribbons=_ribbons(through, shown),
    )


def _shown(circuit: Live, found: Flow, most: int) -> dict[str, list[int]]:
    """From the target backwards, the units whose flow to what is shown behind them is largest."""
    shown: dict[str, list[int]] = {}
    wanted: dict[str, Tensor] = {}
    for layer in reversed(list(circuit.live)):
        live = circuit.units(layer)
        value = wanted.get(layer, found.through[layer])
        if layer in wanted and not bool(wanted[layer].any()):
            value = found.through[layer]
        order = value.argsort(descending=True, stable=True)
        shown[layer] = [int(u) for u in order if bool(live[u])][:most]
        for source, between in found.between[layer].items():
            part = between[shown[layer]].sum(0)
            wanted[source] = wanted.get(source, 0) + part
    return {layer: shown[layer] for layer in circuit.live}


def _layer(
    network: Network, circuit: Live, found: Flow, name: str, units: Sequence[int],
    shared: np.ndarray | None,
) -> AnatomyLayer:  # fmt: skip
    through = found.through[name]
    total = float(through.sum()) or 1.0
    return AnatomyLayer(
        layer=name,
        stage=next(stage for stage, names in network.stages.items() if name in names),
        op=network.step(name).op,
        weights=circuit.live[name].numel(),
        nominal=int(circuit.kept[name].sum()),
        live=int(circuit.live[name].sum()),
        units=len(circuit.live[name]),
        units_kept=int(circuit.units_kept(name).sum()),
        units_live=int(circuit.units(name).sum()),
        shown=[
            Unit(
                unit=u,
                flow=float(through[u]) / total,
                shared=None if shared is None else int(shared[u]),
            )
            for u in units
        ],
    )


def _ribbons(found: Flow, shown: Mapping[str, Sequence[int]]) -> list[Ribbon]:
    """The strongest connections between units that are shown, of each pair of layers."""
    ribbons = []
    for layer, sources in found.between.items():
        for source, between in sources.items():
            total = float(between.sum())
            if source not in shown or total <= 0:
                continue
            own = [
                Ribbon(source=source, source_unit=a, layer=layer, unit=b,
                       flow=float(between[b, a]) / total)
                for a in shown[source] for b in shown[layer] if between[b, a] > 0
            ]  # fmt: skip
            ribbons += sorted(own, key=lambda ribbon: -ribbon.flow)[:MOST_RIBBONS]
    return ribbons


def keep(run: RunFolder, found: Anatomy) -> Path:
    """Write it into the run folder, with the circuit file that it is of."""
    path = run.folder / FOLDER / f"{run.path(found.index).stem}.json"
    path.parent.mkdir(exist_ok=True)
    of = read_unit_header(run.path(found.index)).sha256
    write_atomically(path, sealed({"of": of, "found": found.model_dump(mode="json")}))
    return path


def kept(run: RunFolder, unit: int) -> Anatomy | None:
    """What `keep` wrote of a category; None where it did not, or not of the circuit there now."""
    path = run.path(unit)
    try:
        found: dict[str, Any] = read_sealed(run.folder / FOLDER / f"{path.stem}.json")
        if found["of"] != read_unit_header(path).sha256:
            return None
        return Anatomy(**found["found"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError, InputError):
        return None

"""The evaluation step alone: a run's circuits judged again, on its own or other held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.errors import InputError
from circuitcore.extraction.accuracy import ratio
from circuitcore.extraction.judging import judges
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import pick
from circuitcore.progress import Progress
from circuitcore.records import Accuracy
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import (
    Run,
    create_run,
    open_run,
)


class EvaluateRow(BaseModel):
    """One circuit with its frozen bias on a held-out set, beside the unpruned network at bias 0."""

    model_config = ConfigDict(frozen=True)

    category: str
    images: int
    circuit: Accuracy
    unpruned: Accuracy
    csa_ratio: float | None
    csa_ratio_ci95: tuple[float, float] | None


def evaluate(run: Path, images: str | None, progress: Progress, **engine: Any) -> list[EvaluateRow]:
    """Judge every circuit of a run on its held-out images, or on those of another folder.

    ``images``: a folder in ImageNet's layout with the same categories; its split is made with the
    run's own counts.  Raises InputError where the folder or the model does not fit the run.
    """
    if images is None:
        opened, prepared = prepared_run(run, progress, **engine)
    else:
        opened = open_run(run)
        options = opened.options(images=images, **engine)
        inputs = read_inputs(options)
        if inputs.model.sha256 != opened.manifest["model"]["weights_sha256"]:
            raise InputError(
                f"{run}: the model's weights are not those of the run (sha256 differs)"
            )
        pick(options)
        prepared = prepare(inputs, options, progress)
    present = {c.index for c in prepared.inputs.categories}
    units = {unit: path for unit, path in opened.units().items() if unit in present}
    progress.start("circuits", len(units))
    rows = []
    for unit, path in units.items():
        stored = read_circuit(path)
        if stored.record.circuit is not None:
            rows.append(_row(prepared, unit, stored.record.category, stored.kept,
                             stored.record.circuit.bias))  # fmt: skip
        progress.advance(1, stored.record.category)
    return rows


def _row(
    prepared: Prepared, unit: int, name: str, kept: dict[str, Any], bias: float
) -> EvaluateRow:
    judge = judges(prepared, unit)[1]
    kept = {layer: mask.to(prepared.device) for layer, mask in kept.items()}
    activation = activations(prepared, prepared.heldout, unit, kept)
    circuit, unpruned = judge.at(activation, bias), judge.at(judge.unpruned, 0.0)
    return EvaluateRow(
        category=name,
        images=len(prepared.heldout),
        circuit=circuit,
        unpruned=unpruned,
        csa_ratio=ratio(circuit.csa, unpruned.csa),
        csa_ratio_ci95=judge.ratio_interval(
            activation, bias, prepared.options.seed * 1_000_003 + unit
        )
        if unpruned.csa > 0
        else None,
    )


def prepared_run(folder: Path, progress: Progress, **changes: Any) -> tuple[Run, Prepared]:
    """A run and what its categories share, decoded anew, to evaluate its circuits.

    Raises InputError where model or images are not those of the run.
    """
    run = open_run(folder)
    options = run.options(**changes)
    inputs = read_inputs(options)
    run = create_run(folder, inputs, options, pick(options))
    return run, prepare(inputs, options, progress)

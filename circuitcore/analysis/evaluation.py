"""The evaluation step alone: a run's circuits judged again, on its own or other held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from circuitcore.analysis.targets import TargetEvaluation, evaluated
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.errors import InputError
from circuitcore.extraction.judging import heldout_accuracy, judge_of
from circuitcore.inputs.image_files import Images
from circuitcore.inputs.read import IN_HAND, InHand, read_inputs
from circuitcore.machine.device import machine
from circuitcore.progress import Progress
from circuitcore.records import Accuracy, Target
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import (
    RunFolder,
    create_run,
    open_run,
)
from circuitcore.scoring.seeds import unit_seed


class EvaluateRow(BaseModel):
    """One circuit with its frozen bias on a held-out set, beside the unpruned network with its own.

    ``unpruned``: at the bias fitted to it on the extraction set, as the sweep's ratio has it.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    images: int
    circuit: Accuracy
    unpruned: Accuracy
    csa_ratio: float | None
    csa_ratio_ci95: tuple[float, float] | None


def evaluate(
    run: Path,
    images: str | Images | None,
    progress: Progress,
    given: InHand | None = None,
    **engine: Any,
) -> list[EvaluateRow] | list[TargetEvaluation]:
    """Judge every circuit of a run on its held-out images, or on those of another folder.

    ``images``: a folder in ImageNet's layout with the same categories; its split is made with the
    run's own counts.  Raises InputError where the folder or the model does not fit the run.
    """
    opened, prepared = prepared_run(run, progress, given, images, **engine)
    present = {c.index for c in prepared.inputs.categories}
    units = {unit: path for unit, path in opened.units().items() if unit in present}
    progress.start("circuits", len(units))
    rows: list[Any] = []
    for unit, path in units.items():
        stored = read_circuit(path)
        record = stored.record
        if record.circuit is None:
            pass
        elif isinstance(record, Target):
            rows.append(evaluated(prepared, record, stored.kept))
        else:
            own = record.unpruned.extraction_biased.bias
            rows.append(
                _row(prepared, unit, record.category, stored.kept, record.circuit.bias, own)
            )
        progress.advance(1, record.category)
    return rows


def _row(
    prepared: Prepared, unit: int, name: str, kept: dict[str, Any], bias: float, own: float
) -> EvaluateRow:
    judge = judge_of(prepared.heldout, unit, prepared.options.false_alarm_norm)
    kept = {layer: mask.to(prepared.runner.machine.device) for layer, mask in kept.items()}
    activation = activations(prepared.runner, prepared.heldout, unit, kept)
    seed = unit_seed(prepared.options.seed, unit)
    biased = judge.at(judge.unpruned, own)
    found = heldout_accuracy(judge, activation, bias, biased, seed)
    return EvaluateRow(
        category=name,
        images=len(prepared.heldout),
        circuit=found.alone(),
        unpruned=biased,
        csa_ratio=found.csa_ratio_biased,
        csa_ratio_ci95=found.csa_ratio_biased_ci95,
    )


def prepared_run(
    folder: Path,
    progress: Progress,
    given: InHand | None = None,
    images: str | Images | None = None,
    **changes: Any,
) -> tuple[RunFolder, Prepared]:
    """A run and what its categories share, decoded anew, to evaluate its circuits.

    ``given``: a model and images of the run that came in hand; ``images``: others than the run's,
    a folder or in hand, split with the run's own counts.  Raises InputError
    where the model, or without ``images`` the images, are not those of the run.
    """
    run = open_run(folder)
    given = given or InHand()
    if isinstance(images, str):
        changes["images"], given = images, InHand(given.model)
    elif images is not None:
        changes["images"], given = IN_HAND, InHand(given.model, images)
    options = run.options(**changes)
    on = machine(options)
    inputs = read_inputs(options, given)
    if images is None:
        run = create_run(folder, inputs, options, on.device)
    elif inputs.model.sha256 != run.manifest["model"]["weights_sha256"]:
        raise InputError(f"{folder}: the model's weights are not those of the run (sha256 differs)")
    inputs.tell(progress)
    return run, prepare(inputs, options, on, progress)

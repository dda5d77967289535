"""A run prepared in its folder: what pruned weights carry is read there, or found once and kept."""

from __future__ import annotations

from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.engine.splits import Arrays
from circuitcore.inputs.read import Inputs
from circuitcore.machine.device import Machine
from circuitcore.network.ablation import means_of
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.means import MEANS, read_means, write_means


def prepared_in(
    run: RunFolder,
    inputs: Inputs,
    options: Options,
    machine: Machine,
    progress: Progress,
    given: Arrays | None = None,
    own: bool = True,
) -> Prepared:
    """`prepare` of a run's inputs, or not ``own``: of other images, which its circuits are run on.

    Means are always those of the run's own scoring images.  Raises InputError too where they are
    damaged, or are not there and the images are not the run's.
    """
    if not inputs.averaged or (own and not (run.folder / MEANS).exists()):
        prepared = prepare(inputs, options, machine, progress, given)
        if (means := prepared.runner.network.means) is not None:
            write_means(run.folder, means.inputs)
        return prepared
    means = means_of(inputs.model.network, read_means(run.folder))
    return prepare(inputs.averaging(means), options, machine, progress, given)


def means_kept(
    run: RunFolder, inputs: Inputs, options: Options, machine: Machine, progress: Progress
) -> None:
    """Find means again that a run with nothing else left to do has lost: circuits stand on them."""
    if inputs.averaged and not (run.folder / MEANS).exists():
        prepared_in(run, inputs, options, machine, progress)

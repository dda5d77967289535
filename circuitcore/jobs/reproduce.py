"""`reproduce paper|vss`: every reading of a published text, over categories, in one run folder.

The folder is a run of the preset, which every verb works on, with the families of readings beside
it.  Each category and family is committed as it is done; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from circuitcore.analysis.reproduction import document
from circuitcore.analysis.reproduction.grid import named, readings
from circuitcore.analysis.reproduction.kept import FamilyRecord, path_of, read, write
from circuitcore.engine.executors import Executor
from circuitcore.engine.prepare import Prepared
from circuitcore.errors import UsageError
from circuitcore.extraction.circuit import extract_circuit, once
from circuitcore.extraction.opened import means_kept, prepared_in
from circuitcore.extraction.readings import read_family
from circuitcore.extraction.stage import Scored, scored, stage_executor
from circuitcore.inputs.categories import Category, select
from circuitcore.inputs.read import InHand, Inputs, read_inputs
from circuitcore.jobs.job import commit, default_folder, disk_failed, finish, recover
from circuitcore.machine.device import Machine, empty_caches, machine
from circuitcore.machine.meter import return_freed_memory
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.runs.folder import RunFolder, canonical, create_run
from circuitcore.scoring.levels import stage_levels


def reproduce(
    which: str,
    options: Options,
    wanted: Sequence[str | int],
    progress: Progress,
    given: InHand | None = None,
) -> document.Reproduction:
    """Run all readings of ``which`` (``paper`` or ``vss``), whose preset ``options`` are.

    Raises what `sweep` raises.  Cost: said beforehand; by category the scores once, and each
    family as `read_family` has it.
    """
    if options.target or options.stages:
        raise UsageError("reproduce: of categories, with the stages fc and conv, as published")
    families = readings(which, options)
    on = machine(options)
    inputs = read_inputs(options, given)
    chosen = select(inputs.categories, wanted)
    folder = options.out or default_folder(inputs, options)
    try:
        recover(folder, progress)
        run = create_run(folder, inputs, options, on.device)
        _say(families, inputs, chosen, folder, progress)
        for work in _missing(run, families, inputs, options, on, chosen, progress):
            work.do(run, families)
        means_kept(run, inputs, options, on, progress)
        finish(run, progress)
    except OSError as error:
        raise disk_failed(folder, error) from error
    if on.device.type == "cuda":
        empty_caches()
    files = _files(run, families, [c.index for c in chosen])
    found = document.reproduction(run, which, families, files)
    document.keep(run.folder, found)
    return found


def _files(
    run: RunFolder, families: Sequence[Sequence[Options]], units: Sequence[int]
) -> list[document.Files]:
    """What is done of these units, of each family in their order."""
    return [
        [
            (path, record)
            for unit in units
            if (record := read(path := family_path(run, family, unit))) is not None
        ]
        for family in families
    ]


def not_reproduced(run: RunFolder) -> str | None:
    """What in ``reproduction.json`` is not what the families' files give; None where all is.

    One of an earlier version, which does not say of which units it is, is not judged.
    """
    path = run.folder / document.FOLDER / document.FILE
    if not path.exists() or not (found := document.kept(run.folder)).units:
        return None
    families = readings(found.which, run.options())
    files = _files(run, families, found.units)
    if [record.index for _, record in files[0]] != found.units:
        return f"{path}: of {len(found.units)} categories, of which {len(files[0])} are there"
    again = document.reproduction(run, found.which, families, files)
    if again.model_dump(mode="json") == found.model_dump(mode="json"):
        return None
    return f"{path}: not what its families give; circuitcore reproduce {found.which} makes it anew"


def family_path(run: RunFolder, family: Sequence[Options], unit: int) -> Path:
    """The file of a family of readings of one category: named by all that changes its numbers."""
    said = {
        "configuration": run.manifest["configuration"],
        "readings": [named(reading) for reading in family],
        "unit": unit,
    }
    return path_of(run.folder, hashlib.sha256(canonical(said)).hexdigest())


def _say(
    families: Sequence[Sequence[Options]], inputs: Inputs, chosen: Sequence[Category],
    folder: Path, progress: Progress,
) -> None:  # fmt: skip
    """What is about to be run, on what, and what it costs at most."""
    inputs.tell(progress)
    images = len(inputs.split("extraction"))
    levels = [len(families[0][0].grid(stage)) for stage in families[0][0].stage_names()]
    count = sum(map(len, families))
    most = sum(levels[0] + min(len(f), levels[0]) * levels[1] for f in families)
    progress.note(
        f"{count} readings of {len(chosen)} categories of {inputs.model.name} on "
        f"images of {families[0][0].images}, in {folder}: "
        f"{len(families)} sweeps of {images} images that they share, at most {most:,} levels a "
        "category (levels are run as far as a reading looks)"
    )


@dataclass(frozen=True)
class _Missing:
    """A category with something left to do."""

    prepared: Prepared
    category: Category

    def do(self, run: RunFolder, families: Sequence[Sequence[Options]]) -> None:
        """Score once, run the families that are missing, and the preset's own circuit.

        The latter's looks are those of the first family, which are not made again.
        """
        prepared, unit, name = self.prepared, self.category.index, self.category.name
        work, first = scored(prepared, unit), None
        for place, family in enumerate(families):
            path = family_path(run, family, unit)
            own = place == 0 and not run.finished(unit)
            if read(path) is not None and not own:
                continue
            began = time.perf_counter()
            as_read = replace(prepared, options=family[0])
            mine = _shared(as_read, unit, work, first)
            if _linear_alike(as_read):
                stage = next(iter(mine.assigned))
                first = stage_executor(as_read, unit, mine, stage, {})
            found = read_family(as_read, unit, family, mine)
            record = FamilyRecord(
                category=name, index=unit, readings=found.readings, once=once(prepared),
                work=mine.tally.multiply_adds, floor=found.floor,
                seconds=time.perf_counter() - began,
            )  # fmt: skip
            write(path, record, found.kept)
            if own:
                commit(run, extract_circuit(prepared, unit, name, work=mine))
        return_freed_memory()


def _linear_alike(prepared: Prepared) -> bool:
    """Whether the first stage's scores are those of magnitude ``position`` or ``image`` alike.

    A Linear layer has one position: a sum over it changes nothing (method, section 1).
    """
    network, options = prepared.runner.network, prepared.options
    layers = network.layers(next(iter(network.stages)))
    linear = set(layers) <= set(network.weighted("linear"))
    return linear and options.granularity == "weight" and options.magnitude in ("position", "image")


def _shared(prepared: Prepared, unit: int, work: Scored, first: Executor | None) -> Scored:
    """The scores ranked as one family has them, with executors that its readings share.

    ``first``: of the first stage, by a family before, whose looks are this one's too where both
    score it alike.
    """
    network, options = prepared.runner.network, prepared.options
    assigned, made = {}, {}
    if first is not None and _linear_alike(prepared):
        stage = first.assigned.stage
        assigned[stage], made[stage, options.grid(stage)] = first.assigned, first
    for stage in network.stages:
        if stage not in assigned:
            assigned[stage] = stage_levels(network, stage, work.found, unit, options)
    return Scored(work.found, Tally(), made, assigned)


def _missing(
    run: RunFolder, families: Sequence[Sequence[Options]], inputs: Inputs, options: Options,
    on: Machine, chosen: Sequence[Category], progress: Progress,
) -> Iterator[_Missing]:  # fmt: skip
    """Categories that are not done, and progress as they are; nothing is decoded for none."""
    missing = [
        c for c in chosen
        if not run.finished(c.index)
        or any(read(family_path(run, family, c.index)) is None for family in families)
    ]  # fmt: skip
    done = len(chosen) - len(missing)
    if done:
        progress.note(f"{run.folder}: {done} of {len(chosen)} categories are done already")
    if not missing:
        return
    prepared = prepared_in(run, inputs, options, on, progress)
    progress.start("readings", len(missing))
    for category in missing:
        yield _Missing(prepared, category)
        progress.advance(1, category.name)

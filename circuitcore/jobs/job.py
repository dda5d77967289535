"""Run a sweep in its folder: what is done is skipped, each category is committed as it is done."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circuitcore.analysis.overlap import pairs, table
from circuitcore.analysis.summary import document
from circuitcore.engine.footprint import weight_bytes
from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Arrays
from circuitcore.errors import CircuitcoreError, DeviceError, InputError, PartialError, UsageError
from circuitcore.extraction.agreement import extract_target
from circuitcore.extraction.circuit import Extracted, swept_circuit
from circuitcore.extraction.opened import means_kept, prepared_in
from circuitcore.inputs.categories import Category, select
from circuitcore.inputs.decoding import refuse_unreadable
from circuitcore.inputs.read import InHand, Inputs, read_inputs
from circuitcore.jobs.claims import Claims, own_order
from circuitcore.jobs.overlapped import committed_behind, scored_ahead
from circuitcore.jobs.visible import wait_for_run
from circuitcore.jobs.workers import end_with_parent, spread
from circuitcore.kernels.spans import span
from circuitcore.machine.device import Machine, empty_caches, machine
from circuitcore.machine.files import sealed, sweep_orphans, write_atomically
from circuitcore.machine.meter import Meter, return_freed_memory
from circuitcore.machine.scratch import inherited
from circuitcore.options import Options
from circuitcore.progress import Progress, Silent, follow
from circuitcore.runs.circuitfile import read_record, write_circuit
from circuitcore.runs.folder import (
    PLAN,
    RunFolder,
    configuration,
    create_run,
    open_run,
    refuse_other,
    remove_refused,
    unit_key,
)
from circuitcore.runs.intact import files_of, is_run, set_aside_damaged
from circuitcore.runs.paths import HOME
from circuitcore.runs.tables import write_curves
from circuitcore.runs.working.presence import Presence, sweep_gone


def default_folder(inputs: Inputs, options: Options) -> Path:
    """``runs/<model>-<configuration>``: the same command finds the same folder."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", inputs.model.name).strip("-")
    return HOME / f"{name}-{unit_key(configuration(inputs, options), -1)[:8]}"


def sweep(
    options: Options, wanted: Sequence[str | int], progress: Progress, given: InHand | None = None
) -> RunFolder:
    """The main job: score, sweep, extract and evaluate the wanted categories (all by default).

    Categories whose file is in the run folder are not computed again.  Raises what `read_inputs`,
    `prepare`, `create_run` and `spread` raise, and PartialError where a category failed or a disk
    is full; running again goes on from there.
    """
    on = machine(options)
    inputs = read_inputs(options, given)
    chosen = select(inputs.categories, wanted)
    folder = options.out or default_folder(inputs, options)
    new = not folder.exists()
    try:
        with span("run", "sweep"):
            with span("stage", "run folder"):
                recover(folder, progress)
                run = create_run(folder, inputs, options, on.device)
            follow(progress, folder)
            if others := run.other_versions():
                progress.note(others)
            if inputs.aim is None and not inputs.mapping.rule.startswith("by name"):
                progress.note(f"folders matched to output units {inputs.mapping.rule}")
            inputs.tell(progress)
            if inputs.left_out:
                _quarantine(run, inputs, progress)
            with span("stage", "scoring images"):
                _try_scoring_images(run, inputs, options, chosen)
            with span("stage", "plan"):
                predict(run, inputs, options, on, chosen)
            if options.workers > 1:
                spread(run, inputs, options, on, chosen, progress)
            else:
                _extract_all(run, inputs, options, on, chosen, progress)
                if on.device.type == "cuda":  # the caller's program may go on and want the memory
                    empty_caches()
            means_kept(run, inputs, options, on, progress)
            finish(run, progress)
            return run
    except (UsageError, InputError):
        if new:
            remove_refused(folder)
        raise
    except OSError as error:
        raise disk_failed(folder, error) from error


def disk_failed(folder: Path, error: OSError) -> PartialError:
    """What a disk that fails in the middle of a run comes to."""
    return PartialError(
        f"{error.filename or folder}: {error.strerror or error}; what is committed is kept: "
        "mend the disk and run the same command again"
    )


def recover(folder: Path, progress: Progress) -> None:
    """Sweep away what a killed process left, set aside what is damaged: before anything is read.

    Raises UsageError where ``folder`` can be no run folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; a run is a folder")
    if folder.resolve() == Path(folder.resolve().anchor):
        raise UsageError(f"--out {folder}: is the root of the file system; name a folder in it")
    if is_run(folder):
        sweep_orphans(folder)
        sweep_gone(folder)
        set_aside_damaged(folder, progress.note)


def _try_scoring_images(
    run: RunFolder, inputs: Inputs, options: Options, chosen: Sequence[Category]
) -> None:
    """Decode those of what is not done: else one would be met when its category's turn comes."""
    if inputs.pool is None and not options.max_bad:  # with it they have all been tried
        units = {c.index for c in chosen if not run.path(c.index).exists()}
        scoring = [image for image in inputs.split("scoring") if image.category in units]
        refuse_unreadable(inputs.source, scoring, inputs.model.preprocessing)


def predict(
    run: RunFolder, inputs: Inputs, options: Options, on: Machine, chosen: Sequence[Category]
) -> None:
    """Write the plan of a new run, to be held against what it takes."""
    from circuitcore.extraction.planning.plan import plan

    if (run.folder / PLAN).exists() or not chosen:
        return
    names = [str(c.index) for c in chosen]
    planned = plan(inputs, options, on, names, Silent())
    write_atomically(run.folder / PLAN, sealed(planned.model_dump(mode="json")))


def _quarantine(run: RunFolder, inputs: Inputs, progress: Progress) -> None:
    """List the images left out, in the run folder and on the way."""
    listed = [{"path": name, "error": said} for name, said in inputs.left_out.items()]
    path = run.folder / "quarantine" / "images.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(listed, indent=1).encode())
    progress.note(f"{len(listed)} unreadable images left out, the next ones taken; see {path}")


def finish(run: RunFolder, progress: Progress) -> None:
    """Write what is derived from the unit files: curves, overlap, report.

    Every record is parsed once.
    """
    with span("stage", "report"):
        from circuitcore.report.page import write_report  # matplotlib takes a second to import

        progress.start("curves", 1)
        records = run.records()
        write_curves(run.folder, records, run.contents())
        progress.advance()
        found = pairs(run, records, progress)
        progress.start("report", 1)
        write_report(run, document(run, records, found), found, _of_pages(run, progress))
        progress.advance()


def report(run: RunFolder, progress: Progress, pages: bool = False) -> Path:
    """Write the report of a run folder anew and return its path; ``pages``: one a category too.

    What it would be made of and is damaged is set aside; circuits are not: InputError.
    """
    from circuitcore.report.page import write_report  # matplotlib takes a second to import

    tables = [path for path in files_of(run.folder) if path.parent == run.folder]
    set_aside_damaged(run.folder, progress.note, tables)
    records = run.records()
    found = table(run, records, progress)
    progress.start("report", 1)
    told = progress if pages else _of_pages(run, progress)
    path = write_report(run, document(run, records, found), found, told)
    progress.advance()
    return path


def _of_pages(run: RunFolder, progress: Progress) -> Progress | None:
    """Who is told of single pages: where a run has some they are kept in step with its report."""
    from circuitcore.report.inline.pages import FOLDER

    return progress if (run.folder / FOLDER).is_dir() else None


def _extract_all(
    run: RunFolder,
    inputs: Inputs,
    options: Options,
    on: Machine,
    chosen: Sequence[Category],
    progress: Progress,
    stored: dict[int, Any] | None = None,
    given: Arrays | None = None,
) -> int:
    """Extract and commit what is missing, in this order; how many of them were done here.

    What other workers are at meanwhile is left to them, and waited for.
    """
    missing = [c for c in chosen if not run.path(c.index).exists()]
    done = len(chosen) - len(missing)
    if done:
        progress.note(f"{run.folder}: {done} of {len(chosen)} categories are done already")
    if not missing:
        return 0
    failed: list[str] = []
    done = 0
    held = 0 if on.device.type == "cuda" else weight_bytes(inputs.model.network)
    with (
        Presence(run.folder, str(on.device), len(missing)) as present,
        Claims(run, present.state.name, missing, lambda c: progress.advance(1, c.name)) as claims,
        Meter(on.device, held) as meter,
        committed_behind(on.device) as behind,
    ):
        prepared = prepared_in(run, inputs, options, on, progress, given)
        progress.start("circuits", len(missing))
        for category, work in scored_ahead(prepared, claims.take):
            present.tell(category=category.name, memory_bytes=meter.so_far())
            try:
                stage = (stored or {}).get(category.index)
                with span("category", category.name, category.index):
                    unit, name = category.index, category.name
                    found = _swept(prepared, unit, name, stage, work())
                    over = partial(_done, claims, present, category)
                    behind(partial(_test_and_commit, run, found, meter.so_far(), over))
                    return_freed_memory()
                done += 1
            except DeviceError:
                raise
            except CircuitcoreError as error:
                _record_failure(run, category, error)
                failed.append(f"{category.name}: {error}")
                claims.release(category)
                present.tell(failed=len(failed))
            progress.advance(1, category.name)
    failed += [f"{category.name}: {said}" for category, said in claims.failed.items()]
    if failed:
        listed = "\n".join(f"  {line}" for line in failed)
        raise PartialError(f"{len(failed)} of {len(chosen)} categories failed:\n{listed}")
    return done


def _done(claims: Claims, present: Presence, category: Category) -> None:
    """A category is committed: nobody need wait for it."""
    claims.release(category)
    present.tell(done=present.state.done + 1)


def _swept(prepared: Prepared, unit: int, name: str, *given: Any) -> Callable[[], Extracted]:
    """A category's circuit, or another target's, swept; what is returned finishes it."""
    if prepared.inputs.aim is None:
        return swept_circuit(prepared, unit, name, *given)
    found = extract_target(prepared, unit, name, *given)
    return lambda: found


def _test_and_commit(
    run: RunFolder,
    circuit: Callable[[], Extracted],
    memory_bytes: int,
    over: Callable[[], None],
) -> None:
    """Test a swept circuit on the held-out images and commit it, with the memory it took."""
    commit(run, circuit().measured(memory_bytes))
    over()


def commit(run: RunFolder, found: Extracted) -> None:
    """Write one category's file; its presence is the commit."""
    path = run.path(found.record.index)
    with span("stage", "commit"):
        write_circuit(path, path.stem, found.record, found.kept, found.decided)
        failure = run.folder / "failed" / f"{path.stem}.json"
        failure.unlink(missing_ok=True)


def _record_failure(run: RunFolder, category: Category, error: Exception) -> None:
    path = run.path(category.index)
    record = {
        "category": category.name,
        "error": str(error),
        "traceback": traceback.format_exc(),
        "time": time.time(),
    }
    write_atomically(run.folder / "failed" / f"{path.stem}.json", sealed(record))


def worker(
    folder: Path,
    shard: int,
    shards: int,
    progress: Progress,
    wanted: Sequence[str | int] = (),
    shared: str = "",
    others: bool = False,
    **changes: Any,
) -> int:
    """One shard of a run: every ``shards``-th wanted category from the ``shard``-th; how many.

    ``others``: then those of other shards too, and all in an order of this worker's own; what
    another worker is at is waited for, and taken over if that one is gone.
    ``shared``: the parent process's arrays, as `Scratch.described` says them; "" to make them.
    Two workers on one category do the same work twice and commit the same file: no lock is needed.
    Raises PartialError where the run folder is not to be seen here, even after a while.
    """
    if not 0 <= shard < shards:
        raise UsageError(f"--shard {shard}/{shards}: shards count from 0 to {shards - 1}")
    run = wait_for_run(folder, progress)
    options = run.options(**changes)
    on = machine(options)
    inputs = read_inputs(options)
    run = create_run(folder, inputs, options, on.device)
    follow(progress, folder)
    every = select(inputs.categories, wanted)
    mine = every[shard::shards]
    if others:
        own = {c.index for c in mine}
        rest = [c for c in every if c.index not in own]
        mine = [*own_order(mine), *own_order(rest)]
    sweep_orphans(folder)
    sweep_gone(folder)
    set_aside_damaged(folder, progress.note, [run.path(c.index) for c in mine])
    given = None
    if shared:
        end_with_parent()
        given = inherited(shared)
    with span("run", "worker", shard):
        return _extract_all(run, inputs, options, on, mine, progress, given=given)


def _refuse_new_curves(changes: Mapping[str, Any]) -> None:
    allowed = {"stop", "threshold", "fc_threshold", "conv_threshold", "reference"}
    other = sorted(set(changes) - allowed - {"device", "gpu", "impl", "memory", "no_fallback"})
    if other:
        raise UsageError(
            f"extract: --{other[0].replace('_', '-')} changes the curve itself: "
            "sweep into a new folder instead"
        )


def extract(
    folder: Path,
    changes: dict[str, Any],
    out: Path | None,
    progress: Progress,
    wanted: Sequence[str | int] = (),
    given: InHand | None = None,
) -> RunFolder:
    """Choose the circuits of a run anew under another threshold, stop rule or bias reference.

    The first stage's level comes from the stored curve (where every level is on it), the others are
    run again and masks are scored again; the result is a run folder of its own, ``out`` or
    ``<RUN>-<configuration>``.  Raises UsageError where a change needs a whole new sweep.
    """
    _refuse_new_curves(changes)
    old = open_run(folder)
    options = old.options(**changes)
    inputs = read_inputs(options, given)
    refuse_other(old, inputs, old.options(), str(folder))  # its curves are of no other inputs
    config = configuration(inputs, options)
    target = out or folder.with_name(f"{folder.name}-{unit_key(config, -1)[:8]}")
    if target.resolve() == folder.resolve():
        raise UsageError("extract: --out must be another folder than the run's own")
    inputs.tell(progress)
    records = {unit: read_record(path)[1] for unit, path in old.units().items()}
    chosen = [c for c in select(inputs.categories, wanted) if c.index in records]
    first, *others = inputs.model.network.stages
    full = len(options.grid(first))
    stored = {
        unit: record.stages[0]
        for unit, record in records.items()
        if record.stages and len(record.stages[0].levels) == full
    }
    again = sum(len(options.grid(stage)) for stage in others)
    what = "targets" if inputs.aim else "categories"
    note = f"{len(chosen)} {what}: the {first} level from stored curves for {len(stored)}"
    for stage in others:
        note += f", then the {stage} stage again"
    progress.note(f"{note}, at most {again} forward passes each" if others else note)
    on = machine(options)
    recover(target, progress)
    run = create_run(target, inputs, options, on.device)
    with span("run", "extract"):
        _extract_all(run, inputs, options, on, chosen, progress, stored)
        means_kept(run, inputs, options, on, progress)
        finish(run, progress)
        return run

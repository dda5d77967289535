"""The verbs: what is named here is all that the command line calls to do its work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcore.api.run import Run, folder_of, wanted_of
from circuitcore.api.table import Table, records
from circuitcore.errors import UsageError, nearest
from circuitcore.inputs.datasets import Datasets
from circuitcore.inputs.image_files import Images
from circuitcore.inputs.images.opening import open_images
from circuitcore.inputs.models import Model
from circuitcore.inputs.read import IN_HAND, InHand, read_inputs
from circuitcore.machine.device import machine
from circuitcore.machine.state import undisturbed
from circuitcore.options import PRESETS, Options, options_of
from circuitcore.progress import Progress, Told, progress_of
from circuitcore.runs.folder import open_run as open_folder

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcore.analysis.comparison import Comparison
    from circuitcore.analysis.reproduction.document import Reproduction
    from circuitcore.extraction.planning.plan import Plan


def sweep(
    model: str | Model = "bundled",
    images: Any = "bundled",
    *,
    categories: Sequence[str | int] | str = (),
    out: str | Path | None = None,
    progress: Progress | Told | None = None,
    **options: Any,
) -> Run:
    """Score, sweep, extract and evaluate the circuits of the wanted categories (default: all).

    ``model``: as on the command line (``bundled``, ``tv:alexnet``, ...) or a `Model`.  ``images``:
    a folder in ImageNet's layout; ``{"train": data set, "val": data set}``, map-style, of (PIL
    image, label) with ``classes``, Hugging Face's, or lists of (path, label); or one data set, of
    which each category's first images score, the next ones extract and others test.
    ``categories``: names, folders or unit numbers.  ``out``: the run folder; done categories in it
    are not computed again.  ``progress``: called as ``progress(what, done, total, detail)``; in a
    notebook a bar is shown without one.  ``options``: those of the command line, under the same
    names; its ``--categories FILE`` is ``category_file``.  ``target``: ``"features.8:0-9"``, or a
    list of such, for circuits of units or directions in the place of categories, on any images.

    Raises UsageError, InputError, DeviceError and PartialError (some categories are done, calling
    again goes on) with the command line's messages.
    """
    chosen, given = asked(model, images, {**options, "out": out})
    if given.any and chosen.workers > 1:
        raise UsageError(
            f"workers={chosen.workers}: a worker process cannot load again what came in hand as an "
            "object: save the weights and use file:, give a folder of images, or workers=1"
        )
    from circuitcore.jobs.job import sweep as swept

    told = progress_of(progress)
    with undisturbed():
        return Run(swept(chosen, wanted_of(categories), told, given), given)


def plan(
    model: str | Model = "bundled",
    images: Any = "bundled",
    *,
    categories: Sequence[str | int] | str = (),
    probe: bool = True,
    exact: bool = False,
    target: str | Sequence[str] | None = None,
    progress: Progress | Told | None = None,
    **options: Any,
) -> Plan:
    """What `sweep` with the same arguments will cost; changes nothing.

    ``fpe`` and ``multiply_adds`` are of one category, ``memory_bytes``, ``disk_bytes`` and
    ``seconds`` (None without ``probe``, a second of timing) of the run.  ``exact``: score the
    categories and plan every level of each.  ``target``: a device that need not be here, such as
    ``h100``; the plan's ``target`` then has seconds by part, predicted from counts alone.  Names
    with a colon are targets of the sweep, as its own ``target``.  The model ``tv:alexnet-shapes``
    is AlexNet and ImageNet's proportions without either.
    """
    from circuitcore.extraction.planning.plan import plan as planned
    from circuitcore.extraction.planning.plan import target_machine
    from circuitcore.inputs.shapes import SHAPES, shapes_inputs
    from circuitcore.machine.target import target_of

    named = [target] if isinstance(target, str) else list(target or ())
    devices = [name for name in named if ":" not in name]
    if len(devices) > 1:
        raise UsageError(f"--target {devices[1]}: one device a plan, {devices[0]} is given too")
    aims = [name for name in named if ":" in name]
    chosen, given = asked(model, images, {**options, "target": aims or None})
    if devices:
        if exact:
            raise UsageError("--exact runs the fc stage on this machine: not with --target")
        there = target_of(devices[0])
        with undisturbed():
            inputs = shapes_inputs(chosen) if model == SHAPES else read_inputs(chosen, given)
            wanted, told = wanted_of(categories), progress_of(progress)
            on = target_machine(there, chosen)
            return planned(inputs, chosen, on, wanted, told, target=there)
    with undisturbed():
        told = progress_of(progress)
        inputs, on = read_inputs(chosen, given), machine(chosen)
        wanted = wanted_of(categories)
        found = planned(inputs, chosen, on, wanted, told, probe=probe, exact=exact)
        inputs.tell(told)  # of a run that can be: what cannot has one message
        return found


def score(
    model: str | Model, images: Any, category: str | int, **options: Any
) -> dict[str, Tensor]:
    """Scores of one category's relevant weights by layer, float32, in units of the activation.

    Shaped like the weights (of the last layer one row), or like the units of a coarser
    ``granularity``; before normalisation.  Raises InputError where a score is not finite.
    """
    from circuitcore.analysis.score_files import category_scores

    chosen, given = asked(model, images, options)
    with undisturbed():
        return category_scores(chosen, wanted_of(category)[0], given)


def scores(
    model: str | Model = "bundled",
    images: Any = "bundled",
    *,
    categories: Sequence[str | int] | str = (),
    out: str | Path | None = None,
    progress: Progress | Told | None = None,
    **options: Any,
) -> Table:
    """A row a category and layer about its scores; with ``out`` a file of them a category."""
    from circuitcore.analysis.score_files import score as scored

    chosen, given = asked(model, images, {**options, "out": out})
    with undisturbed():
        wanted, told = wanted_of(categories), progress_of(progress)
        return records(scored(chosen, wanted, chosen.out, told, given))


def stability(
    model: str | Model = "bundled",
    images: Any = "bundled",
    *,
    categories: Sequence[str | int] | str = (),
    progress: Progress | Told | None = None,
    **options: Any,
) -> Table:
    """Rank correlation of scores from k and from 2k scoring images, a row a category and stage."""
    from circuitcore.analysis.stability import stability as compared

    chosen, given = asked(model, images, options)
    with undisturbed():
        wanted, told = wanted_of(categories), progress_of(progress)
        return records(compared(chosen, wanted, told, given))


def compare(
    a: Run | str | Path, b: Run | str | Path, *, measure: str = "judge",
    plot: str | Path | None = None,
) -> Comparison:  # fmt: skip
    """Two runs beside each other, from their files: what `analysis.comparison` finds, B less A.

    Networks, seeds, scores, options may differ; categories are matched by name.  ``measure``: of
    CPR and CMD, ``csa`` in the place of the run's judge; ``plot``: an SVG of both runs' mean
    faithfulness curves to write.  Raises UsageError, InputError where one is no run.
    """
    from circuitcore.analysis.comparison import compare as compared

    with undisturbed():
        left, right = folder_of(a), folder_of(b)
        found = compared(left, right, measure)
        if plot is not None:
            from circuitcore.report.side_by_side import write_curves

            write_curves(Path(plot).expanduser(), left, right, found.measure)
    return found


def reproduce(
    which: str = "paper",
    model: str | Model = "bundled",
    images: Any = "bundled",
    *,
    categories: Sequence[str | int] | str = (),
    out: str | Path | None = None,
    progress: Progress | Told | None = None,
    **options: Any,
) -> Reproduction:
    """Published figures beside every reading of the text that they are from.

    ``which``: ``paper`` (Andrade & Konkle 2025, CCN) or ``vss`` (the authors' abstract of the same
    year).  The run folder is one of the preset of that name, with a page ``reproduction.html``; the
    same call goes on where it stopped.  Other arguments and errors as those of `sweep`; what the
    grid varies cannot be given.
    """
    from circuitcore.analysis.reproduction.grid import AXES, OPEN
    from circuitcore.jobs.reproduce import reproduce as reproduced
    from circuitcore.report.reproduction import write_page

    if which not in OPEN:
        raise UsageError(f"reproduce {which!r}: one of {', '.join(OPEN)}{nearest(which, OPEN)}")
    known = {"preset", "fc_threshold", "conv_threshold", *AXES}
    varied = sorted(known & {name for name, v in options.items() if v is not None})
    if varied:
        raise UsageError(f"reproduce: {varied[0]} is what the readings of {which} vary")
    if (options.get("workers") or 1) != 1:
        raise UsageError("reproduce: workers: it is one process")
    # readings share what is run in float32 alone: one of the two precisions, not both
    given_dtype = options.get("dtype") or "auto"
    options["dtype"] = "float32" if given_dtype == "auto" else given_dtype
    chosen, given = asked(model, images, {**options, "out": out, "preset": which})
    with undisturbed():
        found = reproduced(which, chosen, wanted_of(categories), progress_of(progress), given)
        write_page(found)
    return found


def categories(model: str | Model = "bundled", images: Any = "bundled", **options: Any) -> Table:
    """The categories that a sweep of these would find: output unit, name, folder."""
    chosen, given = asked(model, images, options)
    with undisturbed():
        found = read_inputs(chosen, given).categories
    return Table([{"index": c.index, "category": c.name, "folder": c.folder} for c in found])


def open_run(folder: str | Path, model: Model | None = None, images: Any = None) -> Run:
    """A run made before.  Raises InputError where ``folder`` is none.

    ``model`` and ``images``: again, where they came in hand; verbs that run a network check that
    they are those of the run.
    """
    run = open_folder(Path(folder).expanduser())
    if model is not None and not isinstance(model, Model):
        raise UsageError("model: Model.of(module, transform, categories), where it came in hand")
    source: Images | None = None
    if isinstance(images, str | Path):
        source = open_images(str(images), run.options().scoring_images)
    elif images is not None:
        source = Datasets(images, run.options().scoring_images)
    return Run(run, InHand(model, source))


def asked(model: str | Model, images: Any, options: dict[str, Any]) -> tuple[Options, InHand]:
    """Checked options of a call, and what came in hand.  Raises UsageError, InputError."""
    if not isinstance(model, str | Model):
        kind = type(model).__name__
        raise UsageError(
            f"model: a name as on the command line, or Model.of(module, transform, categories), "
            f"not {kind}"
        )
    values = {name: value for name, value in options.items() if value is not None}
    if "category_file" in values:
        values["categories"] = values.pop("category_file")
    named = isinstance(images, str | Path)
    if (preset := values.pop("preset", None)) is not None:
        if preset not in PRESETS:
            raise UsageError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
        values = {**PRESETS[preset], **values}
    if "out" in values:
        values["out"] = Path(values["out"]).expanduser()
    values["model"] = IN_HAND if isinstance(model, Model) else model
    values["images"] = str(images) if named else IN_HAND
    chosen = options_of(values)
    given = model if isinstance(model, Model) else None
    return chosen, InHand(given, None if named else Datasets(images, chosen.scoring_images))

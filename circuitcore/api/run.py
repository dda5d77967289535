"""A run: its circuits by category, and what can be asked of them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from numbers import Integral
from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcore.analysis import overlap as overlaps
from circuitcore.analysis.resampling.kept import WHOLE, mean_ceilings
from circuitcore.analysis.rows import flat, rows_of
from circuitcore.analysis.summary import document
from circuitcore.api.circuit import Circuit
from circuitcore.api.engine import engine_of
from circuitcore.api.table import ArrowRows, Lesions, Overlaps, Table, records
from circuitcore.errors import UsageError
from circuitcore.inputs.datasets import Datasets
from circuitcore.inputs.image_files import Images
from circuitcore.inputs.read import InHand
from circuitcore.machine.state import undisturbed
from circuitcore.progress import Progress, Told, progress_of
from circuitcore.records import Category, Found, Sweep, TargetSweep
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.folder import open_run as open_folder
from circuitcore.runs.tables import curve_rows, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from circuitcore.analysis.across.structure import Structure
    from circuitcore.analysis.giving.export import CompactFile, Exported
    from circuitcore.jobs.showing import Shown


SHOWN = ("category", "pruned", "kept_weights", "heldout_csa", "unpruned_heldout_csa", "csa_ratio",
         "csa_ratio_low", "csa_ratio_high")  # fmt: skip
TARGET_SHOWN = ("target", "pruned", "kept_weights", "extraction", "heldout", "heldout_low",
                "heldout_high", "random_heldout")  # fmt: skip


class Run(Mapping[str, Circuit]):
    """Circuits by category name (folder name where two share one), in unit order.

    ``run[category]`` takes a name, a folder or the number of an output unit.  Verbs that run the
    network raise InputError where model or images are not those of the run, or came in hand and
    were not given to `open_run` again.
    """

    def __init__(self, run: RunFolder, given: InHand) -> None:
        # the whole path: the calling program may change its working folder
        self._run, self._given = replace(run, folder=Path(abspath(run.folder))), given

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self._run.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run was made with: model, images, options, versions."""
        return self._run.manifest

    def _names(self) -> dict[str, int]:
        """What the finished categories are called here."""
        listed = self._run.manifest["categories"]
        called = [c["name"] for c in listed]
        done = self._run.units()
        return {
            (c["name"] if called.count(c["name"]) == 1 else c["folder"]): c["index"]
            for c in listed
            if c["index"] in done
        }

    def __getitem__(self, category: str | int) -> Circuit:
        """Raises KeyError for what is no category of the run, or is not done yet."""
        try:
            unit = self._run.unit_of(category)
        except UsageError as error:
            raise KeyError(str(error)) from None
        if not self._run.path(unit).exists():
            raise KeyError(f"{category!r} is not done yet: sweep it into this folder")
        return Circuit(self._run, unit, self._given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @property
    def document(self) -> Sweep | TargetSweep:
        """The whole document, as ``circuitcore sweep --format json`` prints it; read anew."""
        with undisturbed():
            found = self._run.records()
            return document(self._run, found, overlaps.table(self._run, found))

    def each_record(self) -> Iterator[Found]:
        """The document's categories (or targets) in unit order, each read when it is asked for."""
        return self._run.each_record()

    def to_pandas(self) -> Any:
        """A data frame with a row a category: what the command prints as CSV."""
        return self.table().to_pandas()

    def table(self) -> Table:
        """A row a category, or a target."""
        return Table(rows_of(self._run.records(), self._run.manifest))

    def images(self) -> Table:
        """A row an image: path, category, split (scoring, extraction, heldout), sha256."""
        return Table(read_rows(self.folder / "images.parquet"))

    def curves(self) -> Table:
        """A row a category, stage and level that was evaluated."""
        return Table(curve_rows(self._run.records()))

    def area(self, *, control: Run | str | Path | None = None, measure: str = "judge") -> Table:
        """CPR and CMD: means of faithfulness, and of its distance from 1, over kept fractions.

        A row a category and stage, then their means (``category`` empty), as `analysis.area`
        defines them; from the stored curves, no network is run.  ``control``: a run of the same
        categories with another criterion, such as ``random``; ``measure``: ``csa`` in the place of
        the run's judge.
        """
        from circuitcore.analysis.area import areas

        with undisturbed():
            beside = None if control is None else folder_of(control)
            return records(areas(self._run, beside, measure))

    def overlap(self, *, progress: Progress | Told | None = None) -> Overlaps:
        """A row a pair of circuits and layer, with the chance level of independent masks.

        Kept in the run folder as ``overlap.parquet``; made anew where circuits were added.
        """
        with undisturbed():
            told = progress_of(progress)
            pairs = overlaps.table(self._run, self._run.records(), told)
        layers = dict.fromkeys(["", *pairs["layer"].unique().to_pylist()])
        found = {layer: overlaps.matrix(pairs, layer) for layer in layers}
        names = found[""][0]
        return Overlaps(
            ArrowRows(pairs), names, {layer: (m, c) for layer, (_, m, c) in found.items()}
        )

    def controls(self, *, progress: Progress | Told | None = None, **engine: Any) -> Table:
        """Control circuits beside every circuit (`analysis.controls`), kept for the report.

        Those that are kept already, of the circuits that are there, are not made again.
        ``engine``: device, gpu, impl, memory, no_fallback.
        """
        from circuitcore.analysis.controls import controls

        with undisturbed():
            told = progress_of(progress)
            rows = controls(self.folder, told, self._given, **engine_of(engine))
        return records(rows)

    def control_means(self) -> Table:
        """Means of `controls` over categories, a row a kind; none before.

        ``difference``: of held-out CSA, circuit less control, with a bootstrap 95 % interval over
        categories.
        """
        from circuitcore.analysis.controls import CONTROLS, control_means
        from circuitcore.analysis.targets import target_control_means

        of_targets = self._run.of_targets
        file = self.folder / CONTROLS
        means = target_control_means(file) if of_targets else control_means(self.folder)
        return Table([flat(row) for row in means], means)

    @property
    def noise_ceiling(self) -> float | None:
        """Mean overlap of two circuits of one category, None before `stability`."""
        return mean_ceilings(self.folder).get(WHOLE)

    def lesion(
        self, *, categories: Sequence[str | int] | str = (),
        kinds: Sequence[str] | str = ("circuit", "private"), shared: int = 0,
        progress: Progress | Told | None = None, **engine: Any,
    ) -> Lesions:  # fmt: skip
        """The network without a circuit, or without its private weights: which categories survive?

        A row for each lesion and category as `analysis.lesions` defines them, beside a random
        lesion; kept in the run folder.  ``categories``: whose circuits are cut; all categories are
        judged.  ``shared``: how many other circuits may have a private weight.
        """
        from circuitcore.analysis.lesions import lesion, summarise

        some = [kinds] if isinstance(kinds, str) else list(kinds)
        with undisturbed():
            rows = lesion(
                self.folder, wanted_of(categories), progress_of(progress), self._given,
                kinds=some, shared=shared, **engine_of(engine),
            )  # fmt: skip
        return Lesions(records(rows), records(summarise(rows)))

    def stability(
        self, *, categories: Sequence[str | int] | str = (), resamples: int = 100, pool: int = 32,
        certify: int | None = None, progress: Progress | Told | None = None, **engine: Any,
    ) -> Table:  # fmt: skip
        """Circuits from scoring images drawn again: what stays, and how much they overlap.

        A row for each whole circuit (``layer`` empty) and each of its layers, as
        `analysis.resampling` defines them; kept in the run folder.  ``pool``: training images a
        category that each of the ``resamples`` draws from; ``certify``: images replaced.  What the
        threshold and the extraction images change is in `choices`.
        """
        from circuitcore.analysis.resampling.run import resample

        with undisturbed():
            rows = resample(
                self.folder, wanted_of(categories), progress_of(progress), self._given,
                resamples=resamples, pool=pool, certify=certify, **engine_of(engine),
            )  # fmt: skip
        return records(rows)

    def choices(self, *, categories: Sequence[str | int] | str = ()) -> Table:
        """How much of a circuit other thresholds, or other extraction images, would have kept.

        A row for each whole circuit (``stage`` empty) and each of its stages, as
        `analysis.resampling.choice` defines them; from the stored curves, no network is run.
        """
        from circuitcore.analysis.resampling.choice import choices

        options = self._run.options()
        units = [self._run.unit_of(each) for each in wanted_of(categories)]
        rows = [
            row
            for record in self._run.records()
            if isinstance(record, Category) and (not units or record.index in units)
            for row in choices(record, options, self._run.manifest)
        ]
        return records(rows)

    def structure(
        self, *, hierarchy: str | Path | None = None, confusions: bool = False,
        progress: Progress | Told | None = None, **engine: Any,
    ) -> Structure:  # fmt: skip
        """What the circuits share by depth and unit, and whether near categories share more.

        As `analysis.across.structure` defines it; kept for the report.  ``hierarchy``: a file of
        names and parents; ``confusions``: the unpruned network is run once on the run's images.
        """
        from circuitcore.analysis.across.structure import keep_structure, structure

        with undisturbed():
            found = structure(
                self.folder, progress_of(progress), self._given,
                hierarchy=None if hierarchy is None else Path(hierarchy).expanduser(),
                confusions=confusions, **engine_of(engine),
            )  # fmt: skip
            keep_structure(self._run, found)
        return found

    def evaluate(
        self, images: Any = None, *, progress: Progress | Told | None = None, **engine: Any
    ) -> Table:
        """Judge every circuit with its frozen bias on its held-out images, or on other ones.

        Beside it the unpruned network, a random mask of the same densities and the empty circuit,
        as `analysis.evaluation` defines them; on other images with refitted biases too.
        ``images``: a folder or data sets with the same categories, as `sweep` takes them.
        """
        from circuitcore.analysis.evaluation import evaluate

        other = images_in_hand(images, self._run) if images is not None else None
        with undisturbed():
            told = progress_of(progress)
            rows = evaluate(self.folder, other, told, self._given, **engine_of(engine))
        return records(rows)

    def extract(
        self,
        *,
        out: str | Path | None = None,
        categories: Any = (),
        progress: Progress | Told | None = None,
        **changes: Any,
    ) -> Run:
        """Choose circuits anew under another threshold, stop rule or reference; a run of its own.

        The first stage's level comes from the stored curves, the others are run again.  Raises
        UsageError where a change needs a whole new sweep.
        """
        from circuitcore.jobs.job import extract

        with undisturbed():
            place = None if out is None else Path(out)
            wanted = wanted_of(categories)
            told = progress_of(progress)
            found = extract(self.folder, changes, place, told, wanted, self._given)
        return Run(found, self._given)

    def export(
        self, category: str | int, out: str | Path | None = None, **options: Any
    ) -> Exported:
        """`Circuit.export` of one category.  Raises UsageError, InputError where there is none."""
        unit = self._run.unit_of(category)
        return Circuit(self._run, unit, self._given).export(out, **options)

    def write_compact(
        self, category: str | int, out: str | Path | None = None, **options: Any
    ) -> CompactFile:
        """`Circuit.write_compact` of one category.  Raises as `export` does."""
        unit = self._run.unit_of(category)
        return Circuit(self._run, unit, self._given).write_compact(out, **options)

    def show(
        self, *, categories: Sequence[str | int] | str = (), out: str | Path | None = None,
        top: int | None = None, image: str | int | None = None,
        progress: Progress | Told | None = None,
    ) -> list[Shown]:  # fmt: skip
        """Draw circuits, of all categories by default: `jobs.showing.show`.

        Each is given with its `Anatomy` (live and dead weights, units, what connects them), which
        the next report shows, and the file of its picture.
        """
        from circuitcore.jobs.showing import MOST_UNITS, show

        with undisturbed():
            return show(
                self.folder, wanted_of(categories), progress_of(progress), self._given,
                out=None if out is None else Path(out), top=MOST_UNITS if top is None else top,
                image=None if image is None else str(image),
            )  # fmt: skip

    def report(self, *, pages: bool = False, progress: Progress | Told | None = None) -> Path:
        """Write the report anew: one self-contained HTML file, whose path is returned.

        ``pages``: and a folder of pages beside it, one a category, with more of its images.
        """
        from circuitcore.jobs.job import report

        with undisturbed():
            return report(self._run, progress_of(progress), pages)

    def verify(
        self, *, sample: int = 1, repair: bool = False, progress: Progress | Told | None = None
    ) -> list[str]:
        """What is wrong with the run, one line each; empty if it is intact.

        ``sample``: of how many circuits the held-out accuracy is computed again, where model and
        images can be had; ``repair``: first set aside what is damaged and make anew what is
        derived.  As `jobs.verifying` defines it.
        """
        from circuitcore.jobs import verifying

        with undisturbed():
            told = progress_of(progress)
            if repair:
                return verifying.repair(self._run, told, self._given)
            return verifying.verify(self._run, told, self._given, sample=sample)

    def plot_curves(self, category: str | int, ax: Axes | None = None) -> Axes:
        """CSA against the kept fraction of the stages of one category."""
        from circuitcore.report.figures import draw_curves

        return draw_curves(_axes(ax), self[category].record)

    def plot_overlap(self, layer: str = "", ax: Axes | None = None) -> Axes:
        """Overlap of all pairs in the order of average-linkage clustering."""
        from circuitcore.report.figures import draw_overlap

        found = self.overlap()
        return draw_overlap(_axes(ax), found.names, found.matrix(layer))

    def plot_accuracy(self, ax: Axes | None = None) -> Axes:
        """Held-out CSA and hit rate of the circuits against the unpruned network's."""
        from circuitcore.report.figures import draw_accuracy

        if self._run.of_targets:
            raise UsageError("targets other than categories have no accuracy: plot_curves has them")
        found = [record for record in self._run.records() if isinstance(record, Category)]
        return draw_accuracy(_axes(ax), found)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same folder."""
        return isinstance(other, Run) and self.folder.resolve() == other.folder.resolve()

    def __hash__(self) -> int:
        return hash(self.folder.resolve())

    def __repr__(self) -> str:
        wanted = len(self._run.manifest["categories"])
        what = "targets" if self._run.of_targets else "categories"
        return f"Run {self.folder.name}: {len(self)} of {wanted} {what}"

    def _repr_html_(self) -> str:
        columns = TARGET_SHOWN if self._run.of_targets else SHOWN
        rows = [{name: row[name] for name in columns} for row in self.table()]
        return f"<p>{escape(repr(self))}</p>{Table(rows)._repr_html_()}"


def folder_of(run: Run | str | Path) -> RunFolder:
    """The folder of a run, or the one of this path.  Raises InputError where it is none."""
    return run._run if isinstance(run, Run) else open_folder(Path(run).expanduser())


def images_in_hand(images: Any, run: RunFolder) -> Images | str:
    """Images as they were given: a folder's path, or data sets split as the run's were."""
    if isinstance(images, str | Path):
        return str(images)
    return Datasets(images, run.options().scoring_images)


def wanted_of(categories: Any) -> list[str | int]:
    """Categories asked for: one alone or several names, folders or unit numbers; None is all."""
    if categories is None:
        return []
    some = [categories] if isinstance(categories, str | Integral) else categories
    return [int(each) if isinstance(each, Integral) else str(each) for each in some]


def _axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]

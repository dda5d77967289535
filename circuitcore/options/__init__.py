"""Every option of a run, stated once: its name, type, default, help, and what it changes.

The command line, the environment (``CIRCUITCORE_*``) and the config file (TOML) use these names,
and all of them are read from `Options`.  Imports nothing heavy, so that --help is quick.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from circuitcore.errors import OptionsError, nearest, spelled
from circuitcore.options.presets import PRESETS as PRESETS
from circuitcore.options.values import (
    Member,
    as_channels,
    as_criteria,
    as_levels,
    as_names,
    as_number,
    as_size,
    as_stages,
    as_targets,
    check_memory,
    check_pixels,
    converted,
    parse_levels,
    parse_stages,
    read_targets,
)

Whole = int | Literal["none"] | None
AtLeast0 = Annotated[int, Ge(0)]
AtLeast1 = Annotated[int, Ge(1)]
Fraction = Annotated[float, Gt(0), Le(1)]
Criterion = Literal[Member, "ensemble"]
# "numbers": part of every unit's key; "engine": how the same numbers are found, kept with the run;
# "call": where one call computes and where its results go, not kept
Changes = Literal["numbers", "engine", "call"]


def _option(
    default: Any,
    help: str,
    metavar: str = "TEXT",
    *,
    group: str,
    changes: Changes,
    words: str = "",
    short: str = "",
    read: Callable[[Any], Any] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Any:
    """A field of `Options`.

    ``words`` tell --help of a default that its value does not tell; ``read`` turns what was given
    into what its type accepts, ``check`` refuses a value of that type: both with a ValueError.
    """
    about = {"help": help, "metavar": metavar, "group": group, "changes": changes, "words": words}
    return dataclasses.field(
        default=default, metadata={**about, "short": short, "read": read, "check": check}
    )


_what = functools.partial(_option, group="What is swept", changes="numbers")
_method = functools.partial(_option, group="The method", changes="numbers")
_engine = functools.partial(_option, group="The engine", changes="engine")
_output = functools.partial(_option, group="Settings and output", changes="call")
_fraction_of = functools.partial(_method, metavar="FRACTION", words="--threshold", read=as_number)
_levels_of = functools.partial(_method, metavar="LEVELS", words="--levels", read=as_levels)
_own = "the weights' own"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one run, in the order of --help.

    Text is converted to each option's type.  Raises OptionsError listing all that does not fit.
    """

    model: str = _what(
        "bundled", "bundled, tv:NAME@WEIGHTS, timm:NAME or file:PATH.safetensors", "MODEL"
    )
    arch: str | None = _what(
        None, "architecture of a file: model, such as alexnet or timm:resnet18", "NAME"
    )
    images: str = _what(
        "bundled", "bundled; a folder with train/<category>/* and val/<category>/*, or with "
        "<category>/* alone; an index of path, label[, split] (.csv, .tsv, .parquet); tar files, "
        "WebDataset's too (shard-{000..011}.tar, or a folder of them); a Hugging Face data set on "
        "disk; for other targets any folder of images",
        "WHERE",
    )  # fmt: skip
    categories: Path | None = _what(
        None, "names of the output units in their order, one a line", "FILE"
    )
    target: tuple[str, ...] = _what(
        (), "instead of categories: LAYER:UNIT, :0-9 or :0,3,7, a convolution's channels or a "
        "Linear's units, before or after the ReLU by the module named; or LAYER:FILE, a direction "
        "(.npy, .safetensors); may be given again", "TARGET", words="none", read=as_targets,
    )  # fmt: skip
    pool_target: Literal["max", "mean", "centre"] = _what(
        "max", "a target channel's value over positions"
    )
    labels: Literal["checked", "as-given"] = _what(
        "checked", "stop where the unpruned network does not know the categories; as-given: go on, "
        "for control networks", changes="engine",
    )  # fmt: skip
    duplicates: Literal["refuse", "drop"] = _what(
        "refuse", "one image twice, by content; drop: the first stays, the next one is taken",
        changes="engine",
    )  # fmt: skip
    incomplete: Literal["refuse", "drop"] = _what(
        "refuse", "categories with too few images in train or val; drop: go on without them",
        changes="engine",
    )  # fmt: skip
    scoring_images: AtLeast1 = _what(4, "images a category that make the scores", "N")
    extraction_images: AtLeast1 = _what(20, "images a category that choose level and bias", "N",
        words="20; with --target 200 in all",
    )  # fmt: skip
    heldout_images: AtLeast1 = _what(30, "other images a category that judge the circuit", "N",
        words="30; with --target 300 in all",
    )  # fmt: skip
    resize: Whole = _what(
        None, "shorter side in pixels, or none", "PX", words=_own, check=check_pixels
    )
    crop: Whole = _what(
        None, "centre crop in pixels, or none", "PX", words=_own, check=check_pixels
    )
    mean: tuple[float, ...] | None = _what(
        None, "channel means taken off, such as 0.485,0.456,0.406", "M,M,M",
        words=_own, read=as_channels,
    )  # fmt: skip
    std: tuple[float, ...] | None = _what(
        None, "channel deviations divided by", "S,S,S", words=_own, read=as_channels
    )

    decoder: Literal["pillow", "torchcodec"] = _what(
        "pillow", "what decodes image files; torchcodec must be installed"
    )

    magnitude: Literal["position", "image", "set", "signed"] = _method(
        "position", "where the absolute value is taken"
    )
    granularity: Literal["weight", "kernel", "filter"] = _method("weight", "what is pruned as one")
    criterion: Criterion = _method(
        "actgrad", "what a score is made of; ig: activation times gradient along the path from the "
        "mean image; lrp: relevance, epsilon-rule in Linear, z+ rule in Conv2d; ensemble: the mean "
        "of ranks by several"
    )  # fmt: skip
    steps: AtLeast1 = _method(8, "points on the path of --criterion ig", "N")
    ensemble: str = _method(
        "actgrad,snip,ig", "criteria whose ranks --criterion ensemble takes the mean of",
        "NAME,...", read=as_criteria,
    )  # fmt: skip
    normalise: Literal["paper", "minmax", "none", "l1"] = _method(
        "paper",
        "scores of a layer before the joint ranking; paper: min-max for fc, none for conv",
    )
    spatial: Literal["sum", "mean"] = _method("sum", "positions are combined by")
    ties: Literal["weight", "snap"] = _method(
        "weight", "equal scores: smaller weight first, or move the level"
    )
    levels: str = _method(
        "32", "a count (geometric in the kept fraction), linear:COUNT, or pruned fractions "
        "0,0.5,0.9", "LEVELS", read=as_levels,
    )  # fmt: skip
    fc_levels: str | None = _levels_of(None, "the same for the fully connected stage")
    conv_levels: str | None = _levels_of(None, "the same for the convolutional stage")
    stages: str | None = _method(
        None, "layers pruned together, by name or glob, in the order in which they are: "
        "'fc=classifier.*;conv=features.*'", "NAME=LAYERS;...", words="fc, then conv",
        read=as_stages,
    )  # fmt: skip
    skip: tuple[str, ...] = _method(
        (), "a layer, or a glob of them, that stays whole; may be given again", "LAYER",
        words="none", read=as_names,
    )  # fmt: skip
    ablate: Literal["zero", "mean"] = _method(
        "zero", "what a pruned weight is replaced by; mean: what it carries on average over the "
        "scoring images of all categories, in the layer's bias",
    )  # fmt: skip
    stop: Literal["first-crossing", "sparsest-above"] = _method(
        "first-crossing", "which level is chosen"
    )
    threshold: Fraction = _method(
        0.9, "hits to keep (CSA with other biases), as a fraction of the reference", "FRACTION",
        read=as_number,
    )  # fmt: skip
    fc_threshold: Fraction | None = _fraction_of(None, "the same for the fully connected stage")
    conv_threshold: Fraction | None = _fraction_of(None, "the same for the convolutional stage")
    reference: Literal["unpruned-biased", "unpruned", "peak", "faithful"] = _method(
        "unpruned-biased", "what is 1 (faithful: the empty circuit is 0)"
    )
    false_alarm_norm: Literal["other", "target", "predicted"] = _method(
        "other", "false alarms are divided by the number of"
    )
    bias: Literal["matched", "exact", "none", "sgd"] = _method(
        "matched", "how the circuit's one bias is found; matched: the most hits at no more false "
        "alarms than the unpruned network's"
    )  # fmt: skip
    judge: Literal["correlation", "spearman", "error"] = _method(
        "correlation", "what a level of a --target is judged by, against the unpruned values"
    )
    random_masks: AtLeast0 = _method(
        1, "random masks of the circuit's own densities that it is held against", "N"
    )
    seed: AtLeast0 = _method(0, "for what is drawn at random", "N")

    screen: Literal["auto", "off", "on"] = _engine(
        "auto", "leave out images that cannot change a decision", changes="numbers"
    )
    device: str = _engine("auto", "auto, cpu or cuda:N", "DEVICE", changes="call")
    gpu: AtLeast0 | None = _engine(None, "short for --device cuda:N", "N", changes="call")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _engine(
        "auto", "numbers the network is swept in; auto: bfloat16 on a GPU that has it, float32 "
        "on a CPU, where it is no slower; the circuits are those of float32 with any",
        changes="numbers",
    )  # fmt: skip
    precision: Literal["ieee", "tf32"] = _engine(
        "ieee", "how a GPU multiplies float32 in the sweep; tf32: faster, with the same circuits; "
        "no effect on a CPU", changes="numbers",
    )  # fmt: skip
    impl: Literal["auto", "triton", "torch", "numba"] = _engine("auto", "which kernels")
    memory: int | None = _engine(
        None, "most memory to use, such as 8G", "SIZE", changes="call",
        words="what is free", read=as_size, check=check_memory,
    )  # fmt: skip
    no_fallback: bool = _engine(False, "fail where memory runs out rather than take smaller chunks")
    workers: AtLeast1 = _engine(
        1, "processes that share the categories, one a GPU in turn; without a GPU they share the "
        "cores", "N", changes="call",
    )  # fmt: skip
    max_bad: AtLeast0 = _engine(0, "unreadable images to put up with", "N")
    allow_pickle: bool = _engine(False, "read .pt files, which can run code")

    out: Path | None = _output(None, "the run folder", "RUN", short="-o")
    format: Literal["table", "json", "jsonl", "csv"] = _output("table", "how the result is printed")
    quiet: bool = _output(False, "no progress and no notes on stderr", short="-q")

    def __post_init__(self) -> None:
        problems: list[tuple[str, str, Any]] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is field.default:
                continue
            try:
                object.__setattr__(self, field.name, converted(field, value))
            except ValueError as error:
                problems += [(field.name, str(message), value) for message in error.args]
        problems = problems or [("", message, None) for message in self._together()]
        if problems:
            raise OptionsError(problems)

    def _together(self) -> Iterator[str]:
        """What is wrong with options that are right one by one."""
        if self.reference == "peak" and self.stop != "sparsest-above":
            yield "reference 'peak' needs --stop sparsest-above: the peak is known last"
        if self.reference == "peak" and self.screen == "on":
            yield "reference 'peak' needs every level: use --screen off"
        for name in STAGE_OPTIONS:
            stage, _, what = name.partition("_")
            if getattr(self, name) is not None and stage not in self.stage_names():
                yield (
                    f"{spelled(name)} belongs to the default stages: --stages names "
                    f"{', '.join(self.stage_names())}; give {spelled(what)}, for all of them"
                )
        for name, criterion in OF_CRITERION.items():
            given = getattr(self, name) != FIELDS[name].default
            if given and criterion not in self.criteria():
                yield f"{spelled(name)} belongs to --criterion {criterion}: give that with it"
        if self.gpu is not None and self.device not in ("auto", f"cuda:{self.gpu}"):
            yield f"--gpu {self.gpu} and --device {self.device} disagree: give one"
        if self.std is not None and any(s <= 0 for s in self.std):
            yield "--std: standard deviations are positive"
        if self.target and self.screen == "on":
            yield "--screen on: every image has its say in a --target's value, none can be left out"
        if self.target and self.dtype not in ("auto", "float32"):
            yield f"--dtype {self.dtype}: a --target's values are compared in float32"
        if self.target and self.precision != "ieee":
            yield f"--precision {self.precision}: a --target's values are compared in float32"
        try:
            read_targets(self.target)
        except ValueError as error:
            yield f"--target: {error}"

    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in the order in which they are pruned."""
        groups = parse_stages(self.stages) if self.stages else ()
        return tuple(group.name for group in groups) or DEFAULT_STAGES

    def criteria(self) -> tuple[str, ...]:
        """The criterion, and those that it is made of."""
        return (self.criterion, *self.members())

    def members(self) -> tuple[str, ...]:
        """The criteria of an ensemble; none of any other."""
        return tuple(self.ensemble.split(",")) if self.criterion == "ensemble" else ()

    def member(self, criterion: str) -> "Options":
        """The same with one of an ensemble's criteria alone."""
        gone = [name for name, own in OF_CRITERION.items() if own != criterion]
        changes: dict[str, Any] = {name: FIELDS[name].default for name in gone}
        return dataclasses.replace(self, **changes, criterion=criterion)  # type: ignore[arg-type]

    def scoring_passes(self) -> int:
        """Forward and backward passes that the scoring images go through."""
        own = {"ig": self.steps, "lrp": 2, "ensemble": 1}
        more = sum(own.get(name, 0) for name in self.members())
        return own.get(self.criterion, 1) + more

    def grid(self, stage: str) -> tuple[float, ...]:
        """Pruned fractions of one stage, from 0, increasing."""
        own = {"fc": self.fc_levels, "conv": self.conv_levels}.get(stage)
        return parse_levels(own or self.levels).fractions

    def stage_threshold(self, stage: str) -> float:
        """The stage's threshold, a fraction of the reference CSA."""
        own = {"fc": self.fc_threshold, "conv": self.conv_threshold}.get(stage)
        return self.threshold if own is None else own

    def method(self) -> dict[str, Any]:
        """What changes the numbers, in canonical form: part of every unit's key.

        Without what is in the key by other ways, and what came later where it is not asked for.
        """
        mine = self.applying()
        names = [name for name in changing("numbers") if name not in BESIDE | BY_STAGE]
        record = {name: _plain(getattr(self, name)) for name in names if name in mine}
        for stage in self.stage_names():
            record[f"{stage}_levels"] = list(self.grid(stage))
            record[f"{stage}_threshold"] = self.stage_threshold(stage)
        return record

    def applying(self) -> tuple[str, ...]:
        """Names of the options that mean anything here: of categories, or of other targets.

        Those of `LATER` where they are asked for.
        """
        other = {*(NOT_WITH_TARGET if self.target else ONLY_WITH_TARGET)}
        own = LATER - {*OF_CRITERION}
        other |= {name for name in own if getattr(self, name) == FIELDS[name].default}
        other |= {name for name, c in OF_CRITERION.items() if c not in self.criteria()}
        return tuple(name for name in NAMES if name not in other)

    def as_json(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The options that apply as JSON holds them, without those of ``exclude``."""
        return {n: _plain(getattr(self, n)) for n in self.applying() if n not in exclude}


NAMES = tuple(field.name for field in dataclasses.fields(Options))
# in the key by other ways: as hashes, as preprocessing, beside the method
BESIDE = {
    "model", "arch", "images", "categories", "resize", "crop", "mean", "std", "decoder", "screen",
    "dtype", "precision",
}  # fmt: skip
# of other targets than categories: what is meaningless, and why; what is theirs alone
NOT_WITH_TARGET = {
    "categories": "there are no categories",
    "bias": "a unit's value is compared with its own, not with other outputs: no shift matters",
    "false_alarm_norm": "there are no false alarms",
    "reference": "the unpruned network agrees with itself: 1",
}
ONLY_WITH_TARGET = ("target", "pool_target", "judge")
# all images together, where without labels there are no categories to count them by
TARGET_DEFAULTS = {"extraction_images": 200, "heldout_images": 300}
STAGE_OPTIONS = ("fc_levels", "conv_levels", "fc_threshold", "conv_threshold")
BY_STAGE = {"levels", "threshold", *STAGE_OPTIONS}
DEFAULT_STAGES = ("fc", "conv")
OF_CRITERION = {
    "steps": "ig",
    "ensemble": "ensemble",
}  # what means something with one criterion alone
# options that earlier runs' keys and manifests do not hold
LATER = {"stages", "skip", "ablate", *OF_CRITERION}
FIELDS = {field.name: field for field in dataclasses.fields(Options)}


def changing(what: Changes) -> tuple[str, ...]:
    """Names of the options that change this."""
    fields = dataclasses.fields(Options)
    return tuple(field.name for field in fields if field.metadata["changes"] == what)


def options_of(values: Mapping[str, Any]) -> Options:
    """Options by names that come from outside.

    Raises OptionsError for all that does not fit, with the nearest known name of an unknown one.
    """
    known = {name: value for name, value in values.items() if name in NAMES}
    problems = [
        (name, f"no such option{nearest(name, NAMES)}", value)
        for name, value in values.items()
        if name not in known
    ]
    if known.get("target"):
        problems += [
            (name, f"not with --target: {why}", known.pop(name))
            for name, why in NOT_WITH_TARGET.items()
            if name in known
        ]
        known = {**TARGET_DEFAULTS, **known}
    else:
        problems += [
            (name, "only with --target", known.pop(name))
            for name in ONLY_WITH_TARGET[1:]
            if name in known
        ]
    try:
        options = Options(**known)
    except OptionsError as error:
        raise OptionsError(problems + error.problems) from None
    if problems:
        raise OptionsError(problems)
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value

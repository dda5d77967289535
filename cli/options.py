"""The options of the command line: one table, shared by every verb that takes them.

Values stay text here and are checked by ``circuitcore.options``, so that a flag, a line of the
config file and an environment variable mean the same and fail alike.  Nothing heavy is imported;
a test holds this table against ``circuitcore.options.Options``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True)
class Flag:
    """One option: its field name, its group in --help, what it means, and its default in words."""

    name: str
    group: str
    help: str
    default: str = ""
    metavar: str = "TEXT"
    choices: tuple[str, ...] = ()
    short: str = ""
    switch: bool = False

    @property
    def spelled(self) -> str:
        """The flag as typed."""
        return "--" + self.name.replace("_", "-")

    def parameter(self) -> inspect.Parameter:
        """The keyword-only parameter that typer turns into this option; unset is None."""
        shown = f"{self.help}  [{self.default}]" if self.default else self.help
        declared = [self.spelled, *([self.short] if self.short else [])]
        option = typer.Option(
            None,
            *declared,
            metavar=None if self.switch else "|".join(self.choices) or self.metavar,
            help=shown,
            show_default=False,
            rich_help_panel=self.group,
        )
        kind = bool if self.switch else str
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None
        )


WHAT = "What is swept"
METHOD = "The method"
ENGINE = "The engine"
WHERE = "Settings and output"

FLAGS: tuple[Flag, ...] = (
    Flag("model", WHAT, "bundled, tv:NAME@WEIGHTS, timm:NAME or file:PATH.safetensors",
         "bundled", "MODEL"),
    Flag("arch", WHAT, "torchvision architecture of a file: model, such as alexnet", "", "NAME"),
    Flag("images", WHAT, "bundled, or a folder with train/<category>/* and val/<category>/*",
         "bundled", "DIR"),
    Flag("categories", WHAT, "names of the output units in their order, one a line", "", "FILE"),
    Flag("scoring_images", WHAT, "images a category that make the scores", "4", "N"),
    Flag("extraction_images", WHAT, "images a category that choose level and bias", "20", "N"),
    Flag("heldout_images", WHAT, "other images a category that judge the circuit", "30", "N"),
    Flag("resize", WHAT, "shorter side in pixels, or none", "the weights' own", "PX"),
    Flag("crop", WHAT, "centre crop in pixels, or none", "the weights' own", "PX"),
    Flag("mean", WHAT, "channel means taken off, such as 0.485,0.456,0.406",
         "the weights' own", "M,M,M"),
    Flag("std", WHAT, "channel deviations divided by", "the weights' own", "S,S,S"),
    Flag("magnitude", METHOD, "where the absolute value is taken", "position",
         choices=("position", "image", "set", "signed")),
    Flag("granularity", METHOD, "what is pruned as one", "weight",
         choices=("weight", "kernel", "filter")),
    Flag("criterion", METHOD, "what a score is made of", "actgrad",
         choices=("actgrad", "snip", "weight-magnitude", "random")),
    Flag("normalise", METHOD, "scores of a layer before the joint ranking; paper: min-max for fc, "
         "none for conv", "paper", choices=("paper", "minmax", "none", "l1")),
    Flag("spatial", METHOD, "positions are combined by", "sum", choices=("sum", "mean")),
    Flag("ties", METHOD, "equal scores: smaller weight first, or move the level", "weight",
         choices=("weight", "snap")),
    Flag("levels", METHOD, "a count (geometric in the kept fraction), linear:COUNT, or pruned "
         "fractions 0,0.5,0.9", "32", "LEVELS"),
    Flag("fc_levels", METHOD, "the same for the fully connected stage", "--levels", "LEVELS"),
    Flag("conv_levels", METHOD, "the same for the convolutional stage", "--levels", "LEVELS"),
    Flag("stop", METHOD, "which level is chosen", "first-crossing",
         choices=("first-crossing", "sparsest-above")),
    Flag("threshold", METHOD, "CSA to keep, as a fraction of the reference", "0.9", "FRACTION"),
    Flag("fc_threshold", METHOD, "the same for the fully connected stage", "--threshold",
         "FRACTION"),
    Flag("conv_threshold", METHOD, "the same for the convolutional stage", "--threshold",
         "FRACTION"),
    Flag("reference", METHOD, "the CSA that is 1", "unpruned-biased",
         choices=("unpruned-biased", "unpruned", "peak")),
    Flag("false_alarm_norm", METHOD, "false alarms are divided by the number of", "target",
         choices=("target", "other", "predicted")),
    Flag("bias", METHOD, "how the circuit's one bias is found", "exact",
         choices=("exact", "none", "sgd")),
    Flag("seed", METHOD, "for what is drawn at random", "0", "N"),
    Flag("screen", ENGINE, "leave out images that cannot change a decision", "auto",
         choices=("auto", "off", "on")),
    Flag("device", ENGINE, "auto, cpu or cuda:N", "auto", "DEVICE"),
    Flag("gpu", ENGINE, "short for --device cuda:N", "", "N"),
    Flag("dtype", ENGINE, "numbers the network runs in", "auto",
         choices=("auto", "float32", "bfloat16", "float16")),
    Flag("impl", ENGINE, "which kernels", "auto", choices=("auto", "triton", "torch", "numba")),
    Flag("memory", ENGINE, "most memory to use, such as 8G", "what is free", "SIZE"),
    Flag("no_fallback", ENGINE, "fail where memory runs out rather than take smaller chunks",
         switch=True),
    Flag("workers", ENGINE, "processes that share the categories, one a GPU in turn; without a "
         "GPU they share the cores", "1", "N"),
    Flag("max_bad", ENGINE, "unreadable images to put up with", "0", "N"),
    Flag("allow_pickle", ENGINE, "read .pt files, which can run code", switch=True),
    Flag("preset", WHERE, "a named set of options", "",
         choices=("paper", "paper-literal", "vss", "hamblin")),
    Flag("config", WHERE, "a TOML file of these options, with underscores", "", "FILE"),
    Flag("print_config", WHERE, "print the options as a config file and stop", switch=True),
    Flag("out", WHERE, "the run folder", "", "RUN", short="-o"),
    Flag("format", WHERE, "how the result is printed", "table",
         choices=("table", "json", "jsonl", "csv")),
    Flag("quiet", WHERE, "no progress and no notes on stderr", switch=True, short="-q"),
)  # fmt: skip
BY_NAME = {flag.name: flag for flag in FLAGS}
ALL = tuple(BY_NAME)
OUTPUT = ("format", "quiet")
ENGINE_ONLY = ("device", "gpu", "impl", "memory", "no_fallback")
RECHOOSE = ("stop", "threshold", "fc_threshold", "conv_threshold", "reference", *ENGINE_ONLY)
NOT_FIELDS = ("preset", "config", "print_config")


@dataclass(frozen=True)
class Given:
    """The flags the user typed, by field name; what was not typed is not in it."""

    flags: dict[str, Any]

    def options(self) -> Any:
        """`circuitcore.options.Options` of flags, environment, config file and preset.

        Prints them and exits 0 where --print-config was given; raises UsageError for what does
        not fit.
        """
        from pathlib import Path

        from circuitcore.options import as_toml, parse_levels, resolve

        flags = {k: v for k, v in self.flags.items() if k not in NOT_FIELDS}
        config = self.flags.get("config")
        options = resolve(
            flags, config=Path(config) if config else None, preset=self.flags.get("preset")
        )
        if self.flags.get("print_config"):
            typer.echo(as_toml(options), nl=False)
            raise SystemExit(0)
        for name in ("levels", "fc_levels", "conv_levels"):
            text = getattr(options, name)
            note = parse_levels(text).note if text else ""
            if note and not options.quiet:
                typer.echo(f"--{name.replace('_', '-')}: {note}", err=True)
        return options

    def changes(self, run: Any) -> dict[str, Any]:
        """What the flags change in a run's own options, checked together with them.

        Raises UsageError for what does not fit, InputError where ``run`` is no run folder.
        """
        from circuitcore.options import resolve
        from circuitcore.runs.folder import open_run

        flags = {k: v for k, v in self.flags.items() if k not in ("out", *OUTPUT)}
        merged = resolve({**open_run(run).manifest["options"], **flags}, environment={})
        return {name: getattr(merged, name) for name in flags}

    @property
    def format(self) -> str:
        """``--format`` of verbs that take no other options; UsageError for an unknown one."""
        from circuitcore.errors import UsageError, nearest

        chosen = self.flags.get("format") or "table"
        known = BY_NAME["format"].choices
        if chosen not in known:
            raise UsageError(
                f"--format {chosen}: one of {', '.join(known)}{nearest(chosen, known)}"
            )
        return str(chosen)

    @property
    def quiet(self) -> bool:
        """``--quiet``."""
        return bool(self.flags.get("quiet"))


def takes(names: Iterable[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the options ``names``; it receives the typed ones as its parameter ``given``."""

    def wrap(verb: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(verb, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "given"]
        shared = [BY_NAME[name].parameter() for name in names]

        @functools.wraps(verb)
        def called(**values: Any) -> Any:
            flags = {p.name: values.pop(p.name) for p in shared}
            given = Given({name: v for name, v in flags.items() if v is not None})
            return verb(given=given, **values)

        called.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        return called

    return wrap

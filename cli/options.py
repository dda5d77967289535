"""The flags of the command line, made from `Options` and shared by every verb that takes them.

Values stay text here and are checked by ``circuitcore.options``, so that a flag, a line of the
config file and an environment variable mean the same and fail alike.  Nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from circuitcore.errors import spelled
from circuitcore.options import PRESETS, Options


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
    many: bool = False

    @property
    def spelled(self) -> str:
        """The flag as typed."""
        return spelled(self.name)

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
        kind: Any = bool if self.switch else list[str] if self.many else str
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None
        )


def _flag(field: dataclasses.Field[Any]) -> Flag:
    """The flag of one option."""
    about, switch = field.metadata, field.type is bool
    told = "" if field.default in (None, ()) or switch else str(field.default)
    return Flag(
        field.name,
        about["group"],
        about["help"],
        about["words"] or told,
        about["metavar"],
        get_args(field.type) if get_origin(field.type) is Literal else (),
        about["short"],
        switch,
        field.default == (),
    )


def _flags() -> Iterator[Flag]:
    """Those of `Options` in their order, and at the head of the last group three that make them."""
    fields = [_flag(field) for field in dataclasses.fields(Options)]
    last = fields[-1].group
    yield from (flag for flag in fields if flag.group != last)
    yield Flag("preset", last, "a named set of options", choices=tuple(PRESETS))
    yield Flag("config", last, "a TOML file of these options, with underscores", metavar="FILE")
    yield Flag("print_config", last, "print the options as a config file and stop", switch=True)
    yield from (flag for flag in fields if flag.group == last)


FLAGS = tuple(_flags())
BY_NAME = {flag.name: flag for flag in FLAGS}
ALL = tuple(BY_NAME)
OUTPUT = ("format", "quiet")
ENGINE_ONLY = ("device", "gpu", "impl", "memory", "no_fallback")
RECHOOSE = ("stop", "threshold", "fc_threshold", "conv_threshold", "reference", *ENGINE_ONLY)
NOT_FIELDS = ("preset", "config", "print_config")
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]


@dataclass(frozen=True)
class Given:
    """The flags the user typed, by field name; what was not typed is not in it."""

    flags: dict[str, Any]

    def options(self) -> Options:
        """`Options` of flags, environment, config file and preset.

        Prints them and exits 0 where --print-config was given; raises UsageError for what does
        not fit.
        """
        from circuitcore.cli.config import as_toml, resolve
        from circuitcore.options.values import parse_levels

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
                typer.echo(f"{spelled(name)}: {note}", err=True)
        return options

    def call(self) -> dict[str, Any]:
        """`options` as arguments of the Python API's functions."""
        options = self.options()
        given = {name: getattr(options, name) for name in options.applying()}
        given["category_file"] = given.pop("categories", None)
        return given

    def but(self, **flags: Any) -> Given:
        """The same with other flags; those that are None or empty not given."""
        merged = {**self.flags, **flags}
        return Given({name: value for name, value in merged.items() if value not in (None, [])})

    def changes(self, run: Any) -> dict[str, Any]:
        """What the flags change in a run's own options, checked together with them.

        Raises UsageError for what does not fit, InputError where ``run`` is no run folder.
        """
        from circuitcore.cli.config import resolve
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
            given = Given({}).but(**flags)
            return verb(given=given, **values)

        called.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        return called

    return wrap

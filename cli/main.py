"""The ``circuitcore`` command: its verbs, and what becomes of an error.

Exit codes: 0 done, 1 a bug of circuitcore, 2 usage, 3 bad input, 4 partly done, 5 no such device or
out of memory, 130 interrupted, 141 the reader of stdout went away, 143 terminated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from circuitcore import __version__
from circuitcore.cli import giving, machine, method, reproduced, science
from circuitcore.cli.drawn.verbs import VERBS as DRAWN
from circuitcore.cli.terminal.examples import EXAMPLES
from circuitcore.errors import BUG, INTERRUPTED, nearest, said_of
from circuitcore.machine.process import say, settle, settled

USAGE, BROKEN_PIPE = 2, 141
# both stand in front of typer's own click or the click it was built on
ClickUsageError: Any = typer.BadParameter.__mro__[1]


class Sections(TyperCommand):
    """A verb whose --help lists its options in sections, without the cost of importing rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record: Any
            if parameter.param_type_name == "argument":
                said = getattr(parameter, "help", "")
                record, own = (parameter.metavar or parameter.name, said), "Arguments"
            else:
                record, own = parameter.get_help_record(ctx), "Options"
            if record is not None:
                group = getattr(parameter, "rich_help_panel", None) or own
                sections.setdefault(group, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the verb's examples."""
        with formatter.section("Examples"):
            for command, does in EXAMPLES.get(self.name or "", ()):
                formatter.write(f"  {command}\n      {does}\n")


SHELL_FLAGS = ("--show-completion", "--install-completion")


class Verbs(TyperGroup):
    """All verbs; a mistyped one is told the nearest (in the same words as everything else)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A flag of completion without a shell's name is of the user's own shell."""
        for place, word in enumerate(args):
            if word in SHELL_FLAGS and (args[place + 1 :] or ["-"])[0].startswith("-"):
                args = [*args[:place], f"{word}=auto", *args[place + 1 :]]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb of these arguments; a usage error naming the nearest if there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            verbs = self.list_commands(ctx)
            if name in ("help", "version"):
                of = f" {args[1]}" if name == "help" and args[1:] and args[1] in verbs else ""
                ctx.fail(f"no command {name!r}: it is circuitcore{of} --{name}")
            ctx.fail(f"no command {name!r}{nearest(name, verbs)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs,
    name="circuitcore",
    help="The sparse circuit inside a convolutional network that computes each category.",
    epilog="Start with: circuitcore sweep   (the bundled example, about a minute)",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,  # its options alone make typer import pydantic for every --help
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
PASSES_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
for verb in (
    *method.VERBS,
    *giving.VERBS,
    *DRAWN,
    *science.VERBS,
    *reproduced.VERBS,
    *machine.VERBS,
):
    others = PASSES_ON if getattr(verb, "passes_on", False) else {}
    app.command(name=verb.__name__, cls=Sections, context_settings={**HELP, **others})(verb)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"circuitcore {__version__}")
        raise typer.Exit(0)


def _show_completion(shell: str | None) -> None:
    if shell:
        from circuitcore.cli.terminal.completion import SCRIPTS, shell_of

        typer.echo(SCRIPTS[shell_of(shell)], nl=False)
        raise typer.Exit(0)


def _install_completion(shell: str | None) -> None:
    if shell:
        from circuitcore.cli.terminal.completion import install, shell_of

        typer.echo(install(shell_of(shell)), nl=False)
        raise typer.Exit(0)


@app.callback(invoke_without_command=False)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", is_eager=True, callback=_version
        ),
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[bash|zsh|fish]", help="Complete verbs, options, runs and categories by TAB.",
            is_eager=True, callback=_install_completion, show_default=False,
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[bash|zsh|fish]", help="Print the script that does it, and stop.",
            is_eager=True, callback=_show_completion, show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """The sparse circuit inside a convolutional network that computes each category."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry: run a verb, or answer a shell that completes; exit with its code."""
    if shell := os.environ.get("_CIRCUITCORE_COMPLETE"):
        from circuitcore.cli.terminal.completion import complete

        sys.exit(complete(shell, typer.main.get_command(app), sys.argv[1:]))
    settle()
    code = run(sys.argv[1:] if arguments is None else list(arguments))
    code = settled(code)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_gone()
    except OSError as error:
        _reader_gone()
        code = code or _failed(error)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a verb; the exit code of what happened, said on stderr in one message."""
    try:
        command: Any = typer.main.get_command(app)
        name = "circuitcore"
        if arguments and arguments[0] in command.commands:
            # straight to the verb: typer imports pydantic to read the root's own options
            command, name = command.commands[arguments[0]], f"{name} {arguments[0]}"
            arguments = arguments[1:]
        done = command.main(arguments, prog_name=name, standalone_mode=False)
        if done == INTERRUPTED:  # typer's way to say so
            raise KeyboardInterrupt
        return done if isinstance(done, int) else 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # which click ends with a code of its own
            return _reader_gone()
        return stop.code if isinstance(stop.code, int) else BUG
    except (KeyboardInterrupt, typer.Abort):
        return _failed(KeyboardInterrupt())
    except ClickUsageError as error:
        return _usage(error)
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:
        return _failed(error)


def _say(message: str, code: int) -> int:
    say(message)
    return code


def _usage(error: Any) -> int:
    """A usage error of click's, with the nearest option where one was mistyped."""
    context = error.ctx
    path = context.command_path if context else "circuitcore"
    message = error.format_message()
    if not message.strip() or type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help() if context else message, err=True)
        return USAGE
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        spelled = [o for p in context.command.get_params(context) for o in p.opts if o[:2] == "--"]
        message = f"no option {option}{nearest(str(option), spelled)}"
    message = message.replace("Value error, ", "").replace("Input should be", "should be")
    message = message.replace("Got unexpected extra argument(s)", "takes no further argument:")
    message = message[:1].lower() + message[1:].rstrip(".")
    return _say(f"error: {message}\n'{path} --help' lists what there is", USAGE)


def _failed(error: BaseException) -> int:
    """What ended the verb, in one message; a bug of ours with its traceback."""
    code, message = said_of(error)
    if code == BUG:
        import traceback

        traceback.print_exception(error)
        message = message.replace("circuitcore;", f"circuitcore {__version__};")
    return _say(message, code)


def _reader_gone() -> int:
    """Nothing more can be written; keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    main()

"""The pages of commands and options, from the tables that the command line is made of."""

from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import typer

from circuitcore.cli.main import app
from circuitcore.cli.options import BY_NAME, FLAGS, NOT_FIELDS, Flag
from circuitcore.options import FIELDS, PRESETS

CHANGES = {
    "numbers": "The numbers: part of the key of every circuit, so another value is another run.",
    "engine": "How the same numbers are found; kept with the run, not part of a circuit's key.",
    "call": "Where this one call computes, or where its results go; not kept.",
}
OPTIONS_HEAD = """# Options

*This page is made from the code's one table of options (`circuitcore/options/__init__.py`).*

An option has one name everywhere. `--false-alarm-norm target` on the command line is
`CIRCUITCORE_FALSE_ALARM_NORM=target` in the environment, `false_alarm_norm = "target"` in a config
file (TOML), and `false_alarm_norm="target"` as an argument of the Python functions. A flag wins
over the environment, the environment over the config file, the file over a preset, the preset over
the default; `--print-config` shows the outcome. An unknown name is an error that
names the nearest one.

What the options of the method mean, with formulas: [the method](../method.md).
"""
COMMANDS_HEAD = """# Commands

*This page is made from the command line itself (`circuitcore COMMAND --help` says the same).*

The result goes to stdout and nothing else does; progress and messages go to stderr. What exit codes
mean: [exit codes](../runs.md#exit-codes).
"""


def pages() -> dict[str, str]:
    """Markdown by place on the site."""
    return {
        "reference/options.md": "\n".join(_options()),
        "reference/commands.md": "\n".join(_commands()),
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _options() -> Iterator[str]:
    yield OPTIONS_HEAD
    groups = list(dict.fromkeys(flag.group for flag in FLAGS))
    for group in groups:
        mine = [flag for flag in FLAGS if flag.group == group]
        yield f"## {group}\n\n| option | default | |\n|---|---|---|"
        for flag in mine:
            default = f"`{flag.default}`" if flag.default else "–"
            link = f"[`{flag.spelled}`](#{_anchor(flag.name)})"
            yield f"| {link} | {default} | {_cell(flag.help)} |"
        yield ""
        for flag in mine:
            yield from _option(flag)
    yield from _presets()


def _option(flag: Flag) -> Iterator[str]:
    value = "" if flag.switch else " " + ("|".join(flag.choices) or flag.metavar)
    short = f"`{flag.short}`, " if flag.short else ""
    yield f"### {flag.spelled} {{ #{_anchor(flag.name)} }}\n"
    yield f"{short}`{flag.spelled}{value}`\n"
    yield f"{_cell(flag.help)}.\n"
    if flag.choices:
        yield f"- Values: {' · '.join(f'`{choice}`' for choice in flag.choices)}"
    if flag.many:
        yield "- May be given again; a list in a config file and in Python."
    yield f"- Default: {f'`{flag.default}`' if flag.default else 'none'}"
    if flag.name in NOT_FIELDS:
        yield ""
        return
    yield f"- Changes: {CHANGES[FIELDS[flag.name].metadata['changes']]}"
    python = "category_file" if flag.name == "categories" else flag.name
    yield f"- Environment `CIRCUITCORE_{flag.name.upper()}`, config file `{flag.name}`, Python "
    yield f"  `{python}=`\n"


def _presets() -> Iterator[str]:
    yield "## Presets\n\nA preset is a named set of options; what is given beside it wins."
    yield "What each is for: [the method](../method.md#presets).\n\n| preset | sets |\n|---|---|"
    for name, values in PRESETS.items():
        sets = ", ".join(f"`--{_anchor(option)} {value}`" for option, value in values.items())
        yield f"| `{name}` | {sets} |"


def _commands() -> Iterator[str]:
    yield COMMANDS_HEAD
    yield "| command | does |\n|---|---|"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        first = (command.help or "").split("\n")[0]
        yield f"| [`{name}`](#{name}) | {_cell(first)} |"
    yield ""
    for name, command in commands.items():
        yield from _command(name, command)


def _command(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=f"circuitcore {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n\n```text\ncircuitcore {name} {usage}\n```\n"
    yield f"{_cell(command.help or '')}\n"
    own, shared = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            said = getattr(parameter, "help", "") or ""
            own.append((parameter.metavar or parameter.name, said))
        elif _is_shared(parameter):
            shared.append(BY_NAME[parameter.name])
        else:
            own.append(parameter.get_help_record(context))
    if own:
        yield "| argument or option | |\n|---|---|"
        yield from (f"| `{head}` | {_cell(said)} |" for head, said in own)
        yield ""
    if len(shared) > len(FLAGS) // 2:
        left = [flag for flag in FLAGS if flag not in shared]
        but = "".join(f" but {_link(flag)}" for flag in left)
        yield f"And every option of [the table of options](options.md){but}.\n"
    elif shared:
        yield f"And of [the table of options](options.md): {', '.join(map(_link, shared))}.\n"
    closing = context.make_formatter()
    command.format_epilog(context, closing)
    if told := dedent(closing.getvalue().partition("Examples:\n")[2]).strip():
        yield f"```text\n{told}\n```\n"


def _link(flag: Flag) -> str:
    return f"[`{flag.spelled}`](options.md#{_anchor(flag.name)})"


def _is_shared(parameter: Any) -> bool:
    """Whether it is an option of the table, not one that a verb has under the same name."""
    flag = BY_NAME.get(parameter.name)
    return flag is not None and parameter.help == flag.parameter().default.help

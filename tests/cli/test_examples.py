"""The examples at the foot of every --help: two a verb, that fit a line, and that work."""

import shlex
import shutil

import pytest
import typer
from command import call

from circuitcore.cli.config import resolve
from circuitcore.cli.main import app
from circuitcore.cli.options import FLAGS, NOT_FIELDS
from circuitcore.cli.terminal.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands
# what has no place in a quick test: a GPU, other images, minutes, or a run of other levels
PARSED_ONLY = {
    "sweep", "reproduce", "kernels", "tune", "bench", "profile", "worker runs/first --shard 0/4",
    "plan --model", "structure", "evaluate runs/first --images", "launch runs/first --cluster",
    "watch runs",
}  # fmt: skip


def arguments(command):
    """What the shell would hand to the program, without what it does with its output."""
    command = command.removeprefix('open "$(').removesuffix(')"').partition(" > ")[0]
    program, *words = shlex.split(command)
    assert program == "circuitcore"
    return words


EVERY = [(verb, command) for verb, some in EXAMPLES.items() for command, _ in some]
QUICK = [
    command
    for _, command in EVERY
    if not any(command.removeprefix("circuitcore ").startswith(each) for each in PARSED_ONLY)
]


def test_every_verb_has_two():
    assert EXAMPLES.keys() == COMMANDS.keys()
    for verb, some in EXAMPLES.items():
        assert len({command for command, _ in some}) == 2, verb


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("verb", ["", *COMMANDS])
def test_help_fits_80_columns_and_ends_with_them(verb, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    said = call(*([verb] if verb else []), "--help").stdout
    assert max(map(len, said.splitlines())) <= 80
    if verb:
        examples = said.partition("\nExamples:\n")[2].splitlines()
        assert [line.strip() for line in examples[::2]] == [c for c, _ in EXAMPLES[verb]]
    else:
        assert "..." not in said.partition("Commands:")[2]  # no verb's line is cut


@pytest.mark.parametrize(("verb", "command"), EVERY)
def test_they_are_parsed_and_their_options_are_right(verb, command):
    first, *words = arguments(command)
    assert first == verb
    parsed = COMMANDS[verb].make_context(verb, words).params
    if "print_config" in parsed:
        names = {flag.name for flag in FLAGS} - {*NOT_FIELDS}
        flags = {k: v for k, v in parsed.items() if k in names and v not in (None, [])}
        if verb == "plan":
            flags.pop("target", None)  # a device
        resolve(flags, environment={}, preset=parsed.get("preset"))


@pytest.fixture(scope="module")
def place(small, tmp_path_factory):
    """A working folder with the run that the examples speak of, at few levels."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(small.folder, root / "runs" / "first")
    return root


def test_those_that_are_quick_run(place, monkeypatch):
    """In their order: one leaves what another compares."""
    monkeypatch.chdir(place)
    assert len(QUICK) >= 25
    for command in QUICK:
        assert call(*arguments(command)).stdout, command
    assert (place / "runs" / "lower" / "report.html").exists()
    assert (place / "bag.safetensors").exists() and (place / "curves.svg").exists()
    assert len(list((place / "scores").iterdir())) == 1


@pytest.mark.slow
def test_those_that_take_minutes_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in ("sweep", "plan", "structure", "reproduce", "worker"):
        for command, _ in EXAMPLES[verb]:
            if "imagenet" not in command:
                assert call(*arguments(command)).stdout, command

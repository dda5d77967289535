"""Completion: what may come next, and that real shells put it on the line as it must be typed."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from circuitcore.bundled import CATEGORIES
from circuitcore.cli.main import app, run
from circuitcore.cli.terminal import candidates, completion
from circuitcore.cli.terminal.completion import read_line
from circuitcore.errors import UsageError

COMMANDS = typer.main.get_command(app)


def values(*words):
    return [c.value for c in candidates.answer(COMMANDS, words).words]


@pytest.fixture
def here(small, tmp_path, monkeypatch):
    """A working folder with a run of Trouser and Bag, and one that is none."""
    shutil.copytree(small.folder, tmp_path / "runs" / "first")
    (tmp_path / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verbs_and_options():
    assert values("ex") == ["extract", "export"]
    assert values("--inst") == ["--install-completion"]
    assert {"--threshold", "--out", "--help"} <= set(values("sweep", "--"))
    assert "--threshold" not in values("sweep", "--threshold", "0.8", "--")
    assert "--target" in values("sweep", "--target", "features.8:0", "--")  # may be given again
    assert values("sweeep", "") == [] == values("export", "a", "b", "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sweep", "--stop", ""], ["first-crossing", "sparsest-above"]),
        (["sweep", "--preset=v"], ["--preset=vss"]),
        (["extract", "runs/first", "--bias", "ex"], []),  # has no such option
        (["ls", "m"], ["models"]),
        (["launch", "r", "--cluster", ""], ["auto", "local", "slurm"]),
        (["reproduce", ""], ["paper", "vss"]),
        (["sweep", "--arch", "alexn"], ["alexnet"]),
        (["sweep", "--model", "tv:alex"], ["tv:alexnet"]),
        (["sweep", "--threshold", ""], []),
    ],
)  # fmt: skip
def test_values_of_options(words, found):
    assert values(*words) == found


def test_what_is_named_here_is_named_where_it_is_used():
    from circuitcore.kernels.aot.targets import TARGETS as COMPILED
    from circuitcore.machine.target import TARGETS

    assert set(candidates.GPUS) == set(TARGETS) == set(values("plan", "--target", ""))
    assert values("kernels", "--target", "") == list(COMPILED)


def test_runs_and_their_finished_categories(here):
    assert values("report", "") == ["imagenet/", "runs/", "runs/first"]
    assert values("report", "runs/") == ["runs/first"]
    assert values("compare", "runs/first", "runs/f") == ["runs/first"]
    assert values("export", "runs/first", "") == ["Trouser", "Bag"]  # the others are not done
    assert values("lesion", "runs/first", "Bag", "") == ["Trouser"]
    assert values("export", "runs/first", "bag") == ["Bag"]
    assert set(values("worker", "runs/first", "")) == set(CATEGORIES)
    assert "runs/first" in values("stability", "") and "Bag" in values("stability", "")
    assert values("stability", "runs/first", "") == ["Trouser", "Bag"]


def test_categories_of_a_sweep(here):
    assert values("sweep", "A") == ["Ankle boot"]
    assert values("profile", "A") == ["Ankle boot"]
    assert values("sweep", "--images", "imagenet", "n") == ["n01440764"]
    (here / "names.txt").write_text("tench\nbrambling, Fringilla montifringilla\n")
    assert values("sweep", "--categories", "names.txt", "br") == [
        "brambling, Fringilla montifringilla"
    ]
    assert values("sweep", "--model", "tv:alexnet", "") == []


def test_a_spoiled_run_has_no_names(here):
    (here / "runs" / "first" / "manifest.json").write_text("{")
    assert values("export", "runs/first", "") == list(CATEGORIES)  # those of the example


def test_files_and_folders_are_the_shells_own():
    asked = {
        "files": [["sweep", "--config", ""], ["sweep", "--model", "file:"], ["bench", ""]],
        "folders": [["sweep", "--images", ""], ["ls", "runs", "--root", ""]],
    }
    for shells, every in asked.items():
        for words in every:
            assert candidates.answer(COMMANDS, words).shells == shells


@pytest.mark.parametrize(
    ("line", "words", "raw", "quote"),
    [
        ("circuitcore ", [""], "", ""),
        ("circuitcore export runs/a An", ["export", "runs/a", "An"], "An", ""),
        ('circuitcore export "my runs/a" "An', ["export", "my runs/a", "An"], '"An', '"'),
        ("circuitcore export my\\ runs/a An\\ ", ["export", "my runs/a", "An "], "An\\ ", ""),
        ("circuitcore sweep --model tv:a", ["sweep", "--model", "tv:a"], "tv:a", ""),
        ("circuitcore sweep '' ", ["sweep", "", ""], "", ""),
    ],
)
def test_a_line_is_read_as_bash_reads_it(line, words, raw, quote):
    assert read_line(line) == (words, raw, quote)


def test_it_is_installed_once(tmp_path):
    rc = tmp_path / ".bashrc"
    rc.write_text("alias a=b")
    said = [completion.install("bash", {"HOME": str(tmp_path)}) for _ in range(2)]
    assert said[0] == said[1] and str(rc) in said[0]
    lines = rc.read_text().splitlines()
    assert lines[0] == "alias a=b" and len(lines) == 2
    completion.install("fish", {"HOME": str(tmp_path)})
    assert (tmp_path / ".config/fish/completions/circuitcore.fish").read_text() == completion.FISH


def test_the_script_of_ones_own_shell(monkeypatch, capsys):
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert run(["--show-completion"]) == 0
    assert capsys.readouterr().out == completion.ZSH
    assert run(["--show-completion", "fish"]) == 0
    assert capsys.readouterr().out == completion.FISH
    assert run(["--show-completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err
    monkeypatch.delenv("SHELL")
    with pytest.raises(UsageError, match="give bash, zsh or fish"):
        completion.shell_of("auto")


def test_an_answer_loads_nothing_heavy(here):
    code = (
        "import sys\nfrom circuitcore.cli import main\n"
        "try:\n    main.main()\nexcept SystemExit as stop:\n"
        "    heavy = ('torch', 'numpy', 'pydantic', 'rich')\n"
        "    print(stop.code, [m for m in heavy if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "export", "runs/first", "B"], text=True,
        env={**os.environ, completion.VARIABLE: "fish"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("Bag\toutput unit 8\n", "0 []\n")


class Terminal:
    """A shell on a terminal of 80 columns, typed into."""

    def __init__(self, command, home):
        environment = {
            "HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm", "PS1": "$ ",
            "LANG": "C.UTF-8", "ZDOTDIR": str(home),
        }  # fmt: skip
        self.child, self.fd = pty.fork()
        if not self.child:
            os.execvpe(command[0], command, environment)

    def type(self, text, until):
        """What is printed until a pattern is in it."""
        os.write(self.fd, text.encode())
        said, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.2)[0]:
                said += os.read(self.fd, 65536).decode(errors="replace")
            if re.search(until, said):
                return said
        raise AssertionError(f"{text!r} gave {said!r}")

    def close(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.fd)


@pytest.fixture
def program(tmp_path):
    """A folder with the program under its own name, whether or not it is on PATH."""
    path = tmp_path / "bin" / "circuitcore"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m circuitcore.cli.main "$@"\n')
    path.chmod(0o755)
    return path.parent


SHELLS = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}
LINES = (  # what is typed before TAB, and the words that are there after it
    ("circuitcore exp", ["circuitcore", "export"]),
    ("circuitcore export runs/first Tr", ["circuitcore", "export", "runs/first", "Trouser"]),
    ("circuitcore sweep Ank", ["circuitcore", "sweep", "Ankle boot"]),
    ("circuitcore sweep 'Ank", ["circuitcore", "sweep", "Ankle boot"]),
    ("circuitcore sweep --model tv:alex", ["circuitcore", "sweep", "--model", "tv:alexnet"]),
    ("circuitcore sweep --preset=vs", ["circuitcore", "sweep", "--preset=vss"]),
    ("circuitcore sweep --categories nam", ["circuitcore", "sweep", "--categories", "names.txt"]),
)  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_in_a_real_shell(shell, here, program):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (here / "names.txt").write_text("tench\n")
    script = here / "script"
    script.write_text(completion.SCRIPTS[shell])
    typed = Terminal(SHELLS[shell], here)
    try:
        typed.type(f"PATH={program}:$PATH; . {script}; echo rea''dy\r", "ready")
        for line, words in LINES:
            wanted = "".join(f"<{word}>" for word in words)
            # what TAB leaves is made the arguments of printf, by going back to its beginning
            typed.type(f"{line}\t", re.escape(words[-1][-3:]) if shell == "bash" else ".")
            typed.type("\x01printf '<%s>' \x05; echo END''ED\r", re.escape(wanted) + r"(<>)?ENDED")
    finally:
        typed.close()


def test_in_a_real_fish(here, program):
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    script = here / "script"
    script.write_text(completion.FISH)
    environment = {**os.environ, "HOME": str(here), "PATH": f"{program}:{os.environ['PATH']}"}

    def asked(line):
        command = f'source {script}; complete -C "{line}"'
        done = subprocess.run(
            ["fish", "-c", command], env=environment, capture_output=True, text=True, check=True
        )
        return [each.split("\t")[0] for each in done.stdout.splitlines()]

    assert asked("circuitcore exp") == ["export"]
    assert asked("circuitcore export runs/first Tr") == ["Trouser"]
    assert asked("circuitcore sweep Ank") == ["Ankle boot"]
    assert asked("circuitcore sweep --preset=vs") == ["--preset=vss"]
    assert [Path(p).name for p in asked("circuitcore sweep --images ima")] == ["imagenet"]

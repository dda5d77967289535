"""What may come next on the command line, from the verbs themselves and the files of runs.

Nothing heavy is imported: an answer takes as long as --help.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES, FOLDERS = "files", "folders"
MOST = 2000  # entries of a folder that are looked at
DEVICES = ("auto", "cpu", "cuda:0")
GPUS = ("a100", "h100", "h200", "l40s", "rtx4090")  # of `plan --target`
RUNS = ("RUN", "A", "B")  # metavars of run folders
FILE_LIKE = ("FILE", "FILE.svg")
FOLDER_LIKE = ("DIR", "WHERE")


@dataclass(frozen=True)
class Candidate:
    """A word, and what it means."""

    value: str
    help: str = ""


@dataclass(frozen=True)
class Answer:
    """Words that fit, or that the shell's own ``files`` or ``folders`` do."""

    words: tuple[Candidate, ...] = ()
    shells: str = ""


def answer(commands: Any, words: Sequence[str]) -> Answer:
    """What may come in the place of the last of ``words``, those after the program's name.

    ``commands``: the program's group of verbs.
    """
    *before, now = words or [""]
    if not before:
        return _fitting(_verbs(commands, now), now)
    verb = before[0]
    command = commands.commands.get("sweep" if verb == "profile" else verb)
    if command is None:
        return Answer()
    if verb == "bench":
        return Answer(shells=FILES)
    typed = _Typed(command, before[1:])
    flag, equals, value = now.partition("=")
    if equals and (option := typed.option(flag)) is not None:
        found = _values(verb, option, typed, value)
        return Answer(tuple(Candidate(f"{flag}={c.value}", c.help) for c in found.words))
    if typed.waiting is not None:
        return _values(verb, typed.waiting, typed, now)
    if now.startswith("-"):
        return _fitting(typed.options(), now)
    place = typed.place()
    return Answer() if place is None else _values(verb, place, typed, now)


class _Typed:
    """What stands before the word: options, arguments, and an option that waits for its value."""

    def __init__(self, command: Any, words: Sequence[str]) -> None:
        self.command = command
        self.waiting: Any = None
        self.arguments: list[str] = []
        self.given: dict[str, str] = {}
        for word in words:
            if self.waiting is not None:
                self.given[self.waiting.name] = word
                self.waiting = None
            elif word.startswith("-") and word != "-":
                flag, equals, value = word.partition("=")
                option = self.option(flag)
                if option is None:
                    continue
                if equals or option.is_flag:
                    self.given[option.name] = value
                else:
                    self.waiting = option
            else:
                self.arguments.append(word)

    def option(self, flag: str) -> Any:
        """The option spelled so, None where there is none."""
        return next((p for p in self._options() if flag in p.opts), None)

    def options(self) -> Iterator[Candidate]:
        """Options that may still be given, the long way."""
        for option in self._options():
            if option.name not in self.given or option.multiple:
                yield Candidate(option.opts[0], option.help or "")
        yield Candidate("--help", "what this verb does and takes")

    def place(self) -> Any:
        """The argument whose turn it is, None where there are enough."""
        every = [p for p in self.command.params if p.param_type_name == "argument"]
        taken = 0
        for argument in every:
            if argument.nargs < 0 or taken == len(self.arguments):
                return argument
            taken += argument.nargs
        return None

    def _options(self) -> Iterator[Any]:
        for parameter in self.command.params:
            if parameter.param_type_name == "option":
                yield parameter


def _verbs(commands: Any, now: str) -> Iterator[Candidate]:
    if now.startswith("-"):
        for option in commands.params:
            yield Candidate(option.opts[0], option.help or "")
        return
    for name in commands.commands:
        said = (commands.commands[name].help or "").split("\n\n")[0]
        yield Candidate(name, " ".join(said.split()))


def _fitting(candidates: Iterable[Candidate], now: str) -> Answer:
    """Those that begin as the word does; where none does, those that do but for their case."""
    every = list(candidates)
    found = [c for c in every if c.value.startswith(now)]
    lower = now.lower()
    return Answer(tuple(found or [c for c in every if c.value.lower().startswith(lower)]))


def _values(verb: str, parameter: Any, typed: _Typed, now: str) -> Answer:
    """Values of an option, or of an argument."""
    name, metavar = parameter.name, parameter.metavar or ""
    if metavar == "[RUN] [CATEGORY]":
        found = [] if typed.arguments else list(_runs(now))
        return _fitting([*found, *_categories(verb, typed)], now)
    if metavar == "CATEGORY":
        return _fitting(_categories(verb, typed), now)
    if metavar in RUNS:
        return _fitting(_runs(now), now)
    if "|" in metavar:
        return _fitting(map(Candidate, metavar.split("|")), now)
    if name == "model" and now.startswith("file:") or metavar in FILE_LIKE:
        return Answer(shells=FILES)
    if metavar in FOLDER_LIKE:
        return Answer(shells=FOLDERS)
    return _fitting(_known(verb, name), now)


def _known(verb: str, name: str) -> list[Candidate]:
    """Values of options that name something there is."""
    if name == "model":
        return [Candidate("bundled"), *map(Candidate, _networks()), Candidate("file:")]
    if name == "arch":
        return [Candidate(each.removeprefix("tv:")) for each in _networks()]
    if name == "device":
        return list(map(Candidate, DEVICES))
    if name == "target" and verb == "plan":
        return list(map(Candidate, GPUS))
    if name == "target" and verb == "kernels":
        from circuitcore.kernels.aot.targets import TARGETS

        return list(map(Candidate, TARGETS))
    return []


def _networks() -> list[str]:
    """Networks that can be swept, as `ls models` lists them."""
    import circuitcore

    path = Path(circuitcore.__file__).parent / "inputs" / "libraries" / "census.json"
    rows = _read(path)
    return [row["model"] for row in rows if row["works"]] if isinstance(rows, list) else []


def _runs(now: str) -> Iterator[Candidate]:
    """Run folders below what is typed so far, and folders that may hold some.

    With nothing typed: those here and in ``runs``.
    """
    typed, _, _ = now.rpartition("/")
    start = f"{typed}/" if "/" in now else ""
    for at in dict.fromkeys([start, *([] if start else ["runs/"])]):
        for path in _folders(Path(at).expanduser() if at else Path()):
            if (path / "manifest.json").is_file():
                yield Candidate(f"{at}{path.name}", "a run")
            elif at == start and not path.name.startswith("."):
                yield Candidate(f"{at}{path.name}/")


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(p for p, _ in zip(parent.iterdir(), range(MOST), strict=False) if p.is_dir())
    except OSError:
        return []


def _categories(verb: str, typed: _Typed) -> Iterator[Candidate]:
    """Names of a run's categories where one is typed, else of those that a sweep would find."""
    taken = set(typed.arguments)
    manifest = _manifest(typed.arguments)
    if manifest is None:
        names = list(_of_a_sweep(typed.given))
    else:
        folder, found = manifest
        names = list(_of_a_run(folder, found, done=verb != "worker"))
    for name, said in names:
        if name not in taken and name.isprintable():
            yield Candidate(name, said)


def _manifest(arguments: Sequence[str]) -> tuple[Path, dict[str, Any]] | None:
    """The run folder that the first argument is, with its manifest."""
    if not arguments:
        return None
    folder = Path(arguments[0]).expanduser()
    found = _read(folder / "manifest.json")
    return (folder, found) if isinstance(found, dict) and "categories" in found else None


def _of_a_run(folder: Path, manifest: dict[str, Any], done: bool) -> Iterator[tuple[str, str]]:
    """Names, of two alike the folders; ``done``: of finished categories alone."""
    from circuitcore.runs.paths import unit_file

    listed = manifest["categories"]
    names = [each.get("name", "") for each in listed]
    for each, name in zip(listed, names, strict=True):
        path = folder / unit_file(manifest.get("configuration", {}), each.get("index", -1))
        if not done or path.exists():
            once = names.count(name) == 1
            yield (name if once else each.get("folder", "")), f"output unit {each.get('index')}"


def _of_a_sweep(given: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names in --categories, folders of --images, or the bundled example's names."""
    if file := given.get("categories"):
        with_names = Path(file).expanduser()
        text = with_names.read_text("utf-8", "replace") if with_names.is_file() else ""
        for unit, line in enumerate(text.splitlines()):
            yield line.strip(), f"output unit {unit}"
    elif given.get("images", "bundled") != "bundled":
        root = Path(given["images"]).expanduser()
        inner = root / "train"
        for path in _folders(inner if inner.is_dir() else root):
            yield path.name, "a folder of images"
    elif given.get("model", "bundled") == "bundled":
        from circuitcore.bundled import CATEGORIES

        for unit, name in enumerate(CATEGORIES):
            yield name, f"output unit {unit}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None

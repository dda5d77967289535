"""The documentation: built as it is published, complete, and without anything from a network."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from pydantic import BaseModel

import circuitcore
from circuitcore import records
from circuitcore.cli.main import app, run
from circuitcore.cli.options import FLAGS
from circuitcore.options import FIELDS, PRESETS, changing

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "docs" / "img").glob("*.svg"))
LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("img", "srcset"), ("source", "src"),
         ("source", "srcset"), ("iframe", "src"), ("object", "data"), ("embed", "src"),
         ("video", "src"), ("audio", "src"), ("use", "href"), ("image", "href")}  # fmt: skip
ELSEWHERE = re.compile(r"^\s*(?:\w+:)?//|^https?:")


class Page(HTMLParser):
    """What a page links to, what it loads, its anchors, and its text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors, self.text = [], [], set(), []
        self.classes, self.pictures_without_words, self.formulas = set(), [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.formulas += tag == "math"
        self.classes |= set((found.get("class") or "").split())
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img" and not found.get("alt"):
            self.pictures_without_words.append(found.get("src"))
        self.loads += [found[name] for name in found if (tag, name) in LOADS and found[name]]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return "".join(self.text)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(what the build said, its pages by path from the site's root, the root)."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {str(p.relative_to(site)): Page(p) for p in sorted(site.rglob("*.html"))}
    return done.stderr, pages, site


def test_it_is_built_without_a_warning(built):
    said, pages, _ = built
    assert "WARNING" not in said and "ERROR" not in said
    assert len(pages) > 20 and "index.html" in pages


def test_nothing_is_loaded_from_elsewhere(built):
    _, pages, site = built
    for name, page in pages.items():
        assert not [url for url in page.loads if ELSEWHERE.search(url)], name
        assert page.loads, f"{name} has no style: is it parsed?"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), sheet


def test_every_link_and_picture_is_there(built):
    _, pages, site = built
    for name, page in pages.items():
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("http", "https", "mailto"), f"{name}: {url}"
                continue
            path = unquote(parts.path) or Path(name).name
            if name == "404.html":  # shown in the place of any page: links from the root
                path = path.lstrip("/")
            target = ((site / name).parent / path).resolve()
            assert target.exists(), f"{name} links to {url}"
            if parts.fragment and target.suffix == ".html":
                other = pages[str(target.relative_to(site.resolve()))]
                assert unquote(parts.fragment) in other.anchors, f"{name} links to {url}"
        assert not page.pictures_without_words, name


def test_every_command_is_described(built):
    page = built[1]["reference/commands.html"]
    commands = typer.main.get_command(app).commands
    assert len(commands) > 20
    for name, command in commands.items():
        assert name in page.anchors
        first = command.help.split("\n")[0]
        assert first in page.words, f"{name}: {first}"
        for parameter in command.params:
            for spelled in parameter.opts if parameter.param_type_name == "option" else ():
                if len(command.params) <= len(FLAGS) // 2 and spelled.startswith("--"):
                    assert spelled in page.words, f"{name} {spelled}"


def test_every_option_is_described(built):
    page = built[1]["reference/options.html"]
    for flag in FLAGS:
        assert flag.name.replace("_", "-") in page.anchors
        for said in (flag.spelled, flag.default, flag.help[1:], *flag.choices):
            assert said in page.words, f"{flag.spelled}: {said}"
    for name in FIELDS:
        assert f"CIRCUITCORE_{name.upper()}" in page.words
    assert all(preset in page.words for preset in PRESETS)


def test_the_method_explains_its_options(built):
    """Each option of the method, its values and the presets, in words, not by a table alone."""
    words = built[1]["method.html"].words
    for name in changing("numbers"):
        if FIELDS[name].metadata["group"] == "The method":
            assert f"--{name.replace('_', '-')}" in words, name
    for flag in FLAGS:
        if flag.group == "The method":
            assert all(choice in words for choice in flag.choices), flag
    assert all(preset in words for preset in PRESETS)


def test_every_public_name_is_in_the_api(built):
    pages = {name: page for name, page in built[1].items() if name.startswith("reference/")}
    for name in circuitcore.__all__:
        homes = [p for p in pages.values() if any(a.endswith(f".{name}") for a in p.anchors)]
        assert homes, f"circuitcore.{name} is on no page"
        assert any(f"circuitcore.{name}" in page.words for page in homes)


def test_every_record_is_described(built):
    words = built[1]["reference/records.html"].words
    models = [m for m in vars(records).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    assert len(models) > 20
    for model in models:
        if model is not BaseModel:
            assert (
                model.__name__ in words
                and (model.__doc__ or "").split("\n")[0].split("``")[0] in words
            )
            assert all(field in words for field in model.model_fields), model


def test_every_operation_is_in_the_api(built):
    anchors = built[1]["reference/kernels.html"].anchors
    for path in sorted((ROOT / "kernels").glob("*/operation.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
        found = [n for n in public if f"kernels.{path.parent.name}.operation.{n}" in anchors]
        assert found, path


def test_formulas_are_made_when_the_site_is(built):
    _, pages, _ = built
    assert pages["method.html"].formulas > 40
    for name, page in pages.items():
        assert "arithmatex" not in page.classes, name
        if page.formulas:
            assert not re.search(r"\\(?:frac|sum|lvert|text|mathrm|[(\[])", page.words), name


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_are_small_and_whole(path):
    assert path.stat().st_size < 30_000
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
    assert (root.findtext("{http://www.w3.org/2000/svg}title") or "").strip()
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not (name.endswith("href") and ELSEWHERE.search(value)), value
    assert any(path.name in page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_the_first_table_is_that_of_the_example():
    """The rows that a first sweep prints, as `docs/start.md` has them, are the frozen ones."""
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    frozen = json.loads((ROOT / "tests" / "frozen" / "bundled.json").read_text(encoding="utf-8"))
    for found in frozen["document"]["categories"]:
        held, own = found["circuit"]["heldout"], found["unpruned"]["heldout_biased"]
        low, high = held["csa_ratio_biased_ci95"]
        row = [f"{100 * found['circuit']['pruned']:.2f} %", f"{held['hit']:.2f}",
               f"{own['hit']:.2f}", held["false_alarms"], own["false_alarms"],
               f"{held['csa_ratio_biased']:.3f}", f"{low:.2f}-{high:.2f}",
               f"{found['faithfulness']['heldout']:.2f}"]  # fmt: skip
        row = r" +".join(re.escape(str(part)) for part in (found["category"], *row))
        assert re.search(f"^ {row}$", text, re.MULTILINE), row


TEXTS = [
    *sorted((ROOT / "docs").glob("*.md")), *map(ROOT.joinpath, ("README.md", "bench/README.md")),
]  # fmt: skip
INLINE = re.compile(r"`circuitcore ([a-z]+)([^`]*)`")
FENCED = re.compile(r"^```(?:sh|text)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = re.compile(r"(?:^|&& |/)circuitcore ([a-z]+)([^#\n&]*)", re.MULTILINE)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_that_pages_name_exist(path):
    """Each `circuitcore VERB --option` of a page: such a verb, with such an option."""
    commands = typer.main.get_command(app).commands
    text = path.read_text(encoding="utf-8")
    said = INLINE.findall(FENCED.sub("", text))
    said += [found for block in FENCED.findall(text) for found in LINES.findall(block)]
    for verb, rest in said:
        assert verb in commands, f"{path.name}: circuitcore {verb}"
        if verb in ("bench", "profile"):  # pass options on
            continue
        known = {o for parameter in commands[verb].params for o in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, f"{path.name}: {verb}{rest}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_sweeps_that_pages_show_have_options_that_fit(path, capsys):
    """Values, and what goes together: such a sweep would begin, if model and images were there."""
    for block in FENCED.findall(path.read_text(encoding="utf-8")):
        for verb, rest in LINES.findall(block):
            if verb == "sweep" and "--config" not in rest:
                assert run(["sweep", *shlex.split(rest), "--print-config"]) == 0, f"{verb}{rest}"
                assert tomllib.loads(capsys.readouterr().out)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_names_that_pages_use_exist(path):
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, path.name, "exec")
    used = re.findall(r"\b(?:cc|circuitcore)\.([A-Za-z_]+)\(", text)
    assert set(used) <= set(circuitcore.__all__)
    for module in set(re.findall(r"from (circuitcore[\w.]*) import", text)):
        assert find_spec(module), module
    for named in re.findall(r"`((?:circuitcore|kernels|tests|bench|cli|examples)/[^`\s]*)`", text):
        if not re.search(r"[A-Z*]{2}|…", named):  # OP/... stand for any
            assert (ROOT / named).exists(), named


LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"]
)
def test_links_of_the_repository_hold(name):
    """Where the files are read as they lie, without the site."""
    path = ROOT / name
    gone = [t for t in LINK.findall(path.read_text()) if not (path.parent / t).exists()]
    assert not gone


def test_the_readme_is_a_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    commands = typer.main.get_command(app).commands
    table = text.partition("## Commands")[2].partition("\n## ")[0]
    assert not [name for name in commands if f"`{name}" not in table]

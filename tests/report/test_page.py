"""The report: one file, nothing from outside, names escaped, the same bytes every time."""

import html.parser
import re

import numpy as np
import pytest
from made_up import NAMES, SCRIPT, sweep
from matplotlib.figure import Figure

from circuitcore.analysis.summary import interval
from circuitcore.report import figure_style, figures
from circuitcore.report.page import render
from circuitcore.report.science import Science


def pairwise(count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    half = np.triu(generator.uniform(0.1, 0.9, (count, count)), 1)
    return half + half.T + np.eye(count)


def page(names=tuple(NAMES), undefined=()) -> str:
    kept = [n for n in names if n not in undefined]
    overlap = pairwise(len(kept))
    return render(sweep(names, undefined), kept, overlap, overlap / 3)


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    return page()


@pytest.fixture(scope="module")
def read(text) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_the_page_holds_every_figure_and_category(read):
    assert read.tags.count("svg") == 5 - 1  # no bands below 25 categories
    words = "".join(read.text)
    for name in ("Trouser", "né 🦆", "a $b$ c", "two\\nlines\\x07", "made <up>"):
        assert name in words
    assert "95 % interval" in words and "by chance" in words


def test_names_are_text_and_never_markup(read, text):
    assert read.tags.count("script") == 2  # the data and our own; which runs, the policy says
    assert re.findall(r"<script\b[^>]*>", text) == [
        '<script type="application/json" id="data">', "<script>"
    ]  # fmt: skip
    assert SCRIPT in "".join(read.text)
    assert SCRIPT not in text


def test_nothing_is_loaded_from_outside(read, text):
    outside = [link for link in read.links if not link.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_not_repeated_across_figures(read):
    figures_of = {}
    for name in read.ids:
        figures_of.setdefault(name, 0)
        figures_of[name] += 1
    assert max(figures_of.values()) == 1


def test_the_same_run_gives_the_same_bytes(text):
    assert page() == text


def test_figures_take_their_colours_from_the_page(text):
    figures = "".join(re.findall(r"<svg\b.*?</svg>", text, re.DOTALL))
    assert not any(colour in figures for colour in figure_style.COLOURS)
    assert "var(--fc)" in figures and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_any_number_of_categories(count):
    names = tuple(f"category {i}" for i in range(count))
    text = page(names)
    assert ("median, 25 to 75 %" in text) == (count > figures.MOST_PANELS)


def test_a_category_without_a_circuit_is_na_and_counted():
    text = page(("Trouser", "Bag"), undefined=("Trouser",))
    assert "1 of them without a circuit" in text
    row = re.search(r'<tr><td class="name">Trouser</td>(.*?)</tr>', text, re.S).group(1)
    assert row.count("<td>NA</td>") == 10 and "<td>0" in row  # its baseline stands there


def test_cluster_order_puts_like_beside_like():
    overlap = np.full((4, 4), 0.1)
    overlap[0, 2] = overlap[2, 0] = overlap[1, 3] = overlap[3, 1] = 0.9
    np.fill_diagonal(overlap, 1)
    order = figures.cluster_order(overlap)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert figures.cluster_order(overlap[:2, :2]) == [0, 1]


def test_interval_of_a_mean():
    low, high = interval([0.8, 0.9, 1.0])
    assert low == pytest.approx(0.9 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert high == pytest.approx(0.9 + 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert interval([0.5]) is None


def test_figures_show_floor_and_ceiling():
    names = ("Trouser", "Bag", "Coat")
    overlap = pairwise(3)
    plain = render(sweep(names), names, overlap, overlap / 3)
    assert "noise ceiling" not in plain and "empty circuit" in plain and "empty, CSA" in plain
    shown = render(sweep(names), names, overlap, overlap / 3, (), Science(ceiling=0.95))
    matrix = re.search(r"<h2>Who shares.*?</svg>", shown, re.S).group()
    assert "noise ceiling 0.950" in shown and ">ceiling<" in matrix and ">chance<" in matrix
    chance = re.search(r"chance (0\.\d{3})", shown).group(1)
    assert float(chance) == pytest.approx(overlap[np.triu_indices(3, 1)].mean() / 3, abs=6e-4)
    record = sweep(names).categories[0]
    assert figures.ends(record) == (record.unpruned.extraction_biased.csa, 0.5)
    axes = Figure().subplots()
    figures.draw_curves(axes, record)
    level = {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert {*figures.ends(record), 0.81} <= level


def test_controls_stand_in_the_report_once_they_were_run(tmp_path):
    from types import SimpleNamespace

    from circuitcore.analysis.controls import control_means, keep_controls

    assert control_means(tmp_path) == []
    rows = [
        {"control": kind, "overlap": 0.5, "heldout": {"csa": csa, "hit": 0.9}}
        for kind in ("circuit", "random")
        for csa in (0.2, 0.4)
    ]
    keep_controls(tmp_path, [SimpleNamespace(model_dump=lambda mode, r=r: r) for r in rows])
    found = control_means(tmp_path)
    assert [row["control"] for row in found] == ["circuit", "random"]
    assert found[1]["csa"] == pytest.approx(0.3)
    names = ("Trouser", "Bag")
    overlap = pairwise(2)
    text = render(sweep(names), names, overlap, overlap, found)
    assert "<td>random</td><td>0.300</td>" in text

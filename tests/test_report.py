"""The report: one file, nothing from outside, names escaped, the same bytes every time."""

import html.parser
import re

import numpy as np
import pytest

from circuitcore import figures
from circuitcore.document import (
    Accuracy,
    Category,
    Circuit,
    Cost,
    HeldOut,
    Level,
    Overlap,
    Stage,
    Sweep,
    Unpruned,
)
from circuitcore.report import interval, render
from circuitcore.summary import summarise

SCRIPT = "<script>alert(1)</script>"
NAMES = [
    "Trouser",
    "T-shirt/top",
    SCRIPT,
    "=cmd|' /C calc'!A0",
    "a $b$ c",
    "two\nlines\x07",
    "né 🦆",
]


def accuracy(hit: float, false: int, bias: float) -> Accuracy:
    return Accuracy(
        hit=hit, false_alarm=false / 180, false_alarms=false, csa=hit - false / 20, bias=bias
    )


def category(index: int, name: str, defined: bool = True) -> Category:
    base = accuracy(0.9, 1, 0.0)
    unpruned = Unpruned(extraction=base, extraction_biased=base, heldout=base, heldout_biased=base)
    stages = []
    for stage, weights in (("fc", 50_000), ("conv", 9_000)):
        levels = []
        for t in range(12):
            kept = int(weights * 0.5**t)
            csa = 0.95 - 0.002 * t**2 - 0.01 * (index % 3)
            levels.append(
                Level(
                    level=t,
                    pruned=1 - kept / weights,
                    kept_weights=kept,
                    images=200,
                    hit=0.95,
                    false_alarm=0.0,
                    false_alarms=0,
                    csa=csa,
                    csa_lo=csa,
                    csa_hi=csa + 0.05 * (t == 5),
                    bias=0.1,
                )  # fmt: skip
            )
        stages.append(
            Stage(stage=stage, relevant_weights=weights, tied_zero=0.4, reference_csa=0.9,
                  threshold_csa=0.81, chosen=7, levels=levels)
        )  # fmt: skip
    heldout = HeldOut(
        **accuracy(0.85, 2, 0.4).model_dump(), csa_ratio=0.88, csa_ratio_ci95=(0.7, 1.02),
        csa_ratio_biased=0.9,
    )  # fmt: skip
    circuit = Circuit(
        pruned=0.9 + index / 200, pruned_fc=0.99, pruned_conv=0.9, kept_weights=800, bias=0.4,
        extraction=accuracy(0.9, 1, 0.4), heldout=heldout, file=f"units/{index:02}.safetensors",
    )  # fmt: skip
    return Category(
        category=name, index=index, unpruned=unpruned, stages=stages if defined else [],
        circuit=circuit if defined else None, cost=Cost(seconds=1.5, fpe=9.5, multiply_adds=10**9),
    )  # fmt: skip


def sweep(names=tuple(NAMES), undefined=()) -> Sweep:
    categories = [category(i, n, n not in undefined) for i, n in enumerate(names)]
    run = {
        "folder": "runs/made-up",
        "model": {"name": "made <up>", "relevant_weights": 59_000, "weights_sha256": "ab" * 32},
        "images": {"folder": "/images & more"},
        "categories": [{"index": i, "name": n} for i, n in enumerate(names)],
        "options": {"levels": "32", "threshold": 0.9, "model": "file:<b>.safetensors"},
        "versions": {"circuitcore": "0.1.0", "torch": "2"},
        "device": "cpu",
    }
    overlap = Overlap(
        pairs=len(names) * (len(names) - 1) // 2, mean=0.4, min=0.1, max=0.8, mean_chance=0.2,
        file="overlap.parquet",
    )  # fmt: skip
    return Sweep(
        schema="circuitcore.sweep/1", run=run, categories=categories, overlap=overlap,
        summary=summarise(categories),
    )  # fmt: skip


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
def read() -> Reader:
    reader = Reader()
    reader.feed(page())
    return reader


def test_the_page_holds_every_figure_and_category(read):
    assert read.tags.count("svg") == 5 - 1  # no bands below 25 categories
    text = "".join(read.text)
    for name in ("Trouser", "né 🦆", "a $b$ c", "two\\nlines\\x07", "made <up>"):
        assert name in text
    assert "95 % interval" in text and "by chance" in text


def test_names_are_text_and_never_markup(read):
    assert "script" not in read.tags
    assert SCRIPT in "".join(read.text)
    assert SCRIPT not in page()


def test_nothing_is_loaded_from_outside(read):
    outside = [link for link in read.links if not link.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"@import|url\((?!#)", page())


def test_ids_are_not_repeated_across_figures(read):
    figures_of = {}
    for name in read.ids:
        figures_of.setdefault(name, 0)
        figures_of[name] += 1
    assert max(figures_of.values()) == 1


def test_the_same_run_gives_the_same_bytes():
    assert page() == page()


def test_figures_take_their_colours_from_the_page():
    text = page()
    assert not any(stand_in in text for stand_in in figures.COLOURS)
    assert "var(--fc)" in text and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("count", [0, 1, 2, 3, 30])
def test_any_number_of_categories(count):
    names = tuple(f"category {i}" for i in range(count))
    text = page(names)
    assert ("median, 25 to 75 %" in text) == (count > figures.MOST_PANELS)


def test_a_category_without_a_circuit_is_na_and_counted():
    text = page(undefined=("Trouser",))
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

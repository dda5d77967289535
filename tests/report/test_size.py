"""A report of 1,000 categories is one file below 5 MB that a browser still searches and sorts.

The twin on real files: ``python bench/e2e/report_size.py FOLDER``.
"""

import json
import re

import numpy as np
import pytest
from made_up import category, sweep
from made_up_page import pairwise, thumbnail

from circuitcore.report.inline.pictures import Pictures
from circuitcore.report.page import render

MANY = 1000
MOST_BYTES = 5_000_000
# of the inline data, by part: written down in `report.inline.data`
BUDGET = {"matrix": 0.7e6, "curves": 0.5e6, "thumbs": 1.4e6, "similar": 0.1e6, "names": 0.2e6}


def shaken(index, random):
    """A made-up category with 32 + 32 levels whose curves are its own."""
    record = category(index, f"n{index:08} category {index}")
    stages = []
    for stage in record.stages:
        levels = []
        for t in range(32):
            kept = round(stage.relevant_weights * 0.8**t)
            hit = float(np.clip(1 - (t / 32) ** 2 + random.normal(0, 0.1), 0, 1))
            level = {"level": t, "kept_weights": kept, "csa": hit, "csa_lo": hit, "csa_hi": hit}
            levels.append(stage.levels[0].model_copy(update=level))
        stages.append(stage.model_copy(update={"levels": levels}))
    return record.model_copy(update={"stages": stages})


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    random = np.random.default_rng(0)
    records = [shaken(index, random) for index in range(MANY)]
    names = tuple(record.category for record in records)
    document = sweep(names).model_copy(update={"categories": records})
    thumbs = [thumbnail(seed) for seed in range(50)]
    many = Pictures([thumbs[n % 50] for n in range(MANY)], {n: n for n in range(MANY)})
    overlap = pairwise(MANY)
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(render(document, names, overlap, overlap / 3, (), None, many))
    return path


def test_it_is_below_five_megabytes_and_its_parts_within_their_budget(large):
    text = large.read_text()
    assert len(text.encode()) < MOST_BYTES
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    sizes = {name: len(json.dumps(data[name])) for name in BUDGET}
    assert all(sizes[name] <= most for name, most in BUDGET.items()), sizes
    assert len(data["names"]) == MANY and sum(data["curves"]["levels"]) == 64 * MANY


def test_it_is_searched_sorted_and_looked_into(browser, large):
    page = browser.open(large)
    assert page.said() == []
    page.find("#search")[0].send_keys("y 99")
    assert page.text("#count") == "11 of 1000 shown"
    assert len(page.find("details.one")) == 11
    page.run("const s = document.querySelector('#search'); s.value = '';"
             "s.dispatchEvent(new Event('input'))")  # fmt: skip
    page.run("document.querySelectorAll('#every thead button')[1].click()")
    first = "return document.querySelector('#every tbody tr').cells[0].textContent"
    assert page.run(first).startswith("n00000999")
    assert len(page.find("details.one")) == 50
    page.run("document.querySelector('#more').click()")
    assert len(page.find("details.one")) == 100
    page.run("document.querySelectorAll('#every button.open')[700].click()")
    assert "category 299" in page.text("details.one[open] h3")
    told = page.text("details.one[open]")
    assert "--pages" in told and "Most similar circuits" in told


def test_its_matrix_and_curves_are_all_there(browser, large):
    page = browser.open(large)
    overlap = pairwise(MANY)
    page.run("document.querySelector('#matrix-canvas').focus()")
    page.press("\ue014")  # right
    said = re.fullmatch(r"n0*(\d+) \S+ \d+ and n0*(\d+) \S+ \d+: overlap (\d\.\d\d)",
                        page.text("#matrix-said"))  # fmt: skip
    a, b = (int(said[1] or 0), int(said[2] or 0))
    assert float(said[3]) == pytest.approx(overlap[a, b], abs=0.0071)  # a byte, then two digits
    assert len(page.find(".plot path.faint")) == 2 * MANY
    assert len(page.find("#matrix .static image")) == 2  # of block means, for paper; its scale


def test_blocks_are_averaged_and_no_pair_is_lost():
    from circuitcore.report.figures import block_means

    values = np.arange(49.0).reshape(7, 7)
    found = block_means(values, 3)
    assert found.shape == (3, 3)
    assert found[0, 0] == values[:3, :3].mean() and found[2, 1] == values[6:, 3:6].mean()
    sizes = np.outer([3, 3, 1], [3, 3, 1])
    assert (found * sizes).sum() == values.sum()

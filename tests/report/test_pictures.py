"""Pictures of a run's images in its report, and pages of single categories; from the run alone."""

import base64
import io
import json
import re
import shutil

import pytest
from command import call
from PIL import Image

from circuitcore.machine.files import read_sealed, sealed
from circuitcore.report.inline import pages
from circuitcore.report.inline.pictures import album_of, encoded, pictures_of
from circuitcore.runs.folder import open_run
from circuitcore.runs.intact import damage
from circuitcore.runs.tables import read_rows, write_table


def data_of(page):
    """The inline data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


def opened(thumb):
    return Image.open(io.BytesIO(base64.b64decode(thumb)))


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small.folder, tmp_path / "run")


def changed(folder, **options):
    """The run in a folder, as if made with other options."""
    manifest = read_sealed(folder / "manifest.json")
    manifest["options"] |= options
    (folder / "manifest.json").write_bytes(sealed(manifest))
    return open_run(folder)


def test_hits_and_misses_are_those_of_the_record(small):
    data = data_of(small.folder / "report.html")
    for place, category in enumerate(small.document["categories"]):
        seen, heldout = data["seen"][place], category["circuit"]["heldout"]
        assert data["names"][place] == category["category"]
        assert seen["counts"]["hits"] == round(30 * heldout["hit"])
        assert seen["counts"]["hits"] + seen["counts"]["misses"] == 30
        assert seen["counts"]["alarms"] == heldout["false_alarms"]
        assert all(margin > 0 for _, _, margin, _ in seen["hits"] + seen["alarms"])
        assert all(margin <= 0 for _, _, margin, _ in seen["misses"])
        for kind in ("hits", "misses"):
            assert {of for _, of, _, _ in seen[kind]} <= {category["category"]}
        assert category["category"] not in {of for _, of, _, _ in seen["alarms"]}
        margins = [margin for _, _, margin, _ in seen["hits"]]
        assert margins == sorted(margins, reverse=True) and len(margins) == 8


def test_a_picture_is_of_its_image(small):
    import numpy as np

    run = open_run(small.folder)
    found = pictures_of(album_of(run), [1], 64, 0)
    rows = [r for r in read_rows(small.folder / "images.parquet")
            if r["split"] == "heldout" and r["category"] == "Trouser"]  # fmt: skip
    file = f"{run.manifest['images']['folder']}/{rows[0]['path']}"
    shown = opened(found.thumbs[found.own[1]]).convert("L")
    assert shown.size == (28, 28)  # never enlarged
    off = np.asarray(shown).astype(int) - np.asarray(Image.open(file).convert("L"))
    assert abs(off).mean() < 8  # what compression takes


def test_the_middle_square_is_shown():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    low, high = opened(encoded(image, 32)).convert("L").getextrema()
    assert opened(encoded(image, 32)).size == (32, 32) and low > 200 and high == 255


def test_images_that_are_gone_are_said_to_be_gone(copy):
    run = changed(copy, images=str(copy / "nowhere"))
    call("report", copy)
    data = data_of(copy / "report.html")
    assert data["thumbs"] == [] and "images not found at" in data["missing"]
    assert data["seen"][0]["counts"]["hits"] > 0  # what was said of them is still known
    assert run.manifest["images"]["folder"] in data["missing"]


def test_images_in_hand_have_no_pictures(copy):
    found = pictures_of(album_of(changed(copy, images="in hand")), [1, 8], 32, 8)
    assert not found.thumbs and "in hand" in found.missing and set(found.seen) == {1, 8}


def test_an_image_that_changed_is_not_shown(copy):
    import pyarrow as pa

    rows = read_rows(copy / "images.parquet")
    heldout = [r for r in rows if r["split"] == "heldout"]
    next(r for r in heldout if r["category"] == "Trouser")["sha256"] = "0" * 64
    write_table(copy / "images.parquet", pa.Table.from_pylist(rows))
    found = pictures_of(album_of(open_run(copy)), [1, 8], 32, 0)
    assert 1 not in found.own and 8 in found.own and "no longer as they were" in found.missing
    write_table(copy / "images.parquet", pa.Table.from_pylist(rows[:0]))
    assert pictures_of(album_of(open_run(copy)), [1, 8], 32, 8).thumbs == []
    (copy / "images.parquet").unlink()
    assert "No pictures" in pictures_of(album_of(open_run(copy)), [1], 32, 8).missing


def test_the_same_run_gives_the_same_report_with_its_pages(copy):
    assert call("report", copy, "--pages").stdout == f"{copy / 'report.html'}\n"
    files = sorted((copy / pages.FOLDER).iterdir())
    assert [file.name for file in files] == ["1.html", "8.html"]
    before = {file: file.read_bytes() for file in [*files, copy / "report.html"]}
    assert all(damage(file) is None for file in before)
    call("report", copy, "--pages")
    assert {file: file.read_bytes() for file in before} == before
    files[0].write_bytes(before[files[0]].replace(b"Trouser", b"Trousers", 1))
    assert str(files[0]) in call("verify", copy, "--sample", 0, code=3).stdout
    call("verify", copy, "--repair")
    assert {file: file.read_bytes() for file in before} == before
    files[1].unlink()
    call("report", copy)
    assert {file: file.read_bytes() for file in before} == before, "no link leads nowhere"


def test_a_page_holds_one_category_and_links_back(copy, browser):
    call("show", copy, "Bag")
    call("report", copy, "--pages")
    page = browser.open(copy / "pages" / "8.html")
    assert page.text("h1") == "Bag" and page.said() == []
    assert len(page.find("#circuit svg.circuit circle")) > 8  # units, drawn
    heads = page.run("return [...document.querySelectorAll('h3')].map(e => e.textContent)")
    assert heads[0] == "Along the sweep" and heads[-1] == "Most similar circuits"
    assert any(head.startswith("Hits: ") for head in heads)
    loaded = page.run(
        "return [...document.querySelectorAll('.images img')].map(i => i.naturalWidth)"
    )
    assert loaded and set(loaded) == {28}
    page.find(".similar a")[0].click()
    page.until("document.querySelector('h1').textContent === 'Trouser'")
    assert "circuitcore show" in page.text("#circuit") and not page.find("svg.circuit")
    page.find("header a")[0].click()
    page.until("document.querySelector('#c-1[open] .inside')")
    page.find("#c-8 summary")[0].click()
    page.until("document.querySelector('#c-8[open] svg.circuit')")
    assert page.said() == []
    drawing = data_of(copy / "report.html")["drawings"]
    assert drawing[0] is None and len(drawing[1].encode()) < 12_000

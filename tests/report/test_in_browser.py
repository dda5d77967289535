"""The report where it is read: what its script does, in headless Chromium, offline."""

import pytest
from made_up import SCRIPT
from made_up_page import ODD, pairwise, written

from circuitcore.report import figures

UNDEFINED = "Trouser"
VISIBLE = "return [...document.querySelectorAll('#every tbody tr')].filter(r => !r.hidden)"
NAMES_SHOWN = VISIBLE + ".map(r => r.cells[0].querySelector('button').textContent)"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page") / "report.html", undefined=(UNDEFINED,))


@pytest.fixture
def page(browser, file):
    return browser.open(file)


def test_it_asks_for_nothing_and_complains_of_nothing(page):
    for details in page.find("details"):
        page.run("arguments[0].open = true", details)
    asked = page.asked()
    assert asked[0].startswith("file:") and len(asked) > 1
    assert {url.partition(":")[0] for url in asked[1:]} == {"data"}
    assert page.said() == []


def test_names_are_texts_wherever_the_script_puts_them(page):
    from circuitcore.errors import one_line as clean

    for details in page.find("details.one"):
        page.run("arguments[0].open = true", details)
    headings = page.run("return [...document.querySelectorAll('h3')].map(e => e.textContent)")
    assert headings == [clean(name) for name in ODD]
    assert page.run(NAMES_SHOWN) == headings
    options = "return [...document.querySelector('#picked-curve').options].map(o => o.textContent)"
    assert page.run(options) == headings[1:]  # the first has no curve
    assert page.run("return window.hacked") is None
    assert page.run("return document.querySelectorAll('script').length") == 2
    assert page.run("return document.querySelectorAll('img[onerror]').length") == 0


def test_the_policy_stops_what_is_not_the_pages_own(page):
    page.run("""
        const own = document.createElement("script");
        own.textContent = "window.hacked = 1";
        document.body.append(own);
        const style = document.createElement("style");
        style.textContent = "body { outline: 9px solid red }";
        document.head.append(style);
        const image = document.createElement("img");
        image.src = "https://example.org/x.png";
        document.body.append(image);
        const button = document.createElement("button");
        button.setAttribute("onclick", "window.hacked = 1");
        document.body.append(button);
        button.click();
    """)
    assert page.run("return window.hacked") is None
    assert page.run("return getComputedStyle(document.body).outlineStyle") == "none"
    assert not any(url.startswith("http") for url in page.asked())
    said = " ".join(each["message"] for each in page.said())
    assert said.count("violates the following Content Security Policy") >= 4


def test_search_finds_names_without_their_accents_and_tells_how_many(page):
    box = page.find("#search")[0]
    box.send_keys("NE 🦆".lower()[:2])
    found = page.run(NAMES_SHOWN)
    assert "né 🦆" in found and UNDEFINED not in found
    assert page.text("#count") == f"{len(found)} of {len(ODD)} shown"
    listed = page.run("return [...document.querySelectorAll('h3')].map(e => e.textContent)")
    assert listed == found
    box.clear()
    box.send_keys(SCRIPT)
    assert page.run(NAMES_SHOWN) == [SCRIPT]


def test_the_filter_tells_those_without_a_circuit(page):
    for kind, count in (("none", 1), ("circuit", len(ODD) - 1), ("random", 0), ("all", len(ODD))):
        page.run(
            "const f = document.querySelector('#filter'); f.value = arguments[0];"
            "f.dispatchEvent(new Event('change'))",
            kind,
        )
        assert len(page.run(NAMES_SHOWN)) == count


def test_columns_sort_up_and_down_and_what_is_undefined_comes_last(page):
    head = page.find("#every thead th")[1]
    button = head.find_element("css selector", "button")

    def values():
        return page.run(VISIBLE + ".map(r => r.cells[1].textContent)")

    for kind in ("descending", "ascending"):
        button.send_keys("\n")
        assert head.get_attribute("aria-sort") == kind
        *known, last = values()
        numbers = [float(text.removesuffix(" %")) for text in known]
        assert last == "NA"
        assert numbers == sorted(numbers, reverse=kind == "descending")
        assert numbers[0] != numbers[-1]
    first = page.find("#every thead th")[0]
    first.find_element("css selector", "button").click()
    assert first.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") == "none"
    wanted = page.run("return arguments[0].sort(new Intl.Collator(undefined, {numeric: true})"
                      ".compare)", page.run(NAMES_SHOWN))  # fmt: skip
    assert page.run(NAMES_SHOWN) == wanted


def test_a_section_holds_figures_curve_images_and_what_is_alike(page):
    page.find("#every button.open")[1].click()
    details = page.find("details.one[open]")
    assert len(details) == 1 and page.run("return location.hash") == "#c-1"
    heads = page.run("return [...arguments[0].querySelectorAll('h4')].map(e => e.textContent)",
                     details[0])  # fmt: skip
    assert heads == ["Along the sweep", "Hits: 17, 2 shown", "Misses: 3, 1 shown",
                     "False alarms: 2, 1 shown", "Most similar circuits"]  # fmt: skip
    sizes = page.run("return [...arguments[0].querySelectorAll('.images img')]"
                     ".map(i => [i.naturalWidth, i.alt])", details[0])  # fmt: skip
    assert [size for size, _ in sizes] == [32, 32, 32]
    assert all(": " in alt for _, alt in sizes)
    assert len(page.find("details[open] .images .lost")) == 1
    assert len(page.find("details[open] svg.plot")) == 2
    overlap = pairwise(len(ODD) - 1)[0]
    texts = page.run("return [...arguments[0].querySelectorAll('.similar li')]"
                     ".map(e => e.textContent)", details[0])  # fmt: skip
    best = sorted(overlap[1:], reverse=True)[:5]
    assert [float(t.rpartition(" ")[2]) for t in texts] == pytest.approx(best, abs=5.1e-4)
    page.find("details[open] .similar button")[0].click()
    assert len(page.find("details.one[open]")) == 2


def test_an_address_opens_its_section(browser, file):
    browser.driver.get("about:blank")
    browser.driver.get(file.resolve().as_uri() + "#c-3")
    browser.until("document.querySelector('#c-3[open] .inside')")
    assert browser.text("#c-3 h3") == ODD[3]


def test_the_curve_of_one_category_is_picked_out(page):
    said = page.text("#curve-said")
    assert said.startswith(ODD[1] + ".") and "chosen level" in said
    before = page.run("return document.querySelector('.plot path.picked').getAttribute('d')")
    select = page.find("#picked-curve")[0]
    select.send_keys("\ue015")  # arrow down
    page.until("!document.querySelector('#curve-said').textContent.startsWith('T-shirt')")
    assert page.text("#curve-said").startswith(SCRIPT)
    after = page.run("return document.querySelector('.plot path.picked').getAttribute('d')")
    assert before != after
    assert len(page.find(".plot path.faint")) == 2 * (len(ODD) - 1)


def test_the_curve_under_the_pointer_is_told_and_picked_by_a_click(page):
    page.run("document.querySelector('#sweep svg.plot').scrollIntoView({block: 'center'})")
    place = page.run("""
        const svg = document.querySelector("#sweep svg.plot"), box = svg.getBoundingClientRect();
        const path = svg.querySelectorAll("path.faint")[4], point = path.getPointAtLength(60);
        const scale = box.width / svg.viewBox.baseVal.width;
        return [box.left + point.x * scale, box.top + point.y * scale]""")
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.devtools("Input.dispatchMouseEvent", {
            "type": kind, "x": place[0], "y": place[1], "clickCount": 1,
            "button": "none" if kind == "mouseMoved" else "left"})  # fmt: skip
        if kind == "mouseMoved":
            page.until("document.querySelector('#sweep p.readout').textContent.length > 20")
            told = page.text("#sweep p.readout")
    name = told.removeprefix("Under the pointer: ").removesuffix(" (click to pick it)")
    assert page.text("#curve-said").startswith(name)


def test_arrow_keys_walk_the_matrix_and_the_pair_is_told(page):
    overlap = pairwise(len(ODD) - 1)
    order = figures.cluster_order(overlap)
    names = page.run("return JSON.parse(document.getElementById('data').textContent).names")[1:]
    page.run("document.querySelector('#matrix-canvas').focus()")
    row, column = 0, 1
    for key, down, right in (
        ("\ue015", 1, 0),
        ("\ue014", 0, 1),
        ("\ue014", 0, 1),
        ("\ue013", -1, 0),
    ):
        page.press(key)
        row, column = row + down, column + right
        a, b = order[row], order[column]
        assert page.text("#matrix-said") == (
            f"{names[a]} and {names[b]}: overlap {overlap[a, b]:.3f}"
            if a != b else f"{names[a]}, with itself"
        )  # fmt: skip
    assert len(page.find("#matrix .pair img")) == 2
    page.press("\ue007")  # Enter
    assert page.text("details.one[open] h3") == names[order[row]]


def test_the_matrix_tells_the_pair_under_the_pointer_and_zooms(page):
    overlap = pairwise(len(ODD) - 1)
    order = figures.cluster_order(overlap)
    canvas = page.find("#matrix-canvas")[0]
    page.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    box = page.run("const b = arguments[0].getBoundingClientRect();"
                   "return [b.left, b.top, b.width]", canvas)  # fmt: skip
    gutter = min(120, box[2] * 0.24)
    cell = (box[2] - gutter) / len(order)
    x, y = (box[i] + gutter + (k + 0.5) * cell for i, k in ((0, 5), (1, 2)))
    page.devtools("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    value = f"{overlap[order[2], order[5]]:.3f}"
    page.until(f"document.querySelector('#matrix .big').textContent === '{value}'")
    assert len(page.run("return [...document.querySelectorAll('#matrix .pair')]"
                        ".map(e => e.textContent).filter(Boolean)")) == 2  # fmt: skip
    picture = "return document.querySelector('#matrix-canvas').toDataURL()"
    whole = page.run(picture)
    canvas.send_keys("+")
    near = page.run(picture)
    assert near != whole
    canvas.send_keys("0")
    assert page.run(picture) == whole
    page.find("#matrix button")[0].click()
    assert page.run(picture) == near
    page.find("#stretch")[0].click()
    assert page.run(picture) != near


def test_without_its_script_the_page_still_has_figures_and_table(browser, file):
    page = browser.open(file, script=False)
    try:
        assert page.said() == []
        shown = page.find("#matrix .static svg")[0]
        assert shown.is_displayed() and len(page.find("#every tbody tr")) == len(ODD)
        assert "does not run here" in page.find("noscript")[0].text
    finally:
        browser.devtools("Emulation.setScriptExecutionDisabled", {"value": False})

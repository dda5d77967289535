"""The report for everybody: by keyboard, by ear, in the dark, on paper."""

import re

import pytest
from made_up_page import ODD, written

LEAST_CONTRAST = 4.5  # of text against what is behind it (WCAG 2.2, AA)
# every text's colour against the first opaque background behind it, those below the least
TOO_FAINT = """
const least = arguments[0];
const read = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(element) {
  for (let each = element; each; each = each.parentElement) {
    const colour = read(getComputedStyle(each).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
let seen = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
  if (["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
  const colour = read(element instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
  seen++;
  if ((a + 0.05) / (b + 0.05) < least) found.push(walker.currentNode.textContent.trim());
}
return [seen, found];
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    controls = [{"control": kind, "csa": 0.3, "csa_ci95": (0.2, 0.4), "difference": 0.5,
                 "difference_ci95": (0.4, 0.6), "hit": 0.4, "overlap": 0.5}
                for kind in ("circuit", "random")]  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    return written(path, undefined=("Trouser",), controls=controls)


def everything_open(page):
    page.run("for (const d of document.querySelectorAll('details')) d.open = true")
    page.until("document.querySelectorAll('details.one .inside').length === arguments[0]"
               .replace("arguments[0]", str(len(ODD))))  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_colour_schemes(scheme, browser, file):
    page = browser.open(file, scheme)
    everything_open(page)
    seen, faint = page.run(TOO_FAINT, LEAST_CONTRAST)
    assert seen > 1000 and faint == []
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")
    page.run("document.querySelector('h1').style.color = '#999'")  # the measure itself
    wanted = ["Circuits of made <up>"] if scheme == "light" else []
    assert page.run(TOO_FAINT, LEAST_CONTRAST)[1] == wanted


def test_the_figures_change_with_the_scheme(browser, file):
    page = browser.open(file)
    picture = "return document.querySelector('#matrix-canvas').toDataURL()"
    bar = "return getComputedStyle(document.querySelector('#sweep .picked')).stroke"
    before = page.run(picture), page.run(bar)
    page.media("dark")
    page.until("getComputedStyle(document.querySelector('#sweep .picked')).stroke !== arguments[0]"
               .replace("arguments[0]", repr(before[1])))  # fmt: skip
    page.until(f"{picture.removeprefix('return ')} !== {before[0]!r}")


def test_landmarks_headings_and_names(browser, file):
    page = browser.open(file)
    everything_open(page)
    for selector, count in (("main", 1), ("body > header", 1), ("body > footer", 1), ("h1", 1)):
        assert len(page.find(selector)) == count
    assert page.run("return document.documentElement.lang") == "en"
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3, h4')]"
                      ".map(e => Number(e.tagName[1]))")  # fmt: skip
    assert levels[0] == 1
    assert all(now - before <= 1 for before, now in zip(levels, levels[1:], strict=False))
    tree = page.devtools("Accessibility.getFullAXTree", {})["nodes"]
    roles = {}
    for node in tree:
        if not node.get("ignored"):
            role, name = node["role"]["value"], node.get("name", {}).get("value", "")
            roles.setdefault(role, []).append(name)
    named = ("button", "searchbox", "combobox", "checkbox", "navigation", "region", "link",
             "columnheader", "application")  # fmt: skip
    for role in named:
        assert roles[role] and all(roles[role]), role
    assert {"Find by name", "Circuit picked out"} <= {*roles["searchbox"], *roles["combobox"]}
    assert all(roles.get("image", roles.get("img", ["x"])))
    assert len(roles["rowheader"]) >= len(ODD)
    ids = page.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser, file):
    page = browser.open(file)
    page.press("\ue004")
    assert page.run("return document.activeElement.className") == "skip"
    assert page.run("return document.activeElement.getBoundingClientRect().left") >= 0
    reached = []
    for _ in range(400):
        page.press("\ue004")
        kind, outline = page.run("""
            const e = document.activeElement, s = getComputedStyle(e);
            return [e.id || e.className || e.tagName, s.outlineStyle + " " + s.outlineWidth]""")
        if kind == "BODY":
            break
        reached.append(kind)
        assert outline != "none 0px" and not outline.endswith(" 0px"), kind
        if kind == "SUMMARY" and reached.count("SUMMARY") > 4:
            break
    assert {"picked-curve", "matrix-canvas", "stretch", "search", "filter", "sort", "open"} <= {
        *reached
    }
    page.run("document.querySelector('details.one summary').focus()")
    page.press("\ue007")
    page.until("document.querySelector('details.one[open] .inside')")


def test_nothing_moves_where_less_motion_is_wanted(browser, file):
    page = browser.open(file, motion="reduce")
    behaviour = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert page.run(behaviour) == "auto"
    page.run("document.querySelectorAll('#every button.open')[5].click()")
    place = "return document.querySelector('#c-5').getBoundingClientRect().top"
    assert 0 <= page.run(place) < 200  # it is there at once
    page.media(motion="no-preference")
    assert page.run(behaviour) == "smooth"


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_the_page_is_no_wider_than_its_window(width, browser, file):
    page = browser.open(file, width=width)
    everything_open(page)
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_paper_gets_every_section_and_no_controls(browser, file):
    page = browser.open(file)
    page.run("addEventListener('beforeprint', () => { window.printed = "
             "document.querySelectorAll('details.one[open] .inside').length })")  # fmt: skip
    pdf = page.pdf()
    assert page.run("return window.printed") == len(ODD)
    assert len(page.find("details[open]")) == 0  # as it was, afterwards
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 5
    page.media(kind="print")
    for selector in (".tools", "nav.sections", ".matrix"):
        assert not any(each.is_displayed() for each in page.find(selector)), selector
    assert page.find("#matrix .static svg")[0].is_displayed()
    page.media()

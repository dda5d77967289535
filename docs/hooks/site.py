"""What makes the site more than its Markdown: see `mkdocs.yml`, which names this file.

Pages that restate the code are made from it, so that they cannot drift: options, commands, the API.
Formulas become MathML here, not in the reader's browser, which would have to load a script for it.
Links between the repository's own files hold in the repository and on the site.
"""

import posixpath
import re
from html import unescape
from pathlib import Path

import api_pages
import command_pages
import notebooks
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# pages that are files of the repository outside of docs/, by their place on the site
OUTSIDE = {
    "bench/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/real_network.py": "examples/real_network.py",
    "examples/first_circuit.ipynb": "examples/first_circuit.md",
    "examples/own_network_and_images.ipynb": "examples/own_network_and_images.md",
    "examples/reading_results.ipynb": "examples/reading_results.md",
}
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)
LINK = re.compile(r"(\]\()(?!\w+:|#|<)([^)#\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made: dict[str, str | bytes] = {**command_pages.pages(), **api_pages.pages()}
    for path, page in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".ipynb"):
            text, pictures = notebooks.page(text, Path(path).stem)
            made |= {f"examples/{name}": data for name, data in pictures.items()}
        made[page] = moved_links(text, path, page) if page.endswith(".md") else text
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ point at the page which that file is here."""
    if page.file.generated_by:
        return markdown
    own = page.file.src_uri
    return moved_links(markdown, f"docs/{own}", own)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML."""
    return FORMULA.sub(_mathml, html)


def moved_links(markdown: str, path: str, page: str) -> str:
    """Links of the repository's file ``path`` as they are from ``page`` of the site."""

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[2]))
        if target == "README.md":
            target = "index.md"
        elif target in OUTSIDE:
            target = OUTSIDE[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:  # a file without a page: said as it is called
            return link[0]
        return link[1] + posixpath.relpath(target, posixpath.dirname(page) or ".") + link[3]

    return LINK.sub(moved, markdown)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    tex = unescape(found["tex"]).strip()
    for bar, fence in ((r"\lvert", r"\left|"), (r"\rvert", r"\right|")):  # else spaced as operators
        tex = tex.replace(bar, fence)
    made = convert(tex, display=display)
    if "\\" in made:  # a command that is not known stands in it as it was written
        raise PluginError(f"a formula cannot be made into MathML: {tex}")
    return made

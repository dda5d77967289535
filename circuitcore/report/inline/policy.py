"""A page's own style and script, the policy that lets nothing else run, and data that stay data.

The policy names the style and the script by their sha256, so that whatever a name may smuggle into
the page is neither run nor loaded; figures keep their style attributes, which run nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from importlib.resources import files
from typing import Any

from markupsafe import Markup

ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # in JSON they stand in texts alone


@functools.cache
def own(name: str) -> str:
    """One of the page's own files, ``report.css`` or ``report.js``."""
    return files("circuitcore.report").joinpath("html", name).read_text(encoding="utf-8")


def style() -> Markup:
    """The style element of every page."""
    return Markup(f"<style>{own('report.css')}</style>")  # noqa: S704 - our own file


def script() -> Markup:
    """The script element of pages that have `data_element`."""
    return Markup(f"<script>{own('report.js')}</script>")  # noqa: S704 - our own file


def policy(scripted: bool = True) -> Markup:
    """The content security policy as a meta element: what is not named is neither loaded nor run.

    ``scripted``: whether the page has our script.
    """
    runs = f"script-src {_digest(own('report.js'))}; " if scripted else ""
    told = (
        f"default-src 'none'; {runs}style-src {_digest(own('report.css'))}; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Markup('<meta http-equiv="Content-Security-Policy" content="{}">').format(told)


def _digest(text: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")  # noqa: S704 - base64


def data_element(data: Any) -> Markup:
    """``data`` as JSON that the script reads: no element can begin or end in it, nor a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character, escaped in ESCAPED.items():
        text = text.replace(character, escaped)
    return Markup(f'<script type="application/json" id="data">{text}</script>')  # noqa: S704

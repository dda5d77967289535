"""The pages' templates and how numbers look in them."""

from __future__ import annotations

import jinja2

from circuitcore.errors import one_line
from circuitcore.report.inline.policy import data_element, policy, script, style


def template(name: str) -> jinja2.Template:
    """One of the pages, with the filters that they show numbers by."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("circuitcore", "report/html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda v, d=1: "NA" if v is None else f"{100 * v:.{d}f} %"
    environment.filters["number"] = lambda v, d=3: "NA" if v is None else f"{v:.{d}f}"
    environment.filters["between"] = lambda v, d=3: (
        "NA" if v is None else f"{v[0]:.{d}f} to {v[1]:.{d}f}"
    )
    environment.filters["signed"] = lambda v: "NA" if v is None else f"{v:+.2f}"
    environment.filters["whole"] = lambda v: "NA" if v is None else f"{v:,}"
    environment.filters["clean"] = one_line
    environment.globals |= {
        "style": style, "script": script, "policy": policy, "data_element": data_element
    }  # fmt: skip
    return environment.get_template(name)

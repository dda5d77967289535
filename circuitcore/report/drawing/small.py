"""A circuit drawn small, as SVG for a page: units and ribbons alone, from what the run holds."""

from __future__ import annotations

from html import escape

from circuitcore.analysis.anatomy.anatomy import Anatomy, kept
from circuitcore.report.drawing.layout import Node, Sizes, layout
from circuitcore.runs.folder import RunFolder

SIZES = Sizes(left=0.0, column=0.8, line=0.26, head=0.3, least=0.06, most=0.2)
RIBBONS = 10  # of each layer
SCALE = 72  # units of the drawing an inch


def small_svg(run: RunFolder, unit: int) -> str | None:
    """The anatomy of a circuit that `show` has left in the run folder, as inline SVG of some kB.

    None where there is none.  Colours are the page's variables.
    """
    found = kept(run, unit)
    return None if found is None else drawn(found)


def drawn(found: Anatomy) -> str:
    """The SVG; units are told by their titles."""
    at = layout(found, SIZES)
    height = at.height * SCALE

    def place(node: Node) -> tuple[float, float]:
        return node.x * SCALE, height - node.y * SCALE

    lines = []
    stages = {layer.layer: layer.stage for layer in found.layers}
    for layer in found.layers:
        own = [ribbon for ribbon in found.ribbons if ribbon.layer == layer.layer][:RIBBONS]
        for ribbon in own:
            one = at.nodes[ribbon.source, ribbon.source_unit]
            other = at.nodes[ribbon.layer, ribbon.unit]
            if one.row != other.row:
                continue
            (x, y), (u, v) = place(one), place(other)
            width = 0.3 + 2.7 * ribbon.flow / own[0].flow
            bend = (u - x) / 2
            colour = "fc" if stages[ribbon.layer] == "fc" else "conv"
            lines.append(
                f'<path d="M{x:.0f} {y:.0f}C{x + bend:.0f} {y:.0f} {u - bend:.0f} {v:.0f} '
                f'{u:.0f} {v:.0f}" stroke="var(--{colour})" stroke-width="{width:.1f}"/>'
            )
    for layer in found.layers:
        x, top = at.heads[layer.layer]
        name = escape(layer.layer)
        lines.append(f'<text x="{x * SCALE:.0f}" y="{height - top * SCALE + 11:.0f}">{name}</text>')
        for unit in layer.shown:
            node = at.nodes[layer.layer, unit.unit]
            x, y = place(node)
            shared = "" if unit.shared is None else f", in {unit.shared} of {found.others} others"
            alone = unit.shared == 0 and found.others > 0
            lines.append(
                f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{node.half * SCALE:.1f}"'
                f"{' class=own' if alone else ''}><title>{name} {unit.unit}{shared}</title>"
                "</circle>"
            )
    said = (
        f"{found.nominal:,} weights kept, {found.live:,} of them live, in {len(found.layers)} "
        "layers"
    )
    return (
        f'<svg class="circuit" role="img" viewBox="0 0 {at.width * SCALE:.0f} {height:.0f}" '
        f'aria-label="{escape(said)}" xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'
    )

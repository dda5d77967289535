"""Draws the pictures of the engine's ideas: ``python docs/img/draw.py`` writes them beside itself.

Each stands on a light ground of its own, so that it reads the same on a dark page.
"""

import random
from pathlib import Path
from xml.sax.saxutils import escape

INK, SOFT, FAINT, GROUND = "#1f2937", "#6b7280", "#d7dade", "#fbfbf8"
TEAL, AMBER, RED = "#0f766e", "#d97706", "#b91c1c"
SHADES = ("#134e4a", "#0f766e", "#2fa397", "#8fd3ca")  # from what stays longest
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


class Picture:
    """Shapes of one picture, in units of its view box."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def rect(self, x, y, w, h, fill="none", line="none", dash="", r=2):
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r}" fill="{fill}" '
            f'stroke="{line}"{dashed}/>'
        )

    def circle(self, x, y, r, fill, line="none", dash=""):
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{fill}" stroke="{line}"{dashed}/>'
        )

    def line(self, x1, y1, x2, y2, colour=SOFT, width=1.2, arrow=False, dash=""):
        end = ' marker-end="url(#a)"' if arrow else ""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
            f'stroke-width="{width:g}"{end}{dashed}/>'
        )

    def strip(self, x, y, count, side, height, fill, line="none"):
        """``count`` narrow boxes beside one another, as one path."""
        box = f"h{side - 1:g}v{height}h-{side - 1:g}z"
        path = "".join(f"M{x + side * i:.4g} {y}{box}" for i in range(count))
        if count:
            self.parts.append(f'<path d="{path}" fill="{fill}" stroke="{line}"/>')

    def text(self, x, y, words, size=14, colour=INK, anchor="start", weight=400):
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
        )

    def heading(self, x, y, words, more=""):
        """Bold words, and soft ones behind them."""
        soft = (
            f'<tspan dx="10" font-size="13" font-weight="400" fill="{SOFT}">{escape(more)}</tspan>'
        )
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="15" fill="{INK}" font-weight="600">'
            f"{escape(words)}{soft if more else ''}</text>"
        )

    def write(self, name):
        arrow = (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>'
        )
        whole = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="{FONT}" role="img">',
            f"<title>{escape(self.title)}</title>",
            arrow,
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{GROUND}" '
            f'stroke="{FAINT}"/>',
            *self.parts,
            "</svg>",
        ]
        (Path(__file__).parent / f"{name}.svg").write_text("\n".join(whole) + "\n", "utf-8")


def nesting():
    picture = Picture(
        820, 330, "Nested masks, and sums built from the sparsest level to the densest"
    )
    chance = random.Random(3)
    rows, columns, side = 6, 8, 13
    cells = list(range(rows * columns))
    chance.shuffle(cells)
    counts = (48, 24, 11, 4)  # kept at the four levels
    byte = {cell: sum(place < n for n in counts) for place, cell in enumerate(cells)}
    picture.text(24, 32, "Masks of one layer at four levels", 15, weight=600)
    for level, kept in enumerate(counts):
        x = 24 + level * 128
        for cell in range(rows * columns):
            left, top = x + cell % columns * side, 48 + cell // columns * side
            keeps = byte[cell] > level
            fill = SHADES[4 - byte[cell]] if keeps else "#ffffff"
            picture.rect(left, top, side - 2, side - 2, fill, "none" if keeps else FAINT, r=1)
        picture.text(x + 51, 144, f"level {level}: {kept} kept", 13, SOFT, "middle")
    picture.text(560, 32, "One byte a weight", 15, weight=600)
    for cell in range(rows * columns):
        left, top = 560 + cell % columns * 26, 42 + cell // columns * 16
        picture.rect(left, top, 24, 14, SHADES[4 - byte[cell]], r=1)
        light = "#ffffff" if byte[cell] > 1 else INK
        picture.text(left + 12, top + 11, str(byte[cell]), 11, light, "middle")
    picture.text(560, 156, "kept at level t if its byte > t", 13, SOFT)
    picture.text(24, 192, "The layer's outputs at all levels", 15, weight=600)
    x, before = 24, 0
    for step, level in enumerate((3, 2, 1, 0)):
        more = counts[level] - before
        before = counts[level]
        picture.rect(x, 208, 8 + 5 * more, 30, SHADES[step], r=3)
        picture.text(x + 4, 258, f"y{'₀₁₂₃'[level]}", 15, weight=600)
        said = f"{more} weights" if not step else f"+ {more}"
        picture.text(x + 4, 276, said, 13, SOFT)
        x += 8 + 5 * more + (64 if not step else 44)
        if step < 3:
            picture.text(x - (32 if not step else 22), 229, "+", 18, INK, "middle")
    picture.text(24, 308, "48 products in all for four levels, not 48 + 24 + 11 + 4: each weight "
                 "is multiplied once, from the sparsest level on.", 13, SOFT)  # fmt: skip
    picture.write("nesting")


def blocks(picture, x, y, names, fill):
    """A chain of layers; where it ends."""
    for name in names:
        picture.rect(x, y, 58, 30, fill, r=4)
        picture.text(x + 29, y + 20, name, 13, "#ffffff", "middle")
        picture.line(x + 58, y + 15, x + 72, y + 15, arrow=True)
        x += 74
    return x


def prefix():
    picture = Picture(
        820, 380, "What levels share is computed once, and every level starts from it"
    )
    conv, fc = [f"conv{i}" for i in range(1, 6)], ["fc6", "fc7", "row c"]
    picture.heading(24, 32, "fc stage", "convolutions are whole at every level")
    end = blocks(picture, 24, 86, conv, TEAL)
    picture.rect(end, 76, 86, 50, "#ffffff", TEAL, r=4)
    picture.text(end + 43, 97, "features", 13, INK, "middle")
    picture.text(end + 43, 114, "kept", 13, SOFT, "middle")
    for level, y in enumerate((50, 98, 146)):
        picture.line(end + 86, 101, end + 118, y + 15, arrow=True)
        blocks(picture, end + 120, y, fc, AMBER)
        picture.text(end + 344, y + 20, f"a, {('level 1', 'level 2', '…')[level]}", 13, SOFT)
    picture.text(24, 146, "once, for all levels and all categories", 13, TEAL)
    picture.text(24, 164, "(with the unpruned network's logits)", 13, TEAL)
    picture.line(24, 204, 796, 204, FAINT)
    said = "the fc circuit is fixed; of convolutions what is kept, level by level"
    picture.heading(24, 236, "conv stage", said)
    for row, share in enumerate((0.9, 0.62, 0.36)):
        y = 256 + row * 38
        picture.text(24, y + 19, f"level {row + 1}", 13, SOFT)
        x = 96
        for layer in range(5):
            wide = 66 * (1 if not layer else share)
            picture.rect(x, y, wide, 28, AMBER, r=4)
            picture.line(x + wide, y + 14, x + wide + 13, y + 14, arrow=True)
            x += wide + 15
        picture.line(x - 2, y + 14, 510, 308, dash="3 3")
    picture.rect(512, 288, 150, 40, TEAL, r=4)
    picture.text(587, 313, "fc, compacted once", 13, "#ffffff", "middle")
    picture.line(662, 308, 690, 308, arrow=True)
    picture.text(696, 313, "a, every level", 13, SOFT)
    picture.write("prefix")


def layers_of(picture, x, spots, constant, unread, edges):
    """One small network: units by layer at their spots, edges between those given."""
    for (a, i), (b, j) in edges:
        dead = (a, i) in constant or (b, j) in unread
        colour, dash = (FAINT, "3 3") if dead else (SOFT, "")
        picture.line(x + a * 92, spots[a][i], x + b * 92, spots[b][j], colour, 1.3, dash=dash)
    for layer, ys in spots.items():
        for unit, y in ys.items():
            here = (layer, unit)
            if here in constant:
                picture.circle(x + layer * 92, y, 13, "#ffffff", AMBER)
                picture.text(x + layer * 92, y + 5, "k", 13, AMBER, "middle", 600)
            elif here in unread:
                picture.circle(x + layer * 92, y, 13, "#ffffff", SOFT, "3 3")
            else:
                picture.circle(x + layer * 92, y, 13, TEAL)


def compaction():
    picture = Picture(820, 330, "Constant units are folded into biases, unread ones are dropped")
    spots = {
        0: {i: 84 + 46 * i for i in range(4)},
        1: {i: 62 + 46 * i for i in range(5)},
        2: {i: 84 + 46 * i for i in range(4)},
        3: {0: 153},
    }
    constant, unread = {(1, 1), (2, 3)}, {(1, 4), (2, 0)}
    edges = [
        ((0, 0), (1, 0)), ((0, 1), (1, 0)), ((0, 1), (1, 2)), ((0, 2), (1, 2)), ((0, 2), (1, 3)),
        ((0, 3), (1, 3)), ((0, 3), (1, 4)), ((0, 1), (1, 4)), ((1, 0), (2, 1)), ((1, 2), (2, 1)),
        ((1, 2), (2, 2)), ((1, 3), (2, 2)), ((1, 1), (2, 2)), ((1, 0), (2, 0)), ((1, 2), (2, 0)),
        ((2, 1), (3, 0)), ((2, 2), (3, 0)), ((2, 3), (3, 0)), ((1, 1), (2, 3)),
    ]  # fmt: skip
    picture.heading(24, 32, "Pruned", "lines are the weights that are kept")
    layers_of(picture, 48, spots, constant, unread, edges)
    picture.line(370, 153, 428, 153, INK, 2, arrow=True)
    picture.heading(470, 32, "Compacted", "smaller products")
    gone = constant | unread
    left = {a: {i: y for i, y in ys.items() if (a, i) not in gone} for a, ys in spots.items()}
    kept = [(a, b) for a, b in edges if a not in gone and b not in gone]
    layers_of(picture, 492, left, set(), set(), kept)
    for x, y in ((492 + 2 * 92, left[2][2]), (492 + 3 * 92, left[3][0])):
        picture.text(x + 17, y + 20, "+ k", 13, AMBER, weight=600)
    y = 284
    picture.circle(36, y - 5, 9, "#ffffff", AMBER)
    picture.text(36, y - 1, "k", 11, AMBER, "middle", 600)
    picture.text(52, y, "nothing kept reaches it from the image: a constant, folded into the next "
                 "layer's bias", 13)  # fmt: skip
    picture.circle(36, y + 21, 9, "#ffffff", SOFT, "3 3")
    picture.text(52, y + 26, "nothing kept reads it: not computed", 13)
    picture.write("compaction")


def screening():
    picture = Picture(820, 366, "Which images are run at which level")
    groups = (("the category's", 20, TEAL), ("hardest others", 24, AMBER), ("control", 12, SOFT),
              ("all other images, nearest to a false alarm first", 56, None))  # fmt: skip
    levels = (
        ("level 1", "holds: few open", 7), ("level 2", "holds: few open", 3),
        ("level 3", "holds", 12), ("level 4", "fails: certain", 0),
        ("level 3 again", "run whole", 56),
    )  # fmt: skip
    left, side = 136, 4.6
    picture.text(24, 32, "Images of the extraction set", 15, weight=600)
    x = left
    for name, count, colour in groups:
        picture.rect(x, 62, count * side - 4, 4, colour or FAINT, r=2)
        picture.text(x, 54, name, 12, INK if colour is None else colour)
        x += count * side + 6
    for row, (name, said, more) in enumerate(levels):
        y = 84 + row * 40 + (10 if row == 4 else 0)
        fails, whole = row == 3, row == 4
        picture.text(24, y + 16, name, 13, RED if fails else INK, weight=600 if whole else 400)
        x = left
        for _, count, colour in groups:
            run = count if colour is not None else more
            picture.strip(x, y, run, side, 22, colour or "#7c9a97")
            picture.strip(x + run * side, y, count - run, side, 22, "#ffffff", FAINT)
            x += count * side
            x += 6
        picture.text(x + 6, y + 16, said, 13, RED if fails else SOFT)
    picture.text(24, 312, "A level that fails on the category's images and the hardest others "
                 "fails:", 13, SOFT)  # fmt: skip
    picture.text(24, 330, "images that are not run could only add false alarms. Filled: run at "
                 "that level.", 13, SOFT)  # fmt: skip
    picture.text(24, 348, "The level that is chosen is run on every image before it is recorded.",
                 13, SOFT)  # fmt: skip
    picture.write("screening")


def cost():
    picture = Picture(820, 250, "Forward-pass equivalents a category, naive to screened")
    rows = (
        ("naive: the whole network at every level", 64.0, FAINT),
        ("every level on every image, planned", 12.54, AMBER),
        ("and screened, first-crossing", 0.87, TEAL),
    )
    said = "20 images of a category in 20,000, 32 + 32 levels, counted"
    picture.heading(24, 32, "Forward-pass equivalents a category", said)
    for row, (name, value, colour) in enumerate(rows):
        y = 52 + row * 56
        picture.text(24, y + 16, name, 14)
        picture.rect(24, y + 24, max(10.5 * value, 3), 18, colour, r=3)
        picture.text(24 + max(10.5 * value, 3) + 8, y + 38, f"{value:g}", 14, INK, weight=600)
    picture.text(24, 234, "One is a pass of the extraction images through the unpruned network. "
                 "pytest -s bench/e2e/test_fpe.py", 13, SOFT)  # fmt: skip
    picture.write("cost")


if __name__ == "__main__":
    for draw in (nesting, prefix, compaction, screening, cost):
        draw()

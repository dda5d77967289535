"""A report of made-up records and pictures: no model, no images, no run folder."""

import numpy as np
from made_up import NAMES, sweep
from PIL import Image

from circuitcore.report.inline.pictures import Pictures, Seen, Shown, encoded
from circuitcore.report.page import render

BREAKING = "</script><script>window.hacked = 1</script>"
IMAGE = '"><img src=x onerror="window.hacked = 1">'
ODD = (*NAMES, BREAKING, IMAGE, "]]> <!-- ${window.hacked = 1} \\u003c")


def pairwise(count, seed=0):
    """Overlaps that differ, float64 [K, K]."""
    generator = np.random.default_rng(seed)
    half = np.triu(generator.uniform(0.1, 0.9, (count, count)), 1)
    return half + half.T + np.eye(count)


def thumbnail(seed, side=32, kind=Image.Resampling.BICUBIC):
    """A smooth coloured picture, as base64."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((64, 64), kind), side)


def pictures(names, images=True):
    """A picture a category, and what was said of some images of each."""
    thumbs = [thumbnail(seed) for seed in range(len(names))]
    seen = Seen(
        17, 3,
        [Shown(0, names[0], 2.5, 3.0), Shown(None, names[0], 0.5, -1.0)],
        [Shown(1, names[0], -0.25, 1.0)],
        [Shown(2, names[-1], 1.25, None)],
    )  # fmt: skip
    own = {unit: unit for unit in range(len(names))}
    return Pictures(thumbs, own, {unit: seen for unit in own} if images else {})


def written(path, names=ODD, undefined=(), controls=(), **extra):
    """Write a report of these names; its path."""
    kept = [n for n in names if n not in undefined]
    overlap = pairwise(len(kept))
    shown = {"pictures": pictures(names), **extra}
    text = render(sweep(names, undefined), kept, overlap, overlap / 3, controls, **shown)
    path.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path

"""Images of a thousand characters: Debian's free fonts, drawn at random pose on random ground.

`FONTS` are drawn for training, `UNSEEN` only for the validation split, so that what is recognised
there is the character, not the font.  Characters are kanji of JIS level 1 that every font has;
of two that look alike in any font one is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Debian package -> (font file, licence)
FONTS = {
    "fonts-ipafont-gothic": ("opentype/ipafont-gothic/ipag.ttf", "IPA 1.0"),
    "fonts-ipafont-mincho": ("opentype/ipafont-mincho/ipam.ttf", "IPA 1.0"),
    "fonts-mplus": ("opentype/mplus/Mplus1-Medium.otf", "OFL 1.1"),
    "fonts-noto-cjk": ("opentype/noto/NotoSerifCJK-Bold.ttc", "OFL 1.1"),
    "fonts-morisawa-bizud-gothic": ("truetype/bizud-gothic/BIZUDGothic-Regular.ttf", "OFL 1.1"),
    "fonts-motoya-l-cedar": ("truetype/motoya-l-cedar/MTLc3m.ttf", "Apache 2"),
    "fonts-sawarabi-gothic": ("truetype/sawarabi-gothic/sawarabi-gothic-medium.ttf", "CC BY 3.0"),
    "fonts-klee": ("truetype/klee/KleeOne-Regular.ttf", "OFL 1.1"),
    "fonts-dotgothic16": ("truetype/dotgothic16/DotGothic16-Regular.ttf", "OFL 1.1"),
    "fonts-rocknroll": ("truetype/rocknroll/RocknRollOne-Regular.ttf", "OFL 1.1"),
    "fonts-reggae": ("truetype/reggae/ReggaeOne-Regular.ttf", "OFL 1.1"),
    "fonts-konatu": ("truetype/konatu/Konatu.ttf", "MIT"),
    "fonts-dejima-mincho": ("truetype/dejima-mincho/dejima-mincho-r227.ttf", "MIT"),
    "fonts-kiloji": ("truetype/kiloji/kiloji.ttf", "BSD 3-clause"),
    "fonts-seto": ("truetype/seto/setofont.ttf", "OFL 1.1"),
    "fonts-wqy-microhei": ("truetype/wqy/wqy-microhei.ttc", "Apache 2"),
}
UNSEEN = {
    "fonts-morisawa-bizud-mincho": ("truetype/bizud-mincho/BIZUDMincho-Regular.ttf", "OFL 1.1"),
    "fonts-motoya-l-maruberi": ("truetype/motoya-l-maruberi/MTLmr3m.ttf", "Apache 2"),
    "fonts-hanazono": ("truetype/hanazono/HanaMinA.ttf", "OFL 1.1"),
    "fonts-yozvox-yozfont": ("truetype/yozvox-yozfont/YOzRNF.ttf", "OFL 1.1"),
}
PLACE = Path("/usr/share/fonts")
BOX = 64  # pixels of a glyph in the atlas, its ink in the middle 56
ALIKE = 0.85  # ink in common over ink in either, of two glyphs of one font, centred

Fonts = Mapping[str, tuple[str, str]]


def font_files(fonts: Fonts) -> list[Path]:
    """The files of fonts; raises FileNotFoundError naming the packages to install."""
    missing = [package for package, (file, _) in fonts.items() if not (PLACE / file).exists()]
    if missing:
        raise FileNotFoundError(f"fonts are missing: apt-get install {' '.join(missing)}")
    return [PLACE / file for file, _ in fonts.values()]


def kanji() -> list[str]:
    """The 2,965 kanji of JIS X 0208 level 1."""
    found = []
    for row in range(16, 48):
        for cell in range(1, 95):
            try:
                found.append(bytes([row + 0xA0, cell + 0xA0]).decode("euc_jp"))
            except UnicodeDecodeError:
                continue
    return found


def glyphs(font: Path, characters: Sequence[str]) -> np.ndarray:
    """Ink uint8 [characters, BOX, BOX], each centred by its own extent."""
    drawn = ImageFont.truetype(str(font), 56)
    out = np.zeros((len(characters), BOX, BOX), np.uint8)
    for place, character in enumerate(characters):
        image = Image.new("L", (BOX, BOX))
        left, top, right, bottom = drawn.getbbox(character)
        at = (BOX - left - right) / 2, (BOX - top - bottom) / 2
        ImageDraw.Draw(image).text(at, character, fill=255, font=drawn)
        out[place] = np.asarray(image)
    return out


def choose_characters(fonts: Sequence[Path], count: int, seed: int) -> list[str]:
    """``count`` characters that all fonts have, no two of them alike in any font."""
    order = np.random.default_rng(seed).permutation(kanji())
    pool = [str(character) for character in order[: count + count // 2 + 40]]
    alike = np.zeros((len(pool), len(pool)), bool)
    blank = np.zeros(len(pool), bool)
    for font in fonts:
        absent = glyphs(font, ["\uffff"])[0]  # what the font draws for what it does not have
        ink = glyphs(font, pool)
        blank |= (ink == absent).all(axis=(1, 2)) | (ink.max(axis=(1, 2)) == 0)
        coarse = F.avg_pool2d(torch.from_numpy(ink).float()[:, None] / 255, 2).flatten(1)
        both = coarse @ coarse.T
        own = both.diagonal()
        alike |= (both / (own[:, None] + own - both) > ALIKE).numpy()
    chosen: list[int] = []
    for place in range(len(pool)):
        if not blank[place] and not alike[place, chosen].any():
            chosen.append(place)
    if len(chosen) < count:
        raise ValueError(f"only {len(chosen)} of {len(pool)} characters are in all fonts, unalike")
    return [pool[place] for place in chosen[:count]]


@dataclass(frozen=True)
class Atlas:
    """Ink of every character in every font: ``ink`` uint8 [fonts, characters, BOX, BOX]."""

    ink: Tensor

    @classmethod
    def of(cls, fonts: Sequence[Path], characters: Sequence[str]) -> Atlas:
        return cls(torch.from_numpy(np.stack([glyphs(font, characters) for font in fonts])))

    def draw(
        self, characters: Tensor, pixels: int, random: torch.Generator, hard: float = 1.0
    ) -> Tensor:
        """Images of characters (int64 [n], places in the atlas), float32 [n, 1, pixels, pixels].

        In [0, 1]: any font, turned, sheared, scaled and moved, blurred, light on dark or dark on
        light ground with a slope and blots, and noise on all of it; all of that ``hard`` times as
        much, from 0 (upright, centred, clean) to 1.
        """
        n = len(characters)

        def between(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=random)

        fonts = torch.randint(len(self.ink), (n,), generator=random)
        ink = self.ink[fonts, characters][:, None].float() / 255
        turn, shear = hard * between(-0.45, 0.45), hard * between(-0.25, 0.25)
        size = 1 - hard * between(0, 0.6)
        free = hard * (1.05 - size)[:, None] * between(-1, 1, 2)
        cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
        rows = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], 1).view(n, 2, 2)
        pose = torch.cat([rows, -(rows @ free[:, :, None])], 2)
        ink = F.grid_sample(
            ink, F.affine_grid(pose, [n, 1, pixels, pixels], align_corners=False),
            align_corners=False,
        )  # fmt: skip
        blur = between(0, 1, 1, 1, 1)
        ink = blur * F.avg_pool2d(ink, 3, 1, 1) + (1 - blur) * ink
        blots = F.interpolate(between(-0.25, 0.25, 1, 5, 5), size=pixels, mode="bilinear")
        along = torch.linspace(-1, 1, pixels)
        slope = between(-0.2, 0.2, 1, 1, 1) * along + between(-0.2, 0.2, 1, 1, 1) * along[:, None]
        ground = between(0.1, 0.9, 1, 1, 1) + hard * (blots + slope)
        lighter = torch.where(between(0, 1, 1, 1, 1) < 0.5, -1.0, 1.0)
        image = ground + ink * lighter * between(0.2, 0.65, 1, 1, 1)
        noise = torch.randn(image.shape, generator=random) * between(0, 0.14, 1, 1, 1)
        return (image + hard * noise).clamp(0, 1)


def folder_name(character: str) -> str:
    """``U+4E9C``: the category's folder."""
    return f"U+{ord(character):04X}"


def write_folder(
    out: Path, characters: Sequence[str], pixels: int, train: int, val: int, seed: int
) -> Path:
    """``out/train/U+4E9C/000.png`` and ``out/val/...``: grey PNGs, ``val`` in unseen fonts."""
    for split, fonts, count in (("train", FONTS, train), ("val", UNSEEN, val)):
        atlas = Atlas.of(font_files(fonts), characters)
        random = torch.Generator().manual_seed(seed + 1000 + len(split))
        for place, images in drawn(atlas, count, pixels, random):
            folder = out / split / folder_name(characters[place])
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{number:03d}.png", compress_level=3)
    return out


def drawn(
    atlas: Atlas, count: int, pixels: int, random: torch.Generator, hard: float = 1.0
) -> Iterator[tuple[int, np.ndarray]]:
    """Place and ``count`` images, uint8 [count, pixels, pixels], of one character after another."""
    for place in range(atlas.ink.shape[1]):
        images = atlas.draw(torch.full((count,), place), pixels, random, hard)
        yield place, (255 * images[:, 0]).round().byte().numpy()


def sheet(images: np.ndarray, columns: int = 16) -> Image.Image:
    """A contact sheet of grey images uint8 [n, h, w], to look at."""
    n, h, w = images.shape
    out = np.zeros((math.ceil(n / columns) * h, columns * w), np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        out[row * h : (row + 1) * h, column * w : (column + 1) * w] = image
    return Image.fromarray(out)

"""The named colours and patterns of procedural assets, and the textures that show them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 28, 36),
    "orange": (245, 125, 15),
    "yellow": (250, 214, 40),
    "green": (38, 140, 50),
    "cyan": (40, 195, 205),
    "blue": (26, 88, 205),
    "purple": (118, 34, 146),
    "pink": (247, 140, 190),
    "white": (236, 236, 236),
    "black": (30, 30, 34),
}
"""sRGB of every named colour. Evaluation measures generated colours against this very table."""

DARK_ON = frozenset({"yellow", "white"})
"""Colours too light for a white pattern: theirs is black."""

NATURAL: dict[str, tuple[int, int, int]] = {
    "wood": (139, 98, 62),
    "dark wood": (92, 62, 42),
    "iron": (58, 60, 66),
    "steel": (168, 172, 178),
    "rubber": (40, 40, 42),
    "gold": (205, 165, 70),
    "cream": (238, 224, 190),
    "slate": (92, 96, 108),
    "brick": (150, 84, 66),
    "terracotta": (192, 110, 76),
    "waffle": (214, 164, 96),
    "carrot": (232, 122, 40),
    "glass": (120, 150, 172),
    "light": (250, 240, 190),
    "tail light": (170, 36, 36),
    "coal": (28, 28, 30),
}
"""sRGB of the parts that keep their colour whatever the asset is called."""

PATTERN_TEXTURE_PX = 128
"""Side of a pattern's texture, which holds one period."""


@dataclass(frozen=True)
class Pattern:
    """What a surface pattern is called and how large it is.

    Args:
        plural: how a caption names it; empty for plain.
        period: one period of the texture, world units; an asset is about 1 long.
    """

    plural: str
    period: float


PATTERNS: dict[str, Pattern] = {
    "plain": Pattern("", 0.25),
    "stripes": Pattern("stripes", 0.145),
    "dots": Pattern("dots", 0.19),
    "checkers": Pattern("checkers", 0.25),
    "zigzags": Pattern("zigzags", 0.2),
}
"""At 64 px a period spans 8 to 15 pixels."""


def pattern_colour(colour: str, pattern: str) -> str:
    """Return the name of the second colour; empty for plain."""
    if pattern == "plain":
        return ""
    return "black" if colour in DARK_ON else "white"


def caption(category: str, colour: str, pattern: str) -> str:
    """Return the true caption, such as `a blue mug with white stripes`."""
    article = "an" if colour[0] in "aeiou" else "a"
    text = f"{article} {colour} {category}"
    if pattern == "plain":
        return text
    return f"{text} with {pattern_colour(colour, pattern)} {PATTERNS[pattern].plural}"


def pattern_texture(colour: str, pattern: str) -> UInt8[ndarray, "h w 3"]:
    """Return one period of a pattern as sRGB, top row first; its middle shows the second colour.

    More than half of it has the named colour, so that this is the dominant one.
    """
    base = np.array(COLOURS[colour], dtype=np.float64)
    if pattern == "plain":
        return np.broadcast_to(base.astype(np.uint8), (8, 8, 3)).copy()
    second = np.array(COLOURS[pattern_colour(colour, pattern)], dtype=np.float64)
    share = _second_share(pattern)[..., None]
    return np.rint(base + share * (second - base)).astype(np.uint8)


@lru_cache
def _second_share(pattern: str) -> Float[ndarray, "h w"]:
    """Return the anti-aliased share of the second colour in each texel, in [0, 1]."""
    oversampling = 4
    side = PATTERN_TEXTURE_PX * oversampling
    axis = (np.arange(side) + 0.5) / side
    u, v = np.meshgrid(axis, axis)
    if pattern == "stripes":
        mask = np.abs(v - 0.5) < 0.21
    elif pattern == "dots":
        mask = np.hypot(u - 0.5, v - 0.5) < 0.32
    elif pattern == "checkers":  # a little smaller than half a period: the base colour dominates
        column, row = np.abs((2 * u) % 1 - 0.5), np.abs((2 * v) % 1 - 0.5)
        mask = ((u < 0.5) == (v < 0.5)) & (np.maximum(column, row) < 0.47)
    elif pattern == "zigzags":
        mask = np.abs(v - 0.3 - 0.4 * (1 - np.abs(2 * u - 1))) < 0.2
    else:
        raise ValueError(f"unknown pattern {pattern!r}: known are {', '.join(PATTERNS)}")
    blocks = mask.reshape(PATTERN_TEXTURE_PX, oversampling, PATTERN_TEXTURE_PX, oversampling)
    return blocks.mean(axis=(1, 3))

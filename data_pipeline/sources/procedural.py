"""Assets made by code: each a category, a named colour and a pattern, with a true caption."""

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from tqdm import tqdm

from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset
from data_pipeline.sources.glb import Coat, encode_glb, read_extras
from data_pipeline.sources.patterns import (
    COLOURS,
    NATURAL,
    PATTERNS,
    caption,
    pattern_colour,
    pattern_texture,
)
from data_pipeline.sources.shapes import CATEGORIES, Part
from data_pipeline.sources.shapes.part import MAIN
from data_pipeline.sources.surfaces import join

GENERATION = 2
"""Raise it when the same recipe gives other bytes: files of another generation are made again."""


@dataclass(frozen=True)
class Recipe:
    """What asset `index` of a seed is; it does not depend on how many assets are asked for."""

    seed: int
    index: int
    category: str
    colour: str
    pattern: str

    @property
    def uid(self) -> str:
        """A name such as `mug_blue_stripes_s0_0007`."""
        return make_uid(
            f"{self.category}_{self.colour}_{self.pattern}_s{self.seed}_{self.index:04d}"
        )

    @property
    def caption(self) -> str:
        """A true caption, such as `a blue mug with white stripes`."""
        return caption(self.category, self.colour, self.pattern)

    @property
    def attributes(self) -> dict[str, str]:
        """What evaluation may check."""
        return {
            "category": self.category,
            "colour": self.colour,
            "pattern": self.pattern,
            "pattern_colour": pattern_colour(self.colour, self.pattern),
        }

    @cached_property
    def extras(self) -> dict[str, str]:
        """What the file says of itself, by which a file made for another recipe is known."""
        identity = {"generation": str(GENERATION), "seed": str(self.seed), "uid": self.uid}
        return identity | {"caption": self.caption} | self.attributes

    def parts(self) -> list[Part]:
        """Return the parts of the shape, proportions drawn from seed and index."""
        rng = Random(f"proportions:{self.seed}:{self.index}")
        return CATEGORIES[self.category](rng, PATTERNS[self.pattern].period)

    def glb(self) -> bytes:
        """Return the file: one primitive per colour, the main one first."""
        surfaces = defaultdict(list)
        for part in sorted(self.parts(), key=lambda part: part.colour != MAIN):
            surfaces[part.colour].append(part.surface)
        texture = pattern_texture(self.colour, self.pattern)
        coats = [
            Coat(colour, join(*parts), texture if colour == MAIN else NATURAL[colour])
            for colour, parts in surfaces.items()
        ]
        return encode_glb(self.category, coats, self.extras)


def recipe(seed: int, index: int) -> Recipe:
    """Return what asset `index` is.

    Every run of `len(CATEGORIES)` assets shows each category once; over such runs each category
    goes through all its combinations of colour and pattern before any of them returns.
    """
    block, place = divmod(index, len(CATEGORIES))
    category = _shuffled(list(CATEGORIES), f"categories:{seed}:{block}")[place]
    looks = [(colour, pattern) for colour in COLOURS for pattern in PATTERNS]
    lap, turn = divmod(block, len(looks))
    colour, pattern = _shuffled(looks, f"looks:{seed}:{category}:{lap}")[turn]
    return Recipe(seed, index, category, colour, pattern)


def _shuffled(items: list, key: str) -> list:
    """Return the items in an order that depends on the key alone."""
    return Random(key).sample(items, len(items))


class ProceduralSource:
    """Writes procedural assets as GLBs into a folder, and lists them.

    Whole files are kept; missing, damaged and outdated ones are written, each in one move, so an
    interrupted run goes on where it stopped.

    Args:
        root: folder of the GLBs; made when missing.
        count: how many assets; asset `i` is the same for every count.
        seed: another seed gives other shapes, under other uids.
    """

    def __init__(self, root: str | Path, count: int = 64, seed: int = 0) -> None:
        if count < 1:
            raise UserError(f"source.count={count} of source=procedural must be at least 1")
        self.root = Path(root)
        self.recipes = [recipe(seed, index) for index in range(count)]

    def assets(self) -> list[Asset]:
        """Write what is missing and return the assets, sorted by uid.

        Raises:
            UserError: the folder cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            todo = [recipe for recipe in self.recipes if not self._is_done(recipe)]
            for recipe in tqdm(todo, "procedural assets", unit="asset", disable=len(todo) < 100):
                self._write(recipe)
        except OSError as error:
            raise UserError(
                f"cannot write procedural assets to source.root={self.root}: {error.strerror}; "
                "name a folder that can be written"
            ) from error
        return sorted((self._asset(recipe) for recipe in self.recipes), key=lambda asset: asset.uid)

    def _path(self, recipe: Recipe) -> Path:
        return self.root / f"{recipe.uid}.glb"

    def _is_done(self, recipe: Recipe) -> bool:
        path = self._path(recipe)
        return path.is_file() and read_extras(path.read_bytes()) == recipe.extras

    def _write(self, recipe: Recipe) -> None:
        path = self._path(recipe)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(recipe.glb())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _asset(self, recipe: Recipe) -> Asset:
        return Asset(
            uid=recipe.uid,
            path=self._path(recipe),
            captions=(recipe.caption,),
            licence="CC0-1.0",
            author="Relief",
            source="procedural",
            attributes=recipe.attributes,
        )

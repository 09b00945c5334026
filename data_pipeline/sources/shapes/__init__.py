"""What procedural assets look like: one function per category, grouped by theme.

Each takes a random generator and the period of the pattern, and returns the closed parts of a shape
about 1 long, Z up, its front at -Y.
"""

from collections.abc import Callable
from random import Random

from data_pipeline.sources.shapes.dishes import bottle, ice_cream_cone, mug, teapot
from data_pipeline.sources.shapes.furniture import bench, chair, lamp, table
from data_pipeline.sources.shapes.nature import cactus, mushroom, snowman, tree
from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.shapes.tools import hammer, house, sword, umbrella
from data_pipeline.sources.shapes.vehicles import airplane, boat, car, rocket

CATEGORIES: dict[str, Callable[[Random, float], list[Part]]] = {
    "airplane": airplane,
    "bench": bench,
    "boat": boat,
    "bottle": bottle,
    "cactus": cactus,
    "car": car,
    "chair": chair,
    "hammer": hammer,
    "house": house,
    "ice cream cone": ice_cream_cone,
    "lamp": lamp,
    "mug": mug,
    "mushroom": mushroom,
    "rocket": rocket,
    "snowman": snowman,
    "sword": sword,
    "table": table,
    "teapot": teapot,
    "tree": tree,
    "umbrella": umbrella,
}
"""Categories by the noun that captions use."""

__all__ = ["CATEGORIES", "Part"]

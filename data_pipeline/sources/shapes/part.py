"""One part of a procedural shape."""

from dataclasses import dataclass

from data_pipeline.sources.surfaces import Surface

MAIN = "main"
"""The colour of the parts that carry the asset's named colour and pattern."""


@dataclass(frozen=True)
class Part:
    """A closed surface and what it is painted with.

    Args:
        name: what the part is, such as `handle`.
        surface: closed, faces outwards.
        colour: `MAIN`, or a key of `patterns.NATURAL`.
    """

    name: str
    surface: Surface
    colour: str = MAIN

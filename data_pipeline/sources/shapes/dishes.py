"""Things from the kitchen."""

import math
from random import Random

import numpy as np

from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.surfaces import arc, box, ellipsoid, revolve, tube

_SIDEWAYS = (0.0, 1.0, 0.0)


def mug(rng: Random, period: float) -> list[Part]:
    """A mug with its handle at the right-hand side."""
    radius, height, wall = rng.uniform(0.32, 0.4), rng.uniform(0.72, 0.95), 0.05
    foot = radius * rng.uniform(0.8, 1.0)
    inside = foot - wall
    profile = [
        (0, 0),
        (foot, 0),
        (radius, height),
        (radius - wall, height),
        (inside, wall),
        (0, wall),
    ]
    middle, reach = height * rng.uniform(0.48, 0.56), rng.uniform(0.24, 0.3)
    grip = height * rng.uniform(0.26, 0.32)
    start = (foot + radius) / 2 - wall / 2
    handle = arc((start, 0.0, middle), (reach, grip), -90, 90)
    return [
        Part("body", revolve(profile, period)),
        Part("handle", tube(handle, rng.uniform(0.05, 0.065), _SIDEWAYS, period)),
    ]


def bottle(rng: Random, period: float) -> list[Part]:
    """A bottle with a cork or a cap."""
    radius, neck = rng.uniform(0.17, 0.23), rng.uniform(0.06, 0.08)
    shoulder, top = rng.uniform(0.5, 0.6), rng.uniform(0.9, 0.95)
    bend = rng.uniform(0.14, 0.22)
    turn = np.linspace(0, math.pi, 9)
    curve = [
        (neck + (radius - neck) * (1 + math.cos(t)) / 2, shoulder + bend * t / math.pi)
        for t in turn
    ]
    wall = [(radius * 0.92, 0.0), (radius, 0.03)]
    lip = [(neck, top - 0.05), (neck + 0.02, top - 0.05), (neck + 0.02, top)]
    profile = [(0, 0), *wall, *curve, *lip, (0, top)]
    parts = [Part("body", revolve(profile, period))]
    if rng.random() < 0.5:
        cork = [(0, top - 0.03), (neck - 0.01, top - 0.03), (neck, top + 0.06), (0, top + 0.06)]
        return [*parts, Part("cork", revolve(cork), "waffle")]
    wide = neck + 0.035
    cap = [(0, top - 0.04), (wide, top - 0.04), (wide - 0.01, top + 0.04), (0, top + 0.04)]
    return [*parts, Part("cap", revolve(cap), "steel")]


def teapot(rng: Random, period: float) -> list[Part]:
    """A teapot whose spout points to the right and whose handle is at the left."""
    radius, half = rng.uniform(0.28, 0.33), rng.uniform(0.2, 0.26)
    centre = (0.0, 0.0, half + 0.02)
    base = half + 0.02
    spout_path = np.array(
        [
            (radius * 0.75, 0.0, base * 0.7),
            (radius + 0.08, 0.0, base * 0.8),
            (radius + 0.15, 0.0, base * 1.15),
            (radius + 0.2, 0.0, base * 1.6),
            (radius + 0.27, 0.0, base * 1.85),
        ]
    )
    spout = tube(spout_path, [0.11, 0.085, 0.06, 0.045, 0.04], _SIDEWAYS, period)
    reach, grip = rng.uniform(0.2, 0.25), half * rng.uniform(0.6, 0.75)
    handle = arc((-radius * 0.85, 0.0, base * 1.05), (reach + radius * 0.1, grip), 90, 270)
    top = base + half
    lid = [
        (0.0, top - 0.06),
        (radius * 0.5, top - 0.04),
        (radius * 0.4, top + 0.02),
        (0.0, top + 0.06),
    ]
    foot = [(0.0, 0.0), (radius * 0.6, 0.0), (radius * 0.5, 0.08), (0.0, 0.08)]
    return [
        Part("body", ellipsoid((radius, radius, half), centre, period)),
        Part("spout", spout),
        Part("handle", tube(handle, 0.042, _SIDEWAYS, period)),
        Part("lid", revolve(lid, period)),
        Part("foot", revolve(foot), "gold"),
        Part("knob", ellipsoid((0.05, 0.05, 0.05), (0.0, 0.0, top + 0.09), segments=12), "gold"),
    ]


def ice_cream_cone(rng: Random, period: float) -> list[Part]:
    """One or two scoops in a waffle cone, with a wafer stuck in at the right."""
    radius, depth = rng.uniform(0.24, 0.29), rng.uniform(0.5, 0.62)
    scoops = rng.choice((1, 2))
    cone = [(0.0, 0.0), (0.02, 0.0), (radius * 0.86, depth), (0.0, depth)]
    rim = [(0.0, depth - 0.07), (radius * 0.92, depth - 0.07), (radius * 0.96, depth), (0.0, depth)]
    parts = [Part("cone", revolve(cone), "waffle"), Part("rim", revolve(rim), "wood")]
    height, size = depth + radius * 0.45, radius
    for _ in range(scoops):
        parts.append(Part("scoop", ellipsoid((size, size, size), (0, 0, height), period)))
        height, size = height + size * 1.05, size * 0.86
    stick = box((0.1, 0.05, 0.34), (0.0, 0.0, 0.12)).turned("y", 24)
    lift = height - size * 1.05
    parts.append(Part("wafer", stick.moved(radius * 0.5, 0.0, lift), "wood"))
    return parts

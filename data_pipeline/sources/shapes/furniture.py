"""Furniture."""

from random import Random

import numpy as np

from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.surfaces import (
    Surface,
    box,
    disc_outline,
    ellipsoid,
    join,
    prism,
    revolve,
    tube,
)


def _legs(half_x: float, half_y: float, top: float, thick: float, taper: float) -> Surface:
    """Return four legs from the floor to `top`, `taper` times as thick at the floor."""
    size = (thick * taper, thick * taper, top)
    places = [(x, y) for x in (-half_x, half_x) for y in (-half_y, half_y)]
    return join(*(box(size, (x, y, top / 2), taper=1 / taper) for x, y in places))


def chair(rng: Random, period: float) -> list[Part]:
    """A chair that faces the front; its back is solid or of slats, and it may have arms."""
    width, depth = rng.uniform(0.44, 0.54), rng.uniform(0.42, 0.5)
    seat, back, thick = rng.uniform(0.4, 0.46), rng.uniform(0.46, 0.58), rng.uniform(0.075, 0.093)
    leg = rng.uniform(0.05, 0.065)
    inset = leg / 2 + 0.015
    top = seat + thick
    legs = _legs(width / 2 - inset, depth / 2 - inset, seat + 0.02, leg, rng.uniform(0.7, 1.0))
    parts = [
        Part("seat", box((width, depth, thick), (0.0, 0.0, seat + thick / 2), period)),
        Part("legs", legs, "wood"),
    ]
    rear = depth / 2 - 0.035
    if rng.random() < 0.6:
        panel = box((width, 0.07, back), (0.0, rear, top + back / 2 - 0.005), period)
        parts.append(Part("back", panel))
    else:
        posts = [
            box(
                (0.05, 0.05, back), (side * (width / 2 - 0.03), rear + 0.005, top + back / 2 - 0.01)
            )
            for side in (-1, 1)
        ]
        parts.append(Part("posts", join(*posts), "wood"))
        for place in (0.3, 0.82):
            slat = box((width, 0.045, back * 0.34), (0.0, rear - 0.025, top + back * place), period)
            parts.append(Part("back", slat))
    if rng.random() < 0.35:
        for side in (-1, 1):
            x = side * (width / 2 - 0.01)
            rest = box((0.06, depth - 0.08, 0.045), (x, 0.0, top + 0.2))
            post = box((0.045, 0.045, 0.22), (x, -depth / 2 + 0.09, top + 0.09))
            parts += [Part("arm rest", rest, "wood"), Part("arm post", post, "wood")]
    return parts


def table(rng: Random, period: float) -> list[Part]:
    """A table with a deep top: round on one foot, or rectangular on four legs."""
    height, thick = rng.uniform(0.52, 0.64), rng.uniform(0.14, 0.18)
    if rng.random() < 0.4:
        radius = rng.uniform(0.44, 0.5)
        foot = [
            (0, 0),
            (0.24, 0),
            (0.22, 0.04),
            (0.06, 0.09),
            (0.05, height + 0.02),
            (0, height + 0.02),
        ]
        top = prism(disc_outline(radius, 32), "z", height, height + thick, period)
        return [Part("top", top), Part("foot", revolve(foot), "wood")]
    width, depth = rng.uniform(0.9, 1.0), rng.uniform(0.5, 0.66)
    leg = rng.uniform(0.06, 0.085)
    inset = leg / 2 + 0.03
    legs = _legs(width / 2 - inset, depth / 2 - inset, height + 0.02, leg, rng.uniform(0.65, 1.0))
    top = box((width, depth, thick), (0.0, 0.0, height + thick / 2), period)
    return [Part("top", top), Part("legs", legs, "wood")]


def bench(rng: Random, period: float) -> list[Part]:
    """A wide bench of planks on iron feet, facing the front."""
    width, depth = rng.uniform(0.92, 1.05), rng.uniform(0.32, 0.38)
    seat, back, plank = rng.uniform(0.28, 0.33), rng.uniform(0.32, 0.38), 0.05
    slats = rng.choice((2, 3))
    step = depth / slats
    parts = []
    for i in range(slats):
        y = -depth / 2 + step * (i + 0.5)
        size = (width, step - 0.025, plank)
        parts.append(Part("seat", box(size, (0.0, y, seat + plank / 2), period)))
    rear, step = depth / 2 + 0.015, back / 2
    for i in range(2):
        z = seat + plank + 0.05 + step * (i + 0.5)
        parts.append(Part("back", box((width, 0.045, step - 0.03), (0.0, rear, z), period)))
    for side in (-1, 1):
        x = side * (width / 2 - 0.12)
        top = seat + plank + back
        frame = join(
            box((0.05, 0.05, seat + 0.01), (x, -depth / 2 + 0.05, seat / 2)),
            box((0.05, 0.05, top), (x, rear + 0.04, top / 2)),
            box((0.045, depth + 0.06, 0.04), (x, 0.02, seat - 0.015)),
        )
        parts.append(Part("frame", frame, "iron"))
    return parts


def lamp(rng: Random, period: float) -> list[Part]:
    """A table lamp: a wide shade on a stem, with a bulb inside."""
    low, high = rng.uniform(0.3, 0.36), rng.uniform(0.14, 0.22)
    shade, top, wall = rng.uniform(0.36, 0.44), 1.0, 0.02
    hem = top - shade
    shell = [(low - wall, hem), (low, hem), (high, top), (high - wall, top)]
    base = rng.uniform(0.18, 0.23)
    foot = [
        (0, 0),
        (base, 0),
        (base * 0.95, 0.04),
        (0.03, 0.08),
        (0.025, hem + 0.12),
        (0, hem + 0.12),
    ]
    if rng.random() < 0.5:
        belly = rng.uniform(0.09, 0.12)
        wave = np.linspace(0.0, np.pi, 10)
        curve = [
            (0.03 + belly * float(np.sin(t)), 0.08 + (hem - 0.2) * float(t / np.pi)) for t in wave
        ]
        foot = [
            (0, 0),
            (base, 0),
            (base * 0.95, 0.04),
            *curve,
            (0.025, hem + 0.12),
            (0, hem + 0.12),
        ]
    spokes = np.array([(-high, 0.0, top - 0.03), (0.0, 0.0, top - 0.03), (high, 0.0, top - 0.03)])
    spokes[:, 0] *= 0.97
    return [
        Part("shade", revolve([*shell, shell[0]], period, segments=32)),
        Part("stem", revolve(foot), "iron"),
        Part("bulb", ellipsoid((0.07, 0.07, 0.09), (0, 0, hem + 0.17), segments=12), "light"),
        Part("spider", tube(spokes, 0.012, (0.0, 1.0, 0.0), segments=6), "iron"),
    ]

"""Plants, and a snowman."""

import math
from random import Random

import numpy as np

from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.surfaces import Point, Surface, box, ellipsoid, join, revolve, tube

_SIDEWAYS = (0.0, 1.0, 0.0)


def mushroom(rng: Random, period: float) -> list[Part]:
    """A mushroom with a domed cap."""
    radius, dome = rng.uniform(0.38, 0.48), rng.uniform(0.3, 0.46)
    stem, thick = rng.uniform(0.42, 0.55), rng.uniform(0.1, 0.15)
    turn = np.linspace(0.0, math.pi / 2, 9)
    curve = [(radius * math.cos(t), stem + 0.04 + dome * math.sin(t)) for t in turn[:-1]]
    cap = [(0.0, stem + 0.05), (radius * 0.94, stem), *curve, (0.0, stem + 0.04 + dome)]
    low, wide = (radius * 0.5, stem - 0.01), (radius * 0.82, stem + 0.02)
    gills = [(0.0, stem - 0.02), low, wide, (0.0, stem + 0.1)]
    foot = [(0, 0), (thick * 1.25, 0), (thick * 1.35, 0.06), (thick, 0.2)]
    stalk = [*foot, (thick * 0.9, stem + 0.08), (0, stem + 0.08)]
    return [
        Part("cap", revolve(cap, period)),
        Part("gills", revolve(gills), "waffle"),
        Part("stem", revolve(stalk), "cream"),
    ]


def tree(rng: Random, period: float) -> list[Part]:
    """A conifer of stacked cones, or a round tree of a few uneven clumps."""
    trunk = rng.uniform(0.05, 0.075)
    if rng.random() < 0.5:
        stem, tiers = rng.uniform(0.16, 0.22), rng.choice((2, 3))
        radius = rng.uniform(0.32, 0.4)
        parts = []
        for i in range(tiers):
            low = stem + (0.98 - stem) * i / (tiers + 0.7)
            high = stem + (0.98 - stem) * (i + 1.7) / (tiers + 0.7)
            wide = radius * (1 - 0.27 * i)
            cone = [(0.0, low + 0.05), (wide, low), (0.0, high)]
            parts.append(Part("foliage", revolve(cone, period)))
        height = stem + 0.12
    else:
        stem, size = rng.uniform(0.34, 0.42), rng.uniform(0.3, 0.34)
        middle = stem + size * 0.75
        crown = ellipsoid((size, size * 0.95, size * 0.9), (0.0, 0.0, middle), period)
        parts = [Part("foliage", crown)]
        turn = rng.uniform(0.0, 2 * math.pi)
        for i in range(3):
            angle, clump = turn + i * 2 * math.pi / 3, size * rng.uniform(0.55, 0.68)
            x, y = size * 0.62 * math.cos(angle), size * 0.62 * math.sin(angle)
            z = middle + size * rng.uniform(-0.35, 0.3)
            parts.append(Part("foliage", ellipsoid((clump, clump, clump * 0.9), (x, y, z), period)))
        height = middle
    bark = [(0.0, 0.0), (trunk * 1.5, 0.0), (trunk, 0.1), (trunk * 0.8, height), (0.0, height)]
    return [*parts, Part("trunk", revolve(bark, segments=12), "dark wood")]


def cactus(rng: Random, period: float) -> list[Part]:
    """A potted cactus; the arm at the right is the lower one."""
    thick, top = rng.uniform(0.12, 0.15), rng.uniform(0.94, 1.02)
    pot = [
        (0, 0),
        (0.15, 0),
        (0.2, 0.2),
        (0.22, 0.2),
        (0.22, 0.26),
        (0.19, 0.26),
        (0.18, 0.22),
        (0, 0.22),
    ]
    trunk = _rounded(np.array([(0.0, 0.0, 0.18), (0.0, 0.0, top)]), thick, period)
    parts = [Part("trunk", trunk), Part("pot", revolve(pot), "terracotta")]
    slim = thick * 0.66
    for side, elbow, tip in (
        (1, rng.uniform(0.4, 0.46), rng.uniform(0.66, 0.74)),
        (-1, rng.uniform(0.52, 0.58), rng.uniform(0.8, 0.9)),
    ):
        reach = thick + slim + 0.07
        bend = np.linspace(-math.pi / 2, 0.0, 6)
        corner = [
            (side * (reach - 0.1 + 0.1 * math.cos(t)), 0, elbow + 0.1 + 0.1 * math.sin(t))
            for t in bend
        ]
        path = np.array([(side * thick * 0.5, 0.0, elbow), *corner, (side * reach, 0.0, tip)])
        parts.append(Part("arm", _rounded(path, slim, period)))
    return parts


def _rounded(path: np.ndarray, radius: float, period: float) -> Surface:
    """Return a tube whose far end is a half ball."""
    direction = path[-1] - path[-2]
    direction = direction / np.linalg.norm(direction)
    turn = np.linspace(0.0, math.pi / 2, 6)[1:]
    dome = path[-1] + radius * np.sin(turn)[:, None] * direction
    radii = [radius] * len(path) + (radius * np.maximum(np.cos(turn), 1e-3)).tolist()
    return tube(np.concatenate([path, dome]), radii, _SIDEWAYS, period, segments=18)


def snowman(rng: Random, period: float) -> list[Part]:
    """A snowman with hat, stick arms, and a carrot nose that points to the front."""
    low, middle, head = rng.uniform(0.24, 0.28), rng.uniform(0.175, 0.205), rng.uniform(0.125, 0.15)
    z_low = low * 0.92
    z_middle = z_low + low * 0.72 + middle * 0.72
    z_head = z_middle + middle * 0.75 + head * 0.75
    balls: list[tuple[str, float, float]] = [
        ("belly", low, z_low), ("chest", middle, z_middle), ("head", head, z_head),
    ]  # fmt: skip
    parts = [Part(n, ellipsoid((r, r, r), (0.0, 0.0, z), period)) for n, r, z in balls]
    brim = z_head + head * 0.72
    top = brim + rng.uniform(0.13, 0.17)
    wide = head * 0.8
    hat = [(0, brim), (wide * 1.6, brim), (wide * 1.6, brim + 0.025), (wide, brim + 0.025)]
    parts.append(Part("hat", revolve([*hat, (wide, top), (0, top)]), "coal"))
    nose = revolve([(0.0, 0.0), (0.036, 0.0), (0.0, 0.15)], segments=12).turned("x", 90)
    parts.append(Part("nose", nose.moved(0.0, -head * 0.93, z_head - 0.01), "carrot"))
    spots: list[Point] = []
    for x, z in ((-0.4, 0.32), (0.4, 0.32)):
        spots.append((x * head, -head * math.sqrt(1 - x * x - z * z), z_head + z * head))
    for z in (0.35, -0.1, -0.5):
        spots.append((0.0, -middle * math.sqrt(1 - z * z), z_middle + z * middle))
    coal = join(*(ellipsoid((0.024, 0.024, 0.024), spot, segments=8) for spot in spots))
    parts.append(Part("coal", coal, "coal"))
    for side in (-1, 1):
        stick = box((0.026, 0.026, 0.26), (0.0, 0.0, 0.13)).turned("y", side * rng.uniform(50, 70))
        x = side * middle * 0.85
        parts.append(Part("arm", stick.moved(x, 0.0, z_middle + 0.03), "dark wood"))
    return parts

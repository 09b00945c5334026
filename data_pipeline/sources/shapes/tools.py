"""Things that people make and carry, and a house."""

import math
from random import Random

import numpy as np

from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.surfaces import (
    arc,
    box,
    disc_outline,
    ellipsoid,
    join,
    loft,
    prism,
    revolve,
    tube,
)

_SIDEWAYS = (0.0, 1.0, 0.0)


def hammer(rng: Random, period: float) -> list[Part]:
    """A claw hammer, upright: its face strikes to the right, its claw is at the left."""
    top, thick = rng.uniform(0.78, 0.86), rng.uniform(0.095, 0.115)
    grip = [(0, 0), (0.05, 0), (0.06, 0.03), (0.055, 0.3), (0.038, 0.45), (0.04, top), (0, top)]
    reach = rng.uniform(0.24, 0.3)
    face = revolve(
        [
            (0.0, -0.08),
            (thick * 0.85, -0.08),
            (thick * 0.75, reach * 0.5),
            (thick, reach * 0.62),
            (thick, reach),
            (0.0, reach),
        ],
        period,
    )
    head = face.turned("y", 90).moved(0.0, 0.0, top)
    steps = np.linspace(0.0, 1.0, 6)
    claws = []
    for side in (-1, 1):
        sections = []
        for t in steps.tolist():
            x, z = -0.05 - 0.28 * t, top + 0.03 - 0.13 * t * t
            y, half_y, half_z = (
                side * (0.04 + 0.025 * t),
                0.042 - 0.012 * t,
                thick * (0.75 - 0.55 * t),
            )
            ring = [
                (y - half_y, -half_z),
                (y - half_y, half_z),
                (y + half_y, half_z),
                (y + half_y, -half_z),
            ]
            sections.append([(x, a, z + b) for a, b in ring])
        claws.append(loft(np.array(sections), period))
    return [
        Part("head", head),
        Part("eye", box((0.17, 0.17, thick * 1.9), (0.0, 0.0, top), period)),
        Part("claw", claws[0]),
        Part("claw", claws[1]),
        Part("handle", revolve(grip, segments=14, depth=0.85), "wood"),
    ]


def sword(rng: Random, period: float) -> list[Part]:
    """An upright sword, the flat of its blade to the front."""
    half, thick = rng.uniform(0.075, 0.1), rng.uniform(0.035, 0.045)
    guard, tip = rng.uniform(0.24, 0.3), 1.0
    shoulder = tip - rng.uniform(0.14, 0.22)
    taper = rng.uniform(0.75, 1.0)
    sections = []
    for z, share in ((guard, 1.0), (shoulder, taper), (tip, 0.02)):
        w, t = half * share, thick * share
        sections.append(
            [
                (-w, 0, z),
                (-w * 0.4, -t, z),
                (w * 0.4, -t, z),
                (w, 0, z),
                (w * 0.4, t, z),
                (-w * 0.4, t, z),
            ]
        )
    span = rng.uniform(0.19, 0.25)
    bar = box((2 * span, 0.1, 0.06), (0.0, 0.0, guard))
    ends = [ellipsoid((0.05, 0.055, 0.05), (s * span, 0.0, guard), segments=12) for s in (-1, 1)]
    grip = [(0, 0.05), (0.036, 0.05), (0.045, guard * 0.5), (0.036, guard), (0, guard)]
    return [
        Part("blade", loft(np.array(sections), period)),
        Part("guard", join(bar, *ends), "gold"),
        Part("grip", revolve(grip, segments=14), "dark wood"),
        Part("pommel", ellipsoid((0.055, 0.055, 0.055), (0, 0, 0.05), segments=16), "gold"),
    ]


def umbrella(rng: Random, period: float) -> list[Part]:
    """An open umbrella; its crook points to the right."""
    radius, dome = rng.uniform(0.44, 0.5), rng.uniform(0.24, 0.32)
    hem, ribs, steps = 0.95 - dome, 8, 7
    skins = []
    for shrink in (0.0, 0.02):
        rows = []
        for t in np.linspace(0.0, 0.47 * math.pi, steps).tolist():
            angle = 2 * math.pi * np.arange(4 * ribs) / (4 * ribs)
            # the hem rises between the ribs, the more the farther out
            lift = 0.045 * math.cos(t) ** 4 * (1 - np.cos(ribs * angle)) / 2
            out = (radius - shrink) * math.cos(t)
            up = hem + (dome - shrink) * math.sin(t) + lift
            rows.append(np.column_stack([out * np.cos(angle), out * np.sin(angle), up]))
        skins.append(np.array(rows))
    outer, inner = skins
    canopy = loft(np.concatenate([inner[::-1], outer]), period)
    crook = arc((0.06, 0.0, 0.06), (0.06, 0.06), 180, 350, 9)
    path = np.concatenate([[(0.0, 0.0, hem + dome - 0.01)], crook])
    spike = [(0.0, 0.9), (0.018, 0.9), (0.012, 1.0), (0.0, 1.0)]
    return [
        Part("canopy", canopy),
        Part("shaft", tube(path, 0.018, _SIDEWAYS, segments=8), "dark wood"),
        Part("spike", revolve(spike, segments=8), "iron"),
    ]


def house(rng: Random, period: float) -> list[Part]:
    """A gabled house: door in front, windows all round, a chimney at the right."""
    half_x, half_y = rng.uniform(0.34, 0.42), rng.uniform(0.28, 0.36)
    wall, rise = rng.uniform(0.42, 0.52), rng.uniform(0.26, 0.36)
    outline = [(-half_x, 0.0), (half_x, 0.0), (half_x, wall), (0.0, wall + rise), (-half_x, wall)]
    parts = [Part("walls", prism(outline, "y", -half_y, half_y, period))]
    slope, over, thick = rise / half_x, 0.07, 0.06
    eave = half_x + over
    low = wall - over * slope
    ridge = wall + rise
    for side in (-1, 1):
        slab = [(0.0, ridge), (side * eave, low), (side * eave, low + thick), (0.0, ridge + thick)]
        slab = slab if side > 0 else slab[::-1]
        name = f"roof {'right' if side > 0 else 'left'}"
        parts.append(Part(name, prism(slab, "y", -half_y - over, half_y + over), "slate"))
    stack = ridge - 0.5 * rise
    chimney = box((0.11, 0.11, 0.32), (half_x * 0.5, half_y * 0.35, stack + 0.16))
    parts.append(Part("chimney", chimney, "brick"))
    door_x = rng.uniform(-0.5, 0.5) * half_x
    door = box((0.17, 0.05, 0.3), (door_x, -half_y, 0.149))
    parts.append(Part("door", door, "dark wood"))
    side_of_door = -1 if door_x > 0 else 1
    sill = wall * 0.58
    front = (side_of_door * half_x * 0.55, -half_y, sill)
    windows = [box((0.15, 0.04, 0.15), front), box((0.15, 0.04, 0.15), (0.0, half_y, sill))]
    windows += [box((0.04, 0.16, 0.15), (side * half_x, 0.0, sill)) for side in (-1, 1)]
    parts += [Part("window", window, "glass") for window in windows]
    disc = prism(disc_outline(0.055, 16), "z", -0.02, 0.02).turned("x", 90)
    parts.append(Part("gable window", disc.moved(0.0, -half_y, wall + rise * 0.32), "glass"))
    return parts

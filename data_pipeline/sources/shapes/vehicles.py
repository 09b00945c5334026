"""Vehicles; their noses point to the front, but for the rocket, which points up."""

import math
from random import Random

import numpy as np

from data_pipeline.sources.shapes.part import Part
from data_pipeline.sources.surfaces import (
    Surface,
    box,
    disc_outline,
    ellipsoid,
    join,
    loft,
    prism,
    revolve,
    tube,
)

_Outline = list[tuple[float, float]]


def car(rng: Random, period: float) -> list[Part]:
    """A car: bonnet and headlights in front; a saloon, a hatchback or a pickup."""
    half_x, wheel = rng.uniform(0.2, 0.23), rng.uniform(0.09, 0.105)
    belt, roof = rng.uniform(0.25, 0.28), rng.uniform(0.44, 0.49)
    sill = wheel * 0.75
    body: _Outline = [
        (-0.47, sill), (0.47, sill), (0.49, sill + 0.07), (0.47, belt), (-0.3, belt),
        (-0.47, belt - 0.035), (-0.5, sill + 0.07),
    ]  # fmt: skip
    style = rng.choice(("saloon", "hatchback", "pickup"))
    back, back_top = {"saloon": (0.32, 0.2), "hatchback": (0.46, 0.36), "pickup": (0.1, 0.07)}[
        style
    ]
    front, front_top = rng.uniform(-0.25, -0.2), rng.uniform(-0.1, -0.06)
    if style == "pickup":
        front, front_top = front - 0.03, front_top - 0.05
    low = belt - 0.02
    cabin: _Outline = [(front, low), (back, low), (back_top, roof), (front_top, roof)]
    half_cabin = half_x - 0.02
    parts = [
        Part("body", prism(body, "x", -half_x, half_x, period)),
        Part("cabin", prism(cabin, "x", -half_cabin, half_cabin, period)),
        *_car_glass(cabin, belt, roof, half_cabin),
    ]
    for name, y in (("front wheel", -0.3), ("rear wheel", 0.3)):
        for side in (-1, 1):
            x = side * (half_x - 0.03)
            tyre = prism(disc_outline(wheel, 20), "z", -0.05, 0.05).turned("y", 90)
            hub = prism(disc_outline(wheel * 0.5, 12), "z", -0.056, 0.056).turned("y", 90)
            parts.append(Part(name, tyre.moved(x, y, wheel), "rubber"))
            parts.append(Part("hub", hub.moved(x, y, wheel), "steel"))
    for side in (-1, 1):
        x = side * (half_x - 0.065)
        lamp, rear = (x, -0.482, sill + 0.105), (x, 0.478, sill + 0.1)
        parts.append(Part("headlight", box((0.085, 0.05, 0.06), lamp), "light"))
        parts.append(Part("tail light", box((0.08, 0.04, 0.05), rear), "tail light"))
    bumper = join(
        box((2 * half_x - 0.03, 0.05, 0.05), (0.0, -0.495, sill + 0.025)),
        box((2 * half_x - 0.03, 0.05, 0.05), (0.0, 0.485, sill + 0.025)),
    )
    parts.append(Part("bumper", bumper, "iron"))
    if style == "pickup":
        bed = box((2 * half_x - 0.09, 0.3, 0.02), (0.0, 0.29, belt + 0.001))
        parts.append(Part("bed", bed, "iron"))
    return parts


def _car_glass(cabin: _Outline, belt: float, roof: float, half_x: float) -> list[Part]:
    """Return the side windows and the two screens, each a little proud of the cabin."""
    (front, low), (back, _), (back_top, _), (front_top, _) = cabin
    bottom, top = belt + 0.025, roof - 0.035

    def at(first: float, last: float, z: float) -> float:
        return first + (last - first) * (z - low) / (roof - low)

    def pane(front_inset: float, back_inset: float) -> _Outline:
        return [
            (at(front, front_top, bottom) + front_inset, bottom),
            (at(back, back_top, bottom) - back_inset, bottom),
            (at(back, back_top, top) - back_inset, top),
            (at(front, front_top, top) + front_inset, top),
        ]

    return [
        Part(
            "side windows", prism(pane(0.04, 0.04), "x", -half_x - 0.008, half_x + 0.008), "glass"
        ),
        Part("screens", prism(pane(-0.01, -0.01), "x", 0.035 - half_x, half_x - 0.035), "glass"),
    ]


def rocket(rng: Random, period: float) -> list[Part]:
    """A rocket on its fins; its porthole looks to the front."""
    radius, waist = rng.uniform(0.145, 0.19), rng.uniform(0.1, 0.13)
    shoulder, nose = rng.uniform(0.58, 0.64), rng.uniform(0.7, 0.76)
    tip = rng.uniform(0.55, 0.68)
    wall = [(waist, 0.12), (radius * 0.97, 0.3), (radius, 0.42), (radius * 0.98, shoulder)]
    wall.append((radius * tip + 0.03, nose))
    body = revolve([(0.0, 0.12), *wall, (0.0, nose)], period)
    start = wall[-1][0]
    curve = [
        (start * math.cos(t), nose - 0.005 + (1 - nose) * math.sin(t))
        for t in np.linspace(0.0, math.pi / 2, 7)[:-1].tolist()
    ]
    cone = revolve([(0.0, nose - 0.005), *curve, (0.0, 1.0)])
    nozzle = revolve([(0.0, 0.03), (0.1, 0.03), (0.07, 0.14), (0.0, 0.14)])
    number, span = rng.choice((3, 4)), rng.uniform(0.16, 0.22)
    blade: _Outline = [
        (waist * 0.6, 0.16), (radius + span, 0.0), (radius + span, 0.14), (radius * 0.8, 0.38),
    ]  # fmt: skip
    fin = prism(blade, "y", -0.025, 0.025)
    turn = 90.0 if number == 3 else 45.0
    fins = [fin.turned("z", turn + i * 360 / number) for i in range(number)]
    rim, pane = (
        prism(disc_outline(size, 20), "z", 0.0, depth).turned("x", 90)
        for size, depth in ((0.075, 0.035), (0.052, 0.045))
    )
    hole = (0.0, -radius * 0.9, 0.52)
    return [
        Part("body", body),
        Part("nose", cone, "slate"),
        Part("nozzle", nozzle, "iron"),
        *(Part("fin", surface, "slate") for surface in fins),
        Part("porthole rim", rim.moved(*hole), "steel"),
        Part("porthole", pane.moved(*hole), "glass"),
    ]


def boat(rng: Random, period: float) -> list[Part]:
    """A sailing boat, bow to the front, its sail set behind the mast."""
    beam, depth = rng.uniform(0.18, 0.23), rng.uniform(0.24, 0.3)
    mast = rng.uniform(0.95, 1.05)
    sections = []
    for y, share, lift in (
        (0.46, 0.72, 0.02), (0.2, 0.98, 0.0), (-0.1, 1.0, 0.0), (-0.32, 0.62, 0.03),
        (-0.52, 0.04, 0.07),
    ):  # fmt: skip
        wide, keel = beam * share, lift + 0.015 * abs(y)
        top = depth + 0.6 * lift
        sections.append(
            [
                (-wide, y, top), (-wide * 0.9, y, (top + keel) / 2), (-wide * 0.45, y, keel),
                (wide * 0.45, y, keel), (wide * 0.9, y, (top + keel) / 2), (wide, y, top),
            ]
        )  # fmt: skip
    hull = loft(np.array(sections), period)
    deck: _Outline = [
        (beam * 0.6, 0.42), (-beam * 0.6, 0.42), (-beam * 0.8, -0.1), (-beam * 0.3, -0.36),
        (beam * 0.3, -0.36), (beam * 0.8, -0.1),
    ]  # fmt: skip
    pole = tube(
        np.array([(0.0, -0.08, depth - 0.1), (0.0, -0.08, mast)]), 0.025, (1, 0, 0), segments=10
    )
    boom_z = depth + 0.1
    boom = box((0.035, 0.5, 0.035), (0.0, 0.17, boom_z))
    main: _Outline = [(-0.05, boom_z + 0.02), (0.4, boom_z + 0.02), (-0.05, mast - 0.02)]
    jib: _Outline = [(-0.44, depth + 0.08), (-0.12, boom_z + 0.02), (-0.11, mast - 0.12)]
    return [
        Part("hull", hull),
        Part("deck", prism(deck, "z", depth - 0.02, depth + 0.03), "wood"),
        Part("mast", pole, "dark wood"),
        Part("boom", boom, "dark wood"),
        Part("sail", prism(main, "x", -0.015, 0.015), "cream"),
        Part("jib", prism(jib, "x", -0.013, 0.013), "cream"),
    ]


def airplane(rng: Random, period: float) -> list[Part]:
    """A propeller plane: fuselage, wings and tail share the named colour."""
    radius, span = rng.uniform(0.1, 0.125), rng.uniform(0.44, 0.5)
    line = [
        (0.0, -0.44), (radius * 0.75, -0.44), (radius, -0.36), (radius, -0.05), (radius * 0.8, 0.2),
        (radius * 0.38, 0.46), (0.0, 0.48),
    ]  # fmt: skip
    # the profile runs up Z from nose to tail; turned, the nose looks to -Y
    fuselage = revolve([(r, z) for r, z in line], period).turned("x", -90)
    chord, sweep = rng.uniform(0.2, 0.25), rng.uniform(0.0, 0.07)
    wing_z = rng.choice((-0.4, 0.55)) * radius
    tail = span * rng.uniform(0.38, 0.46)
    finned: _Outline = [(0.28, 0.0), (0.47, 0.0), (0.49, 0.24), (0.4, 0.24)]
    hub = revolve([(0.0, 0.0), (0.05, 0.0), (0.035, 0.05), (0.0, 0.09)], segments=14).turned(
        "x", 90
    )
    blades = box((0.05, 0.018, 0.4), (0.0, -0.465, 0.0)).turned("y", rng.uniform(15, 75))
    canopy = ellipsoid(
        (radius * 0.6, 0.13, radius * 0.75), (0.0, -0.14, radius * 0.72), segments=16
    )
    parts = [
        Part("fuselage", fuselage),
        Part("wing", _wing(span, -0.18, chord, sweep, 0.04, period).moved(z=wing_z)),
        Part("tailplane", _wing(tail, 0.34, 0.12, 0.04, 0.03, period)),
        Part("fin", prism(finned, "x", -0.018, 0.018, period)),
        Part("canopy", canopy, "glass"),
        Part("spinner", hub.moved(y=-0.43), "iron"),
        Part("propeller", blades, "iron"),
    ]
    for x, y in ((-0.13, -0.2), (0.13, -0.2), (0.0, 0.4)):
        size = 0.05 if x else 0.03
        wheel = prism(disc_outline(size, 14), "z", -0.02, 0.02).turned("y", 90)
        z = -radius - 0.09 if x else -radius * 0.75
        parts.append(Part("wheel", wheel.moved(x, y, z), "rubber"))
        top = 0.0 if x else 0.02
        strut = box((0.022, 0.03, top - z), (x * 0.8, y, (top + z) / 2))
        parts.append(Part("strut", strut, "iron"))
    return parts


def _wing(
    span: float, front: float, chord: float, sweep: float, thick: float, period: float
) -> Surface:
    """Return a wing from tip to tip, its front edge at y = `front` in the middle."""
    sections = []
    for x in (-span, 0.0, span):
        share = abs(x) / span
        low, high = front + sweep * share, front + chord - 0.06 * share * (chord > 0.15)
        half = thick / 2 * (1 - 0.4 * share)
        middle = low + 0.3 * (high - low)
        sections.append(
            [
                (x, low, -half * 0.4),
                (x, middle, -half),
                (x, high, 0.0),
                (x, middle, half),
                (x, low, half * 0.4),
            ]
        )
    return loft(np.array(sections), period)

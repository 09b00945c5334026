"""Signed distance to shapes whose answer is known, watertight or not."""

import igl
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.render.blender.signed_distance import (
    CELL,
    MAX_EDGE,
    SHEET_HALF_THICKNESS,
    Solid,
    cut_long_edges,
    sphere_directions,
)

CUBE_FACES = [
    (0, 2, 1), (1, 2, 3), (4, 5, 6), (5, 7, 6), (0, 1, 4), (1, 5, 4),
    (2, 6, 3), (3, 6, 7), (0, 4, 2), (2, 4, 6), (1, 3, 5), (3, 7, 5),
]  # fmt: skip


def exact_distance(triangles: NDArray[np.float64]):
    vertices = np.ascontiguousarray(triangles.reshape(-1, 3))
    faces = np.arange(len(vertices)).reshape(-1, 3)

    def distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
        squared = igl.point_mesh_squared_distance(np.ascontiguousarray(points), vertices, faces)[0]
        return np.sqrt(squared)

    return distance


def solid(triangles: NDArray[np.float64]) -> Solid:
    return Solid(triangles, exact_distance)


def box(half_sides: tuple[float, float, float], centre=(0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    corners = np.array([(x, y, z) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], dtype=float)
    return (corners * half_sides + centre)[CUBE_FACES]


def box_distance(points: NDArray[np.float64], half_sides, centre=(0.0, 0.0, 0.0)):
    outside = np.abs(points - np.array(centre)) - half_sides
    return np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0)


def sphere(radius: float, segments: int = 48) -> NDArray[np.float64]:
    angle, height = np.meshgrid(
        np.linspace(0, 2 * np.pi, 2 * segments + 1), np.linspace(0, np.pi, segments + 1)
    )
    ring = np.sin(height)
    grid = radius * np.stack([np.cos(angle) * ring, np.sin(angle) * ring, np.cos(height)], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    triangles = np.concatenate([np.stack([a, b, c], 2), np.stack([a, c, d], 2)]).reshape(-1, 3, 3)
    areas = np.linalg.norm(
        np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
    )
    return triangles[areas > 1e-12]


@pytest.fixture
def points() -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-0.55, 0.55, (2000, 3))


def test_a_sphere_is_exact_and_certain(points):
    result = solid(sphere(0.5)).signed_distance(points)
    truth = np.linalg.norm(points, axis=1) - 0.5
    assert np.abs(result.distance - truth).max() < 1.2e-3  # the facets' own error
    assert (result.confidence == 1.0).all()


def test_inverted_faces_change_nothing(points):
    triangles = sphere(0.5, 12)
    flipped = triangles.copy()
    flipped[::3] = flipped[::3, ::-1]
    as_is, some, all_of_them = (
        solid(soup).signed_distance(points).distance
        for soup in (triangles, flipped, triangles[:, ::-1].copy())
    )
    np.testing.assert_allclose(some, as_is, atol=1e-6)
    np.testing.assert_allclose(all_of_them, as_is, atol=1e-6)


def test_an_open_cloth_becomes_a_thin_slab_with_nothing_inside_below_it(points):
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 17), np.linspace(-0.5, 0.5, 17))
    grid = np.stack([x, y, 0.1 * np.sin(6 * x)], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    cloth = np.concatenate([np.stack([a, b, c], 2), np.stack([a, c, d], 2)]).reshape(-1, 3, 3)
    shape = solid(cloth)
    result = shape.signed_distance(points)
    truth = exact_distance(cloth)(points) - SHEET_HALF_THICKNESS
    np.testing.assert_allclose(result.distance, truth, atol=1e-6)
    assert shape.sheet_share == 1.0
    on_it = shape.signed_distance(cloth.mean(axis=1))
    np.testing.assert_allclose(on_it.distance, -0.75 * CELL, atol=1e-6)
    assert result.confidence.mean() > 0.99


def test_a_box_in_a_box_is_solid_and_its_hidden_faces_do_not_count(points):
    outer = (0.5, 0.4, 0.3)
    result = solid(np.concatenate([box(outer), box((0.2, 0.2, 0.2))])).signed_distance(points)
    np.testing.assert_allclose(result.distance, box_distance(points, outer), atol=1e-5)
    assert (result.confidence == 1.0).all()


def test_intersecting_parts_are_their_union(points):
    first, second = ((0.3, 0.1, 0.1), (0.0, 0.0, 0.0)), ((0.1, 0.3, 0.1), (0.1, 0.0, 0.05))
    result = solid(np.concatenate([box(*first), box(*second)])).signed_distance(points)
    truth = np.minimum(box_distance(points, *first), box_distance(points, *second))
    outside = truth > 0
    np.testing.assert_allclose(result.distance[outside], truth[outside], atol=2e-3)
    assert (np.sign(result.distance) == np.sign(truth)).all()
    # Inside, the union's distance is at least either box's own, up to the straddling pieces.
    assert (result.distance[~outside] <= truth[~outside] + MAX_EDGE / 2).all()
    # The faces that lie inside the other box must not pull the distance to zero.
    core = np.array([[0.05, 0.0, 0.0], [0.1, 0.0, 0.0]])
    assert (
        solid(np.concatenate([box(*first), box(*second)])).signed_distance(core).distance < -0.04
    ).all()


def test_a_box_without_a_lid_is_hollow_with_thick_walls():
    half = (0.4, 0.4, 0.4)
    lidless = np.delete(box(half), [2, 3], axis=0)  # the two triangles at +z
    shape = solid(lidless)
    assert shape.sheet_share == 1.0
    middle, wall = shape.signed_distance(np.array([[0.0, 0.0, -0.1], [0.4, 0.0, 0.0]])).distance
    assert middle == pytest.approx(0.3 - SHEET_HALF_THICKNESS, abs=1e-5)
    assert wall == pytest.approx(-SHEET_HALF_THICKNESS, abs=1e-5)


def test_the_bottom_of_a_deep_cup_is_certainly_outside():
    outer, inner = box((0.2, 0.2, 0.5)), box((0.15, 0.15, 0.45), (0.0, 0.0, 0.05))
    top = [2, 3]  # the two triangles at +z
    rim = []
    for side in range(4):  # closes the walls between the two openings
        turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
        a, b = np.array([0.2, -0.2, 0.5]), np.array([0.2, 0.2, 0.5])
        c, d = np.array([0.15, 0.15, 0.5]), np.array([0.15, -0.15, 0.5])
        rim += [np.linalg.matrix_power(turn, side) @ corner for corner in (a, b, c, a, c, d)]
    cup = np.concatenate(
        [np.delete(outer, top, 0), np.delete(inner, top, 0), np.array(rim).reshape(-1, 3, 3)]
    )
    result = solid(cup).signed_distance(np.array([[0.0, 0, -0.37], [0, 0, -0.45], [0.175, 0, 0]]))
    assert (np.sign(result.distance) == [1, -1, -1]).all()
    assert (result.confidence == 1.0).all()


def test_a_pinhole_lowers_the_confidence_and_not_the_distance():
    triangles = cut_long_edges(box((0.4, 0.4, 0.4)), MAX_EDGE)
    middle = np.linalg.norm(triangles.mean(axis=1) - (0.0, 0.0, 0.4), axis=1).argmin()
    crumbs = cut_long_edges(triangles[middle : middle + 1], 0.8 * CELL)
    leaky = np.concatenate([np.delete(triangles, middle, axis=0), crumbs[1:]])
    inside = np.random.default_rng(0).uniform(-0.35, 0.35, (500, 3))
    result = solid(leaky).signed_distance(inside)
    sure = result.confidence > 0.6
    assert sure.mean() > 0.9
    assert (result.distance[sure] < 0).all()
    assert (result.confidence[result.distance > 0] <= 0.5).all()


def test_two_faces_upon_each_other_are_a_sheet(points):
    square = np.array(
        [
            [[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0]],
            [[-0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]],
        ]
    )
    result = solid(np.concatenate([square, square[:, ::-1]])).signed_distance(points)
    truth = box_distance(points, (0.5, 0.5, 0.0)) - SHEET_HALF_THICKNESS
    np.testing.assert_allclose(result.distance, truth, atol=1e-5)


def test_cutting_keeps_the_surface_and_bounds_the_edges():
    triangles = box((0.5, 0.3, 0.01))
    pieces = cut_long_edges(triangles, 0.05)
    edges = np.linalg.norm(pieces - np.roll(pieces, 1, axis=1), axis=2)
    assert edges.max() <= 0.05

    def area(soup):
        return np.linalg.norm(
            np.cross(soup[:, 1] - soup[:, 0], soup[:, 2] - soup[:, 0]), axis=1
        ).sum()

    assert area(pieces) == pytest.approx(area(triangles))
    assert exact_distance(triangles)(pieces.reshape(-1, 3)).max() < 1e-12


@pytest.mark.parametrize("count", [16, 64, 208])
def test_ray_directions_are_even(count):
    directions = sphere_directions(count)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-6)
    assert np.linalg.norm(directions.mean(axis=0)) < 0.15
    probes = sphere_directions(1000)
    widest_gap = np.degrees(np.arccos(np.clip(probes @ directions.T, -1, 1).max(axis=1))).max()
    assert widest_gap < 3.2 * np.degrees(np.sqrt(4 / count))

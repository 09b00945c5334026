import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from modules.geometry.decimation import decimate
from modules.geometry.isosurface import (
    drop_small_components,
    extract_isosurface,
    round_apart,
)
from modules.metrics.mesh_quality import mesh_quality

NO_POINTS = np.zeros((0, 3))


def is_sound(vertices: np.ndarray, faces: np.ndarray) -> bool:
    quality = mesh_quality(vertices, faces)
    return quality["watertight"] == quality["manifold"] == 1.0


def ball(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=1) - 0.4


def test_a_sphere_is_closed_faces_outwards_and_is_exact():
    vertices, faces = extract_isosurface(ball, 48, NO_POINTS)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 1e-3
    assert is_sound(vertices, faces)
    volume = trimesh.Trimesh(vertices, faces, process=False).volume
    assert abs(volume - 4 / 3 * np.pi * 0.4**3) < 1e-3


def evaluations(cells: int) -> int:
    counts = []

    def counted(points: np.ndarray) -> np.ndarray:
        counts.append(len(points))
        return ball(points)

    extract_isosurface(counted, cells, NO_POINTS)
    return sum(counts)


def test_evaluations_grow_with_the_surface_and_not_with_the_volume():
    assert evaluations(64) < 0.5 * 65**3
    assert evaluations(256) < 5.0 * evaluations(128) < 25.0 * evaluations(64)


def test_a_tube_that_no_coarse_cell_shows_is_followed_to_its_end():
    """A tube thinner than half a coarse cell, far from any known point, hangs on a ball."""

    def distance(points: np.ndarray) -> np.ndarray:
        body = np.linalg.norm(points - np.array([0.0, 0.0, -0.3]), axis=1) - 0.2
        tube = np.hypot(points[:, 0] - 0.0225, points[:, 1] - 0.0225) - 0.01
        tube = np.maximum(tube, np.abs(points[:, 2]) - 0.4)
        return np.where(np.minimum(body, tube) < 0, -0.05, 0.05)

    vertices, faces = extract_isosurface(distance, 192, NO_POINTS)
    assert is_sound(vertices, faces)
    assert vertices[:, 2].max() > 0.39


@pytest.mark.parametrize("cells", [8, 30, 50, 98, 130])
def test_any_even_grid_gives_the_sphere(cells: int):
    vertices, faces = extract_isosurface(ball, cells, NO_POINTS)
    assert is_sound(vertices, faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 0.5 / cells**1.5


def test_a_rod_thinner_than_a_coarse_cell_is_found_by_its_points():
    def rod(points: np.ndarray) -> np.ndarray:
        return np.maximum(
            np.hypot(points[:, 0] - 0.013, points[:, 1]) - 0.012, abs(points[:, 2]) - 0.4
        )

    height = np.linspace(-0.4, 0.4, 200)
    known = np.stack([np.full(200, 0.013), np.zeros(200), height], axis=1)
    vertices, faces = extract_isosurface(lambda p: np.clip(rod(p), -0.001, 0.001), 96, known)
    assert is_sound(vertices, faces)
    assert np.ptp(vertices[:, 2]) > 0.78


def test_what_leaves_the_grid_is_closed_at_its_border():
    vertices, faces = extract_isosurface(lambda p: ball(p) - 0.3, 32, NO_POINTS)
    assert len(faces)
    assert is_sound(vertices, faces)


def test_nothing_inside_gives_an_empty_mesh():
    vertices, faces = extract_isosurface(lambda p: ball(p) + 1.0, 32, NO_POINTS)
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)


def test_specks_and_bubbles_are_dropped():
    def distance(points: np.ndarray) -> np.ndarray:
        speck = np.linalg.norm(points - 0.45, axis=1) - 0.04
        bubble = np.linalg.norm(points, axis=1) - 0.15
        return np.minimum(np.maximum(ball(points), -bubble), speck)

    vertices, faces = drop_small_components(*extract_isosurface(distance, 64, NO_POINTS), 0.05)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 2e-3
    assert is_sound(vertices, faces)


def test_decimation_keeps_shape_and_closure():
    vertices, faces = decimate(*extract_isosurface(ball, 64, NO_POINTS), 2000)
    assert len(faces) <= 2000
    assert is_sound(vertices, faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 5e-3


CELLS = 18
AXIS = np.linspace(-0.54, 0.54, CELLS + 1)
STEP = AXIS[1] - AXIS[0]


def noise_over(points: np.ndarray, seed: int, blur: float) -> np.ndarray:
    """Unit noise on the grid's vertices, read at the nearest one."""
    values = np.random.default_rng(seed).standard_normal([CELLS + 1] * 3)
    values = ndimage.gaussian_filter(values, blur) if blur else values
    index = np.rint((points + 0.54) / STEP).astype(int)
    return values[tuple(index.T)] / values.std()


def touching_boxes(points: np.ndarray) -> np.ndarray:
    """Two boxes that share an edge, which lies on grid vertices: the field is 0 there."""
    centre, half = AXIS[CELLS // 2], 4 * STEP
    shift = np.array([half, half, 0.0])
    boxes = [np.abs(points - centre - sign * shift).max(axis=1) - half for sign in (-1, 1)]
    return np.round(np.minimum(*boxes), 9)


def checkerboard(points: np.ndarray) -> np.ndarray:
    """Cubes of three cells that touch along all their edges."""
    cube = np.floor((points + 0.54) / STEP / 3.0 + 1e-6).astype(int)
    return np.where(cube.sum(axis=1) % 2 == 0, 0.01, -0.01)


SHAPES = {
    "sphere": ball,
    "thin sheet": lambda p: np.abs(p[:, 0] + 0.3 * p[:, 1]) - 0.2 * STEP,
    "touching boxes": touching_boxes,
    "checkerboard": checkerboard,
    "nothing but noise": lambda p: np.zeros(len(p)),
    "steps of a tenth": lambda p: np.round(ball(p), 1),
}


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    noise=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    blur=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**16),
    share=st.sampled_from([1.0, 0.4, 0.05]),
)
def test_every_field_gives_a_watertight_manifold_mesh_before_and_after_decimation(
    shape: str, noise: float, blur: float, seed: int, share: float
):
    def distance(points: np.ndarray) -> np.ndarray:
        wobble = 0.1 * STEP * noise * noise_over(points, seed, blur) if noise else 0.0
        return np.clip(SHAPES[shape](points) + wobble, -0.05, 0.05)

    everywhere = np.stack(np.meshgrid(AXIS, AXIS, AXIS), axis=-1).reshape(-1, 3)
    vertices, faces = extract_isosurface(distance, CELLS, everywhere)
    vertices, faces = drop_small_components(vertices, faces, 0.01)
    assert is_sound(vertices.astype(np.float32), faces)
    vertices, faces = decimate(vertices, faces, int(share * len(faces)))
    assert is_sound(round_apart(vertices, faces), faces)


@pytest.mark.parametrize("gap", [0.0, 1e-9])
def test_parts_that_touch_stay_apart_when_rounded_as_files_do(gap: float):
    box = trimesh.creation.box(extents=(0.2, 0.2, 0.2))
    vertices = np.concatenate([box.vertices, box.vertices + np.array([0.2 + gap, 0.0, 0.0])])
    faces = np.concatenate([box.faces, box.faces + len(box.vertices)])
    assert not is_sound(vertices.astype(np.float32), faces)
    rounded = round_apart(vertices, faces)
    assert is_sound(rounded, faces)
    np.testing.assert_array_equal(rounded, rounded.astype(np.float32))
    assert np.abs(rounded - vertices).max() < 3e-6

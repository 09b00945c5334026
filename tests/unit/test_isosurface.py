import numpy as np
import trimesh

from modules.geometry.isosurface import decimate, drop_small_components, extract_isosurface
from modules.geometry.mesh import is_watertight

NO_POINTS = np.zeros((0, 3))


def ball(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=1) - 0.4


def test_a_sphere_is_closed_faces_outwards_and_is_exact():
    vertices, faces = extract_isosurface(ball, 48, NO_POINTS)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 1e-3
    assert is_watertight(vertices, faces)
    volume = trimesh.Trimesh(vertices, faces, process=False).volume
    assert abs(volume - 4 / 3 * np.pi * 0.4**3) < 1e-3


def test_only_cells_near_the_surface_are_evaluated_finely():
    counts = []

    def counted(points: np.ndarray) -> np.ndarray:
        counts.append(len(points))
        return ball(points)

    extract_isosurface(counted, 64, NO_POINTS)
    assert sum(counts) < 0.5 * 65**3


def test_a_rod_thinner_than_a_coarse_cell_is_found_by_its_points():
    def rod(points: np.ndarray) -> np.ndarray:
        return np.maximum(
            np.hypot(points[:, 0] - 0.013, points[:, 1]) - 0.012, abs(points[:, 2]) - 0.4
        )

    height = np.linspace(-0.4, 0.4, 200)
    known = np.stack([np.full(200, 0.013), np.zeros(200), height], axis=1)
    vertices, faces = extract_isosurface(lambda p: np.clip(rod(p), -0.001, 0.001), 96, known)
    assert is_watertight(vertices, faces)
    assert np.ptp(vertices[:, 2]) > 0.78


def test_what_leaves_the_grid_is_closed_at_its_border():
    vertices, faces = extract_isosurface(lambda p: ball(p) - 0.3, 32, NO_POINTS)
    assert len(faces)
    assert is_watertight(vertices, faces)


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
    assert is_watertight(vertices, faces)


def test_decimation_keeps_shape_and_closure():
    vertices, faces = decimate(*extract_isosurface(ball, 64, NO_POINTS), 2000)
    assert len(faces) <= 2000
    assert is_watertight(vertices, faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 5e-3

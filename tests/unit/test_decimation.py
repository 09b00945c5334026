import numpy as np
import pytest
import trimesh

from modules.geometry import decimation
from modules.geometry.decimation import decimate
from modules.geometry.isosurface import extract_isosurface, round_apart
from modules.metrics.geometry import MeshSurface
from modules.metrics.mesh_quality import mesh_quality


def sponge(points: np.ndarray) -> np.ndarray:
    """A gyroid with walls as thin as a few cells: merged carelessly, its sides touch."""
    x, y, z = (28.0 * points).T
    wall = np.abs(np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)) - 0.35
    return np.maximum(wall / 28.0, np.linalg.norm(points, axis=1) - 0.45)


@pytest.fixture(scope="module")
def dense() -> tuple[np.ndarray, np.ndarray]:
    return extract_isosurface(sponge, 64, np.zeros((0, 3)), sharp=False)


def is_sound(vertices: np.ndarray, faces: np.ndarray) -> bool:
    quality = mesh_quality(round_apart(vertices, faces), faces)
    return quality["watertight"] == quality["manifold"] == 1.0


@pytest.mark.parametrize("share", [0.3, 0.1, 0.05])
def test_faults_of_the_quick_pass_are_undone(dense, share: float, monkeypatch: pytest.MonkeyPatch):
    left, find = [], decimation._faulty_vertices

    def note(faces: np.ndarray) -> np.ndarray:
        left.append(find(faces))
        return left[-1]

    monkeypatch.setattr(decimation, "_faulty_vertices", note)
    vertices, faces = decimate(*dense, int(share * len(dense[1])))
    assert is_sound(vertices, faces)
    assert len(left[0]) > 0  # there was something to undo
    assert len(left[-1]) == 0


def test_what_cannot_be_mended_is_left_to_libigl(dense, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decimation, "_faulty_vertices", lambda faces: faces[0])
    assert is_sound(*decimate(*dense, len(dense[1]) // 5))


def test_a_decimated_mesh_stays_near(dense):
    vertices, faces = decimate(*dense, len(dense[1]) // 4)
    assert len(faces) <= len(dense[1]) // 4
    distance, _ = MeshSurface(vertices, faces).nearest(dense[0])
    assert distance.mean() < 1e-3


def test_faults_are_found_where_they_are():
    box = trimesh.creation.box().faces.astype(np.int64)
    assert len(decimation._faulty_vertices(box)) == 0
    assert set(decimation._faulty_vertices(box[1:])) == set(box[0])  # a hole
    pinched = np.concatenate([box, np.where(box == 0, 0, box + 8)])  # two boxes share vertex 0
    assert decimation._faulty_vertices(pinched).tolist() == [0]
    turned = box.copy()
    turned[0] = turned[0, ::-1]
    assert set(box[0]) <= set(decimation._faulty_vertices(turned))

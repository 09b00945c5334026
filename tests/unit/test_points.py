"""The lifted pixels as a point cloud file, read back by another library."""

from pathlib import Path

import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, colored, observe

from data_pipeline.contract import SourceFrame, UserError, linear_to_srgb
from modules.geometry.lift import Observation, lift
from modules.geometry.point_files import save_points


def half_red_ball() -> Observation:
    """A ball of radius 0.4, red where x > 0, blue elsewhere."""
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    red = ball.vertices[:, :1] > 0
    images, hit = observe(colored(ball, np.where(red, [[0.5, 0.0, 0.0]], [[0.0, 0.0, 0.5]])), 32)
    return lift(images, ORTHO6, hit)


def test_points_are_the_pixels_with_their_normals_and_srgb_colours(tmp_path: Path):
    observation = half_red_ball()
    save_points(observation, tmp_path / "ball.ply", extras={"relief": {"prompt": "é\nend_header"}})
    cloud = trimesh.load(tmp_path / "ball.ply")
    assert isinstance(cloud, trimesh.PointCloud)
    assert len(cloud.vertices) == observation.hit.sum()
    radius = np.linalg.norm(cloud.vertices, axis=1)
    np.testing.assert_allclose(radius, 0.4, atol=2e-3)
    raw = cloud.metadata["_ply_raw"]["vertex"]["data"]
    normal = np.stack([raw[name].reshape(-1) for name in ("nx", "ny", "nz")], axis=1)
    assert (normal * cloud.vertices / radius[:, None]).sum(axis=1).min() > 0.99
    clear = np.abs(cloud.vertices[:, 0]) > 0.1
    level = np.rint(linear_to_srgb(np.array(0.5)) * 255)
    red = cloud.vertices[clear, :1] > 0
    expected = np.where(red, [[level, 0, 0]], [[0, 0, level]])
    np.testing.assert_allclose(np.asarray(cloud.colors)[clear, :3], expected, atol=1)


def test_points_lie_in_the_source_frame(tmp_path: Path):
    frame = SourceFrame(scale=0.5, offset=(0.1, 0.0, -0.2))
    save_points(half_red_ball(), tmp_path / "ball.ply", frame)
    cloud = trimesh.load(tmp_path / "ball.ply")
    centre = frame.to_source(np.zeros(3))
    np.testing.assert_allclose(np.linalg.norm(cloud.vertices - centre, axis=1), 0.8, atol=4e-3)


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot write"):
        save_points(half_red_ball(), tmp_path / "nowhere/ball.ply")

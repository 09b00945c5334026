"""How exact positions and normals are, before and after they are stored."""

import igl
import numpy as np
import pytest
from golden.glb import uv_sphere
from golden.scenes import RESOLUTION_PX, WRITERS

pytestmark = pytest.mark.blender


@pytest.mark.parametrize("uid", ["cube", "sphere", "skewed"])
def test_positions_project_to_their_own_pixel_centres(samples, uid):
    sample = samples[uid]
    centre = np.arange(RESOLUTION_PX) + 0.5
    own = np.stack(np.meshgrid(centre, centre), axis=-1)
    for camera, position, hit in zip(sample.cameras, sample.coord, sample.hit, strict=True):
        pixels, depth = camera.project(position, RESOLUTION_PX)
        assert hit.any()
        assert np.abs(pixels - own)[hit].max() < 0.01
        assert (depth[hit] > 0).all()


@pytest.mark.parametrize("uid", list(WRITERS))
def test_passes_are_exact_before_they_are_stored(samples, uid):
    figures = samples[uid].meta["qa"]
    assert figures["reprojection_px"] <= 0.01
    assert figures["depth_error"] <= 1e-4  # Blender's own depth against `depth_of_coord`
    # Two of the scenes have no material: one grey, and nothing else is to be said about them.
    assert figures["flags"] == (["single_colour"] if uid in ("sphere", "skewed") else [])


def test_positions_of_all_views_lie_on_one_surface(samples):
    """Every view against the one mesh: two views differ by twice that at most."""
    sample = samples["sphere"]
    triangles = np.ascontiguousarray(0.5 * uv_sphere(1.0, 64)[0].reshape(-1, 3))
    faces = np.arange(len(triangles)).reshape(-1, 3)
    points = sample.coord[sample.hit].astype(np.float64)
    squared, *_ = igl.point_mesh_squared_distance(points, triangles, faces)
    assert np.sqrt(squared).max() <= 2e-5


def test_faces_of_the_cube_are_flat_and_where_they_belong(samples):
    sample = samples["cube"]
    outermost = np.abs(sample.coord[sample.hit]).max(axis=-1)
    assert np.abs(outermost - 0.5).max() <= 2e-5


def test_normals_are_unit_on_every_hit_pixel(samples):
    for sample in samples.values():
        assert np.abs(np.linalg.norm(sample.normal[sample.hit], axis=-1) - 1.0).max() <= 1e-3

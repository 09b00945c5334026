"""Normals: unit, world, facing the camera, the same from every view."""

import numpy as np
import pytest
from golden.scenes import RESOLUTION_PX, SKEW, WRITERS
from scipy.spatial import KDTree

pytestmark = pytest.mark.blender


@pytest.mark.parametrize("uid", list(WRITERS))
def test_normals_are_unit_on_every_hit_pixel_face_the_camera_and_vanish_elsewhere(samples, uid):
    sample = samples[uid]
    length = np.linalg.norm(sample.normal, axis=-1)
    assert np.abs(length[sample.hit] - 1.0).max() < 1e-4
    assert length[~sample.hit].max() < 1e-4
    for camera, normal, hit in zip(sample.cameras, sample.normal, sample.hit, strict=True):
        _, directions = camera.rays(RESOLUTION_PX)
        # A smooth-shaded silhouette may lean beyond the horizon, by no more than its facets' angle.
        assert (normal * directions).sum(-1)[hit].max(initial=0.0) < 0.05


def test_normals_of_a_sphere_are_its_radii(samples):
    sphere = samples["sphere"]
    position = sphere.coord[sphere.hit]
    radial = position / np.linalg.norm(position, axis=-1, keepdims=True)
    cosine = (radial * sphere.normal[sphere.hit]).sum(-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.0


def test_normals_of_a_skewed_shape_are_the_analytic_ones_in_every_view(samples):
    sample = samples["skewed"]
    for position, normal, hit in zip(sample.coord, sample.normal, sample.hit, strict=True):
        source = (position[hit] - sample.meta["offset"]) / sample.meta["scale"]
        unit = source @ np.linalg.inv(SKEW).T
        on_ellipsoid = np.abs(np.linalg.norm(unit, axis=-1) - 1.0) < 0.003
        expected = (unit @ np.linalg.inv(SKEW))[on_ellipsoid]
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        cosine = (expected * normal[hit][on_ellipsoid]).sum(-1)
        assert on_ellipsoid.mean() > 0.5
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 2.0


def test_one_surface_point_has_one_world_normal_whichever_view_sees_it(samples):
    sample = samples["skewed"]
    points = [position[hit] for position, hit in zip(sample.coord, sample.hit, strict=True)]
    normals = [normal[hit] for normal, hit in zip(sample.normal, sample.hit, strict=True)]
    num_pairs = 0
    for first in range(len(points)):
        for second in range(first):
            distance, nearest = KDTree(points[first]).query(points[second])
            same = distance < 0.002
            num_pairs += same.sum()
            cosine = (normals[second][same] * normals[first][nearest[same]]).sum(-1)
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            assert (
                angle.max(initial=0.0) < 2.0
            )  # two thousandths apart on a ball of radius 0.15: 0.8
    assert num_pairs > 1000

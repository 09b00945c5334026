"""Signed distances of shapes whose distance is known."""

import numpy as np
import pytest

pytestmark = pytest.mark.blender

ortho6 = pytest.mark.parametrize("samples", ["ortho6"], indirect=True)


@ortho6
def test_signed_distances_of_the_cube_and_sphere_are_exact(samples):
    points = samples["cube"].geometry["sdf_position"].astype(np.float64)
    beyond = np.abs(points) - 0.5
    truth = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
    np.testing.assert_allclose(samples["cube"].geometry["sdf_distance"], truth, atol=1e-5)
    points = samples["sphere"].geometry["sdf_position"].astype(np.float64)
    truth = np.linalg.norm(points, axis=1) - 0.5
    np.testing.assert_allclose(samples["sphere"].geometry["sdf_distance"], truth, atol=1e-3)
    assert samples["sphere"].geometry["sdf_confidence"].min() == 1.0

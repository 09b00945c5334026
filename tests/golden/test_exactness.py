"""How exact positions and normals are, before and after they are stored."""

import numpy as np
import pytest
from golden.scenes import RESOLUTION_PX

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

import numpy as np
import pytest

from data_pipeline.contract import view_layout
from modules.geometry.cameras import cameras_from_arrays


@pytest.mark.parametrize("layout", ["ortho6", "pinhole4"])
def test_cameras_survive_single_precision(layout: str):
    cameras = view_layout(layout)
    rebuilt = cameras_from_arrays(
        np.stack([camera.matrix for camera in cameras]).astype(np.float32),
        np.array([camera.ortho_scale or np.nan for camera in cameras], np.float32),
        np.array([camera.fov_deg or np.nan for camera in cameras], np.float32),
    )
    for camera, other in zip(cameras, rebuilt, strict=True):
        assert other.projection == camera.projection
        for first, second in zip(camera.rays(8), other.rays(8), strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)
        rotation = other.matrix[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)

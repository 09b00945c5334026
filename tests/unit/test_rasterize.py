import numpy as np
import pytest
import trimesh
from analytic import colored, flat_colored, sphere

from data_pipeline.contract import view_layout
from modules.geometry.rasterize import render_mesh


@pytest.mark.parametrize("layout", ["ortho6", "pinhole4"])
def test_a_sphere_is_seen_where_its_equation_says(layout: str):
    cameras = view_layout(layout)
    views = render_mesh(sphere(), cameras, 64)
    for view, camera in enumerate(cameras):
        origins, directions = camera.rays(64)
        along = -(origins * directions).sum(axis=-1)
        squared = 0.4**2 - ((origins + along[..., None] * directions) ** 2).sum(axis=-1)
        sure = np.abs(squared) > 0.004  # the mesh is a little smaller than the sphere
        np.testing.assert_array_equal(views.hit[view][sure], (squared > 0)[sure])
        hit = views.hit[view] & sure
        depth = (along - np.sqrt(np.maximum(squared, 0.0)))[..., None]
        coord = (origins + depth * directions)[hit]
        assert np.abs(views.coord[view][hit] - coord).max() < 2e-3
        assert (views.normal[view][hit] * coord / 0.4).sum(axis=1).min() > 0.999
    assert (views.rgb[~views.hit] == 1.0).all()
    assert (views.coord[~views.hit] == 0.0).all()
    assert (views.face[~views.hit] == -1).all()


def test_coord_projects_to_its_own_pixel_centre():
    for layout in ("ortho6", "pinhole4"):
        cameras = view_layout(layout)
        views = render_mesh(sphere(), cameras, 32)
        for view, camera in enumerate(cameras):
            pixels, _ = camera.project(views.coord[view], 32)
            row, column = np.nonzero(views.hit[view])
            error = pixels[views.hit[view]] - np.stack([column + 0.5, row + 0.5], axis=1)
            assert np.abs(error).max() < 0.01


def test_normals_face_the_camera_whatever_the_winding():
    plate = trimesh.creation.box(extents=(0.8, 0.8, 0.1))
    plate.invert()
    views = render_mesh(flat_colored(plate), view_layout("ortho6"), 32)
    for view, camera in enumerate(view_layout("ortho6")):
        assert (views.normal[view][views.hit[view]] @ camera.matrix[:3, 2]).min() > 0.99


def test_colours_are_interpolated_in_linear_light():
    plane = trimesh.Trimesh(
        [[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]], [[0, 1, 2], [0, 2, 3]]
    )
    colours = np.array([[0.0] * 3, [1.0] * 3, [1.0] * 3, [0.0] * 3])
    rgb = render_mesh(colored(plane, colours), view_layout("ortho6")[:1], 64).rgb[0, 32]
    x = ((np.arange(64) + 0.5) / 64 - 0.5) * 1.1 + 0.5
    inside = (x > 0.01) & (x < 0.99)
    expected = 1.055 * np.maximum(x, 0.01) ** (1 / 2.4) - 0.055
    np.testing.assert_allclose(rgb[inside, 0], expected[inside], atol=2e-3)

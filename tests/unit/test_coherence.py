"""Every kind of incoherence is seen by the figure that is meant for it, and by that alone."""

import dataclasses

import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, colored, sphere
from scipy.ndimage import gaussian_filter

from data_pipeline.contract import view_layout
from modules.geometry.rasterize import render_mesh
from modules.metrics.coherence import ViewImages, coherence, excess, mesh_normal_deg

RESOLUTION_PX = 96


def painted():
    """A ball with eight colours, its octants, and a small one beside it that hides some of it."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.3)
    ball.apply_translation((-0.1, 0.0, 0.0))
    small = trimesh.creation.icosphere(subdivisions=4, radius=0.12)
    small.apply_translation((0.37, 0.05, 0.1))
    body = trimesh.util.concatenate([ball, small])
    colours = 0.1 + 0.4 * (body.vertices > body.vertices.mean(axis=0)).astype(np.float64)
    return colored(body, colours)


def see(layout: str = "ortho6") -> ViewImages:
    cameras = view_layout(layout)
    views = render_mesh(painted(), cameras, RESOLUTION_PX)
    return ViewImages(cameras, views.rgb, views.normal, views.coord, views.hit)


@pytest.fixture(scope="module")
def images() -> ViewImages:
    return see()


@pytest.fixture(scope="module")
def true(images: ViewImages) -> dict[str, float]:
    return coherence(images)


def rises(images: ViewImages, true: dict[str, float], **changed: np.ndarray) -> dict[str, float]:
    """Return by how much the figures rise when images are exchanged."""
    return excess(coherence(dataclasses.replace(images, **changed)), true)


@pytest.mark.parametrize("layout", ["ortho6", "pinhole4"])
def test_a_true_render_lies_at_the_floor(layout):
    floor = coherence(see(layout))
    assert floor["normal_coord_deg"] < 5.0
    assert floor["cross_view_position"] < 0.003
    assert floor["cross_view_normal_deg"] < 1.0
    assert floor["cross_view_rgb"] < 0.02
    assert floor["cross_view_conflict"] < 0.01
    assert floor["reprojection_px"] < 0.001
    assert floor["edge_distance_px"] < 0.5


def unchanged(found: dict[str, float], *names: str) -> bool:
    return all(found[name] == 0.0 for name in names)


SHAPE = ("cross_view_position", "cross_view_conflict", "reprojection_px")
NORMALS = ("normal_coord_deg", "cross_view_normal_deg")
COLOURS = ("cross_view_rgb", "edge_distance_px")


def test_a_shifted_texture_is_seen_in_colours_alone(images, true):
    rgb = images.rgb.copy()
    rgb[1] = np.roll(rgb[1], 5, axis=1)
    found = rises(images, true, rgb=rgb)
    assert found["cross_view_rgb"] > 0.01
    assert found["edge_distance_px"] > 0.2
    assert unchanged(found, *SHAPE, *NORMALS)


def test_flipped_normals_are_seen_in_normals_alone(images, true):
    normal = images.normal.copy()
    normal[2] *= -1.0
    found = rises(images, true, normal=normal)
    assert found["normal_coord_deg"] > 20.0
    assert found["cross_view_normal_deg"] > 20.0
    assert unchanged(found, *SHAPE, *COLOURS)


def test_swapped_views_do_not_project_to_their_own_pixels(images, true):
    order = [2, 1, 0, 3, 4, 5]
    arrays = ("rgb", "normal", "coord", "hit")
    found = rises(images, true, **{name: getattr(images, name)[order] for name in arrays})
    assert found["reprojection_px"] > 5.0
    assert found["cross_view_conflict"] > 0.05


def test_a_surface_that_one_view_shows_elsewhere_is_seen_in_positions(images, true):
    back = np.asarray(ORTHO6[0].matrix[:3, 2])
    near, far = (
        rises(images, true, coord=_moved(images, 0, distance * back)) for distance in (0.02, 0.2)
    )
    assert near["cross_view_position"] > 0.003
    assert near["reprojection_px"] == pytest.approx(0.0, abs=1e-9)  # it moved along the rays
    assert far["cross_view_conflict"] > 0.1


def _moved(images: ViewImages, view: int, step: np.ndarray) -> np.ndarray:
    coord = images.coord.copy()
    coord[view] += step
    return coord


def test_the_more_images_are_blurred_the_less_they_agree(images, true):
    def blurred(sigma: float) -> dict[str, float]:
        arrays = {
            name: gaussian_filter(getattr(images, name), (0, sigma, sigma, 0))
            for name in ("rgb", "normal", "coord")
        }
        return rises(images, true, **arrays)

    little, much = blurred(0.6), blurred(1.5)
    for name in ("normal_coord_deg", "cross_view_rgb", "reprojection_px"):
        assert 0.0 < little[name] < much[name]


def test_a_mesh_is_held_against_the_normals_of_its_images(images):
    def measure(mesh) -> float:
        views = render_mesh(mesh, images.cameras, RESOLUTION_PX)
        return mesh_normal_deg(views, images.normal, images.hit)

    assert measure(painted()) == pytest.approx(0.0, abs=1e-3)
    assert measure(sphere(0.3)) > 5.0


def test_images_of_nothing_tell_nothing(images):
    empty = dataclasses.replace(images, hit=np.zeros_like(images.hit))
    assert all(np.isnan(value) for value in coherence(empty).values())

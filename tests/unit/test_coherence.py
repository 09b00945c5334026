"""Every kind of incoherence is seen by the figure that is meant for it, and by that alone."""

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, colored, sphere, to_images
from diffusers import AutoencoderDC, ModelMixin
from scipy.ndimage import gaussian_filter
from shared_assets import WEIGHTS, needs_weights
from tiny_autoencoder import TinyDC

from data_pipeline.contract import view_layout
from modules.geometry.rasterize import render_mesh
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.latents.patch_linear import start_patch_linear
from modules.metrics.coherence import ViewImages, coherence, excess, mesh_normal_deg
from modules.metrics.fidelity import view_images

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


def see(layout: str = "ortho6", resolution_px: int = RESOLUTION_PX) -> ViewImages:
    cameras = view_layout(layout)
    views = render_mesh(painted(), cameras, resolution_px)
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
    assert floor["edge_distance_px"] < 1.0  # the pattern's own edges are away from outlines


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


@pytest.fixture(scope="module", params=["linear", pytest.param("taef2", marks=needs_weights)])
def round_trips(request) -> tuple[ViewImages, np.ndarray, np.ndarray]:
    """Return true images; them after an autoencoder; and after one with noise on its latents."""
    images = see(resolution_px=64)
    stack = torch.from_numpy(to_images(images))
    autoencoder = _linear_code(stack) if request.param == "linear" else load_autoencoder(WEIGHTS)
    latents = encode_packed(autoencoder, stack, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = latents + 0.5 * latents.std() * noise
    clean, damaged = (decode_packed(autoencoder, each, 1).numpy() for each in (latents, noisy))
    return images, clean, damaged


def _linear_code(stack: torch.Tensor) -> ModelMixin:
    """Return an untrained autoencoder: a quarter of the principal components of its patches."""
    torch.manual_seed(0)
    autoencoder: AutoencoderDC = TinyDC()
    start_patch_linear(autoencoder, stack.flatten(0, 1))
    return autoencoder.eval().requires_grad_(False)


SEEN_BY = {
    "rgb": ("cross_view_rgb",),
    "normal": NORMALS,
    "coord": ("normal_coord_deg", "cross_view_position", "reprojection_px"),
}

NOT_SEEN_BY = {"rgb": (*SHAPE, *NORMALS), "normal": (*SHAPE, *COLOURS), "coord": ()}
"""Blurred edges of rgb may lie nearer to outlines; coords say which pixels are compared at all."""


@pytest.mark.parametrize("modality", SEEN_BY)
def test_a_vae_round_trip_is_seen_by_the_right_metric_and_in_the_right_order(round_trips, modality):
    images, *decoded = round_trips
    true = coherence(images)

    def rise(stack: np.ndarray) -> dict[str, float]:
        changed = getattr(view_images(stack, images.hit, images.cameras), modality)
        return rises(images, true, **{modality: changed})

    vae, corrupted = map(rise, decoded)
    for name in SEEN_BY[modality]:
        assert 0.0 < vae[name] < corrupted[name], name
    assert unchanged(vae, *NOT_SEEN_BY[modality])


def test_a_mesh_is_held_against_the_normals_of_its_images(images):
    def measure(mesh) -> float:
        views = render_mesh(mesh, images.cameras, RESOLUTION_PX)
        return mesh_normal_deg(views, images.normal, images.hit)

    assert measure(painted()) == pytest.approx(0.0, abs=1e-3)
    assert measure(sphere(0.3)) > 5.0


def test_noise_has_an_edge_near_every_outline_and_is_seen_nevertheless(images, true):
    noise = np.random.default_rng(0).normal(size=images.rgb.shape)
    little, much = (
        rises(images, true, rgb=np.clip(images.rgb + level * noise, 0.0, 1.0))["edge_distance_px"]
        for level in (0.06, 0.3)
    )
    assert 0.5 < little <= much + 0.2


def test_images_of_nothing_tell_nothing(images):
    empty = dataclasses.replace(images, hit=np.zeros_like(images.hit))
    assert all(np.isnan(value) for value in coherence(empty).values())


def pixel_by_pixel(images: ViewImages) -> dict[str, float]:
    """The figures (a), (b) without occlusion or conflicts, and (c), from docs/metrics.md alone."""
    side, angles, off, gaps = images.hit.shape[1], [], [], []
    for i, camera in enumerate(images.cameras):
        p, n, hit = images.coord[i], images.normal[i], images.hit[i]
        towards = np.asarray(camera.matrix)[:3, 2]
        corners = [(y, x) for y in range(side - 1) for x in range(side - 1)]
        corners = [(y, x) for y, x in corners if hit[y, x] and hit[y, x + 1] and hit[y + 1, x]]
        steps = {at: (p[at[0], at[1] + 1] - p[at], p[at[0] + 1, at[1]] - p[at]) for at in corners}
        lengths = {at: [np.linalg.norm(step) for step in both] for at, both in steps.items()}
        limit = 3.0 * np.median([length for both in lengths.values() for length in both])
        for at, (across, down) in steps.items():
            if max(lengths[at]) < limit:
                g = np.cross(down, across)
                g = -g if g @ towards < 0 else g
                cosine = g @ n[at] / np.linalg.norm(g) / np.linalg.norm(n[at])
                angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        for y, x in np.argwhere(hit):
            pixel, _ = camera.project(p[y, x][None], side)
            off.append(np.hypot(pixel[0, 0] - x - 0.5, pixel[0, 1] - y - 0.5))
            gaps += [_gap(images, j, p[y, x]) for j in range(len(images.cameras)) if j != i]
    return {
        "normal_coord_deg": np.mean(angles),
        "reprojection_px": np.mean(off),
        "cross_view_position": np.mean([gap for gap in gaps if gap is not None]),
    }


def _gap(images: ViewImages, view: int, point: np.ndarray) -> float | None:
    """Return how far a view shows another point where this one is; None where it is no match."""
    camera, side = images.cameras[view], images.hit.shape[1]
    pixel, depth = camera.project(point[None], side)
    x, y = pixel[0] - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    if not (0 <= x <= side - 1 and 0 <= y <= side - 1):
        return None
    left, top = min(left, side - 2), min(top, side - 2)
    corners = [(top + dy, left + dx) for dy in (0, 1) for dx in (0, 1)]
    points = np.array([images.coord[view][at] for at in corners])
    if not all(images.hit[view][at] for at in corners) or np.ptp(points, axis=0).max() >= 0.05:
        return None
    a, b = x - left, y - top
    weights = np.array([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    theirs = weights @ points
    _, surface = camera.project(theirs[None], side)
    return np.linalg.norm(point - theirs) if abs(depth[0] - surface[0]) <= 0.05 else None


def test_figures_equal_their_formulas_pixel_by_pixel():
    images = see(resolution_px=24)
    noise = np.random.default_rng(0).normal(size=images.coord.shape)
    images = dataclasses.replace(images, coord=images.coord + 0.004 * noise)
    found, expected = coherence(images), pixel_by_pixel(images)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key

import threading

import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, flat_colored, observe, to_images

from data_pipeline.contract import linear_to_srgb, view_layout
from modules.geometry import texture as texture_module
from modules.geometry.atlas import Atlas, grid_atlas, unwrap
from modules.geometry.lift import lift
from modules.geometry.mesh import TexturedMesh, sample_texture, smooth_normals
from modules.geometry.rasterize import RayScene, render_mesh
from modules.geometry.texture import BakeSettings, bake

FACE_COLOURS = np.array(
    [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.8, 0.1], [0.1, 0.8, 0.8], [0.5] * 3]
)
"""Linear colours of a box's sides, by 2 * axis + (1 if positive)."""


def side_of(normals: np.ndarray) -> np.ndarray:
    axis = np.abs(normals).argmax(axis=1)
    return 2 * axis + (np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] > 0)


def painted_box() -> trimesh.Trimesh:
    return trimesh.creation.box(extents=(0.9, 0.7, 0.5)).subdivide().subdivide()


def magenta(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return np.tile([1.0, 0.0, 1.0], (len(points), 1))


def baked(observation, body: trimesh.Trimesh, texture_px: int = 128) -> TexturedMesh:
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces, np.int64)
    atlas = unwrap(vertices, faces, texture_px)
    normals = smooth_normals(vertices, faces)[atlas.source]
    placed = vertices[atlas.source]
    texture = bake(
        placed, atlas, normals, observation, 0.0, magenta, BakeSettings(resolution_px=texture_px)
    )
    return TexturedMesh(placed, atlas.faces, atlas.uv.astype(np.float32), texture)


def test_a_baked_box_shows_its_colours_and_no_seam():
    body = painted_box()
    images, hit = observe(flat_colored(body, FACE_COLOURS[side_of(body.face_normals)]), 64)
    mesh = baked(lift(images, ORTHO6, hit), body)
    views = render_mesh(mesh, ORTHO6, 128)
    inner = views.hit.copy()
    for axis in (1, 2):  # the box's own edges, where two colours meet, are left out
        for shift in range(-4, 5):
            inner &= np.roll(views.hit, shift, axis=axis)
    expected = linear_to_srgb(FACE_COLOURS)[[2, 1, 3, 0, 5, 4]]
    for view in range(6):
        error = np.abs(views.rgb[view][inner[view]] - expected[view])
        assert error.max() < 0.02, ORTHO6[view].name


def test_what_no_view_sees_takes_the_colour_field():
    body = painted_box()
    images, hit = observe(flat_colored(body, FACE_COLOURS[side_of(body.face_normals)]), 64)
    observation = lift(images[:, :5], ORTHO6[:5], hit[:5])  # not from below
    views = render_mesh(baked(observation, body), ORTHO6[5:], 64)
    centre = views.rgb[0, 24:40, 24:40]
    np.testing.assert_allclose(centre, np.broadcast_to([1.0, 0.0, 1.0], centre.shape), atol=0.02)


def test_baking_by_one_thread_leaves_all_other_threads_theirs(monkeypatch: pytest.MonkeyPatch):
    body, before = painted_box(), torch.get_num_threads()
    images, hit = observe(flat_colored(body, FACE_COLOURS[side_of(body.face_normals)]), 64)
    baking: list[int] = []
    elsewhere: list[int] = []
    add_view = texture_module._Baking.add_view

    def counted(*arguments) -> None:
        baking.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
        add_view(*arguments)

    monkeypatch.setattr(texture_module._Baking, "add_view", counted)
    try:
        torch.set_num_threads(3)
        baked(lift(images, ORTHO6, hit), body)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (set(baking), set(elsewhere), after) == ({1}, {3}, 3)


def test_colour_of_an_occluder_does_not_bleed_onto_what_lies_behind():
    front = trimesh.creation.box(extents=(0.3, 0.1, 0.3))
    front.apply_translation([0, -0.4, 0])
    back = trimesh.creation.box(extents=(0.9, 0.1, 0.9)).subdivide().subdivide()
    back.apply_translation([0, 0.4, 0])
    body = trimesh.util.concatenate([front, back])
    red = np.arange(len(body.faces)) < len(front.faces)
    colours = np.where(red[:, None], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
    images, hit = observe(flat_colored(body, colours), 64)
    mesh = baked(lift(images, ORTHO6, hit), body)
    # Seen past the occluder's outline, the back plate is blue (or the colour field's magenta).
    face = np.flatnonzero((body.triangles_center[:, 1] > 0.3) & (body.face_normals[:, 1] < -0.9))
    rng = np.random.default_rng(0)
    barycentric = rng.dirichlet(np.ones(3), len(face) * 40)
    rgb = mesh.colours_at(np.repeat(face, 40), barycentric)
    assert rgb[:, 2].min() > 0.95


def test_perspective_views_colour_what_they_see_and_nothing_else():
    """Two boxes, one behind the other: every texel is its box's blue or red, or the field's."""
    front = trimesh.creation.box(extents=(0.3, 0.3, 0.3)).subdivide().subdivide()
    back = front.copy()
    front.apply_translation([0, -0.3, 0])
    back.apply_translation([0.1, 0.3, 0])
    body = trimesh.util.concatenate([front, back])
    is_front = np.arange(len(body.faces)) < len(front.faces)
    colours = np.where(is_front[:, None], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
    cameras = view_layout("pinhole4")
    views = render_mesh(flat_colored(body, colours), cameras, 128)
    mesh = baked(lift(to_images(views).astype(np.float64), cameras, views.hit), body, 256)
    rng = np.random.default_rng(0)
    face = np.repeat(np.arange(len(body.faces)), 20)
    where = rng.dirichlet([4.0, 4.0, 4.0], len(face))
    rgb = mesh.colours_at(face, where)
    assert rgb[is_front[face], 1].max() < 0.05
    assert rgb[is_front[face], 0].min() > 0.95  # red, or magenta
    assert rgb[~is_front[face], 2].min() > 0.95  # blue, or magenta
    point, normal = body.triangles, body.face_normals[face]
    point = np.einsum("pk,pkc->pc", where, point[face])
    eyes = np.stack([camera.matrix[:3, 3] for camera in cameras])
    toward = eyes[:, None] - point
    toward /= np.linalg.norm(toward, axis=2, keepdims=True)
    scene, seen = RayScene(np.asarray(body.vertices), np.asarray(body.faces)), []
    for direction in toward:
        free = scene.escapes(point + 0.005 * (normal + direction), direction)
        seen.append(free & ((normal * direction).sum(axis=1) > 0.3))
    is_magenta = (rgb[:, 0] > 0.9) & (rgb[:, 2] > 0.9)
    assert is_magenta[np.any(seen, axis=0)].mean() < 0.02
    assert is_magenta[normal[:, 2] < -0.9].mean() > 0.8  # but at edges, no view is below


def test_faces_that_slip_between_texels_take_a_mean_colour():
    body = painted_box()
    images, hit = observe(flat_colored(body, FACE_COLOURS[side_of(body.face_normals)]), 64)
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces, np.int64)
    atlas = grid_atlas(faces, 8)
    inside = atlas.uv[atlas.faces].mean(axis=1, keepdims=True)
    uv = np.floor(inside * 8) / 8 + 0.01 * atlas.uv[atlas.faces]  # beside the texels' corners
    atlas = Atlas(source=atlas.source, faces=atlas.faces, uv=uv.reshape(-1, 2))
    placed, normals = vertices[atlas.source], smooth_normals(vertices, faces)[atlas.source]
    texture = bake(
        placed, atlas, normals, lift(images, ORTHO6, hit), 0.0, magenta,
        BakeSettings(resolution_px=8),
    )  # fmt: skip
    np.testing.assert_array_equal(texture, np.tile([255, 0, 255], (8, 8, 1)))


def box_filtered(texture: np.ndarray, levels: int) -> np.ndarray:
    """Return a mip level of a texture: the mean of 2 x 2 texels, so many times."""
    level = texture.astype(np.float64)
    for _ in range(levels):
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4.0
    return np.rint(level).astype(np.uint8)


def test_smaller_mip_levels_show_no_background_and_hardly_any_of_other_charts():
    """Largest error of 99.9 % of the surface: .01 at half, .02 at a quarter, .1 at an eighth."""
    body = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    body.vertices *= 1.0 + 0.1 * np.prod(np.sin(25.0 * body.vertices), axis=1, keepdims=True)
    vertices, faces = np.asarray(body.vertices), np.asarray(body.faces, np.int64)

    def by_place(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        return np.clip(points + 0.5, 0.0, 1.0)

    images, hit = observe(flat_colored(body), 16)
    blind = lift(images, ORTHO6, np.zeros_like(hit))  # the colour field says everything
    atlas = unwrap(vertices, faces, 512)
    texture = bake(
        vertices[atlas.source], atlas, smooth_normals(vertices, faces)[atlas.source], blind, 0.0,
        by_place, BakeSettings(resolution_px=512),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    face, where = rng.integers(len(faces), size=20_000), rng.dirichlet(np.ones(3), 20_000)
    uv = np.einsum("pk,pkc->pc", where, atlas.uv[atlas.faces[face]])
    truth = np.einsum("pk,pkc->pc", where, vertices[faces[face]]) + 0.5
    for levels, most in ((0, 0.005), (1, 0.01), (2, 0.02), (3, 0.1)):
        error = np.abs(sample_texture(box_filtered(texture, levels), uv) - truth).max(axis=1)
        assert np.percentile(error, 99.9) < most, levels

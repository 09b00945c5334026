import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, flat_colored, observe

from data_pipeline.contract import linear_to_srgb
from modules.geometry.atlas import grid_atlas, unwrap
from modules.geometry.lift import lift
from modules.geometry.mesh import TexturedMesh, smooth_normals
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


def test_charts_do_not_overlap_and_keep_every_face():
    body = painted_box()
    for atlas in (
        unwrap(body.vertices, np.asarray(body.faces, np.int64), 128),
        grid_atlas(np.asarray(body.faces, np.int64), 128),
    ):
        assert atlas.faces.shape == body.faces.shape
        np.testing.assert_array_equal(atlas.source[atlas.faces], body.faces)
        assert atlas.uv.min() >= 0
        assert atlas.uv.max() <= 1
        corners = atlas.uv[atlas.faces]
        inner = 0.9 * corners + 0.1 * corners.mean(axis=1, keepdims=True)
        flat = np.concatenate([atlas.uv, np.zeros((len(atlas.uv), 1))], axis=1)
        for corner in range(3):
            origins = np.concatenate([inner[:, corner], np.ones((len(inner), 1))], axis=1)
            for height, down in ((1.0, -1.0), (-1.0, 1.0)):
                origins[:, 2] = height
                rays = np.tile([0.0, 0.0, down], (len(inner), 1))
                face, _ = RayScene(flat, atlas.faces).first_hit(origins, rays)
                np.testing.assert_array_equal(face, np.arange(len(inner)))


def test_when_xatlas_takes_too_long_a_grid_stands_in():
    body = painted_box()
    with pytest.warns(UserWarning, match="xatlas gave no atlas"):
        atlas = unwrap(body.vertices, np.asarray(body.faces, np.int64), 128, timeout_s=0.001)
    assert len(atlas.faces) == len(body.faces)

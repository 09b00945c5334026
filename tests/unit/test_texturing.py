"""A given mesh keeps its shape, frame and normals, and wears what the images show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, colored, flat_colored

from data_pipeline.contract import UserError
from modules.geometry.mesh import ColoredMesh, load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.pipelines import texturing
from modules.pipelines.texturing import GivenMesh, has_usable_uv, seen_from_behind

SIDE = 64


def by_place(given: GivenMesh) -> torch.Tensor:
    """Return images of the mesh whose colour is its place in the cube."""
    images, hit = given.geometry(ORTHO6, SIDE)
    images[0] = torch.where(hit[:, None], images[2], 1.0)
    return images


def worst_colour(mesh, given: GivenMesh, share: float = 99.0) -> float:
    """Return the given percentile of the difference from the place, where the views look."""
    views = render_mesh(mesh, ORTHO6, 2 * SIDE)
    error = np.abs(views.rgb - np.clip(views.coord + 0.5, 0, 1)).max(axis=-1)
    return float(np.percentile(error[views.hit], share))


def box(with_uv: bool = False, **changes) -> ColoredMesh:
    """A box far from the origin, with hard edges; its sides lie in a 3 x 2 grid of the texture."""
    body = trimesh.creation.box(extents=(4.0, 3.0, 2.0)).subdivide().subdivide()
    mesh = flat_colored(body.apply_translation([1000.0, -50.0, 7.0]))
    if not with_uv:
        return replace(mesh, **changes)
    normal = mesh.corner_normals[:, 0]
    axis = np.abs(normal).argmax(axis=1)
    kept = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    place = (mesh.vertices - mesh.vertices.min(axis=0))[mesh.faces] / 4.0
    local = np.take_along_axis(place, kept[:, None, :].repeat(3, axis=1), axis=2)
    corner = np.stack([axis, np.take_along_axis(normal, axis[:, None], 1)[:, 0] > 0], axis=1)
    uv = (local * 0.9 + corner[:, None] + 0.05) / [3.0, 2.0]
    return replace(mesh, corner_uv=uv, **changes)


@pytest.mark.parametrize("with_uv", [False, True])
def test_a_bare_mesh_wears_what_the_views_show_and_keeps_its_place(tmp_path: Path, with_uv: bool):
    mesh = box(with_uv)
    given = GivenMesh(mesh)
    textured = given(by_place(given), ORTHO6, texture_px=256)
    assert worst_colour(textured, given) < 0.03
    save_mesh(textured, tmp_path / "box.glb", given.frame)
    loaded = load_mesh(tmp_path / "box.glb")
    np.testing.assert_allclose(
        loaded.vertices[loaded.faces], mesh.vertices[mesh.faces], atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(loaded.corner_normals, mesh.corner_normals, atol=1e-3)
    if with_uv:
        np.testing.assert_allclose(loaded.corner_uv, mesh.corner_uv, atol=1e-5)


def test_coordinates_that_cannot_hold_a_texture_are_made_anew():
    good = box(with_uv=True)
    assert has_usable_uv(good)
    uv = good.corner_uv
    for bad in (
        np.zeros_like(uv),  # none
        np.concatenate([uv[:48], uv[:48], uv[96:]]),  # two parts share a place
        uv * 3.0,  # repeats
        uv * 0.02,  # a speck
        np.where(np.arange(len(uv))[:, None, None] < 20, uv[:1, :1], uv),  # a palette's points
        np.where(np.arange(len(uv))[:, None, None] < 1, np.nan, uv),
    ):
        assert not has_usable_uv(replace(good, corner_uv=bad))


def test_faces_wound_the_wrong_way_are_painted_on_the_side_that_is_seen():
    inside_out = box()
    inside_out = replace(inside_out, faces=inside_out.faces[:, ::-1])
    given = GivenMesh(inside_out)
    assert seen_from_behind(given.mesh, ORTHO6).all()
    assert not seen_from_behind(GivenMesh(box()).mesh, ORTHO6).any()
    textured = given(by_place(given), ORTHO6, texture_px=256)
    assert worst_colour(textured, given) < 0.03
    # Corner order and stored normals are the given ones.
    corners = given.mesh.vertices[given.mesh.faces]
    np.testing.assert_allclose(textured.vertices[textured.faces], corners, atol=1e-9)


def test_smooth_normals_stay_smooth():
    given = GivenMesh(colored(trimesh.creation.icosphere(subdivisions=3, radius=2.0)))
    textured = given(by_place(given), ORTHO6, texture_px=256)
    assert worst_colour(textured, given) < 0.03
    expected = textured.vertices / np.linalg.norm(textured.vertices, axis=1, keepdims=True)
    np.testing.assert_allclose(textured.vertex_normals, expected, atol=0.02)


def test_what_cannot_be_textured_is_told(monkeypatch, tmp_path: Path):
    with pytest.raises(UserError, match="no mesh file at"):
        GivenMesh.load(tmp_path / "none.glb")
    with pytest.raises(UserError, match="one point"):
        GivenMesh(box(vertices=np.zeros((len(box().vertices), 3))))
    given = GivenMesh(box())
    with pytest.raises(UserError, match="keeps its shape"):
        given(by_place(given), ORTHO6, refine_steps=3)
    monkeypatch.setattr(texturing, "MAX_GIVEN_FACES", 10)
    with pytest.raises(UserError, match="at most 10 can be textured: simplify"):
        GivenMesh(box())


def test_a_line_is_refused_for_no_view_shows_it():
    line = box()
    line = replace(line, vertices=line.vertices * [1.0, 0.0, 0.0])
    given = GivenMesh(line)
    with pytest.raises(UserError, match="no view shows the mesh"):
        given(by_place(given), ORTHO6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: images.fill_(torch.nan), "NaN or infinite"),
        (lambda images: images[0].fill_(torch.inf), "NaN or infinite"),
        (lambda images: images.mul_(100.0), "lie in"),
    ],
)
def test_images_that_no_sound_model_makes_are_refused(spoil, message: str):
    given = GivenMesh(box())
    images = by_place(given)
    spoil(images)
    with pytest.raises(UserError, match=message):
        given(images, ORTHO6)
    with pytest.raises(UserError, match="do not fit 5 cameras"):
        given(by_place(given), ORTHO6[:5])

"""Embree's rasterizer against the slow reference, and both against what images must do."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import sphere
from raster_scenes import CAMERAS, images, inputs, soup, square, torus

from data_pipeline.contract import Camera, UserError, view_layout
from modules.geometry.mesh import sample_texture
from modules.geometry.rasterize import RayScene, render_mesh
from modules.geometry.rasterizer import (
    Fragments,
    clip_positions,
    rasterizer_for,
    rasterizer_or_embree,
)
from modules.geometry.rasterizer_antialias import opposite_vertices
from modules.geometry.rasterizer_embree import EmbreeRasterizer, pixel_rays
from modules.geometry.rasterizer_reference import ReferenceRasterizer

SIZE = 24
EMBREE, REFERENCE = EmbreeRasterizer(), ReferenceRasterizer()
SCENES = {"soup 0": soup(0), "soup 1": soup(1), "soup 2": soup(2), "torus": torus()}


def both(vertices, faces, cameras=CAMERAS, size: int = SIZE) -> tuple[Fragments, Fragments]:
    return (
        EMBREE.rasterize(vertices, faces, cameras, size),
        REFERENCE.rasterize(vertices, faces, cameras, size),
    )


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_faces_and_barycentrics_equal_the_reference(scene: str):
    vertices, faces = SCENES[scene]
    fast, slow = both(vertices, faces)
    assert slow.hit.float().mean() > 0.3
    same = fast.face == slow.face
    assert same.float().mean() > 0.998  # a pixel centre on an edge may go either way
    error = (fast.barycentric - slow.barycentric)[same].abs().max()
    assert error < 1e-9
    assert (fast.barycentric[~fast.hit] == 0).all()


def test_embrees_own_float32_barycentrics_place_the_same_points():
    vertices, faces = soup()
    quick = EMBREE.rasterize(vertices.float(), faces, CAMERAS, 64)
    exact = EMBREE.rasterize(vertices, faces, CAMERAS, 64)
    assert torch.equal(quick.face, exact.face)
    quick_coord = EMBREE.interpolate(vertices.float(), faces, quick)
    exact_coord = EMBREE.interpolate(vertices, faces, exact)
    torch.testing.assert_close(quick_coord.double(), exact_coord, atol=2e-5, rtol=0)
    assert (quick.barycentric[~quick.hit] == 0).all()
    needing = EMBREE.rasterize(vertices.float().requires_grad_(), faces, CAMERAS, 64)
    assert torch.equal(needing.barycentric, quick.barycentric)


def test_views_equal_those_of_render_mesh():
    mesh = sphere()
    cameras = (*view_layout("ortho6"), *view_layout("pinhole4"))
    views = render_mesh(mesh, cameras, 48)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    seen = EMBREE.rasterize(vertices, faces, cameras, 48)
    assert (seen.face.numpy() == views.face).mean() > 0.999
    coord = EMBREE.interpolate(vertices, faces, seen).numpy()
    np.testing.assert_allclose(coord, views.coord, atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_clip_positions_project_as_the_camera_does(camera: Camera):
    vertices = torch.rand(50, 3, dtype=torch.float64) - 0.5
    clip = clip_positions(vertices, [camera])[0]
    pixels, depth = camera.project(vertices.numpy(), 32)
    ours = (clip[:, :2] / clip[:, 3:] + 1.0) * 16.0
    np.testing.assert_allclose(ours.numpy(), pixels, atol=1e-9)
    z = (clip[:, 2] / clip[:, 3]).numpy()
    assert np.abs(z).max() < 1.0
    assert (np.argsort(z) == np.argsort(depth)).all()


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_pixel_rays_are_the_cameras(camera: Camera):
    origins, directions = camera.rays(32)
    window = (slice(3, 20), slice(10, 32))
    ours, ways = pixel_rays(camera, 32, *window)
    ways = ways / np.linalg.norm(ways, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, origins[window], atol=1e-6)
    np.testing.assert_allclose(ways, directions[window], atol=1e-6)


def test_textures_repeat_with_v_up_and_equal_the_reference():
    vertices, faces = soup()
    fast, slow = both(vertices, faces)
    generator = torch.Generator().manual_seed(1)
    uv = 3.0 * torch.rand(len(vertices), 2, generator=generator).double() - 1.0
    image = torch.rand(5, 7, 3, generator=generator).double()
    ours = EMBREE.texture(image, EMBREE.interpolate(uv, faces, fast), fast)
    theirs = REFERENCE.texture(image, REFERENCE.interpolate(uv, faces, slow), slow)
    same = fast.face == slow.face
    torch.testing.assert_close(ours[same], theirs[same])
    assert (ours[~fast.hit] == 0).all()
    bytes_ = (image * 255).round().byte()
    where = EMBREE.interpolate(uv, faces, fast)
    rgb = EMBREE.texture(bytes_.double() / 255, where, fast)[fast.hit]
    np.testing.assert_allclose(
        rgb.numpy(), sample_texture(bytes_.numpy(), where[fast.hit].numpy()), atol=1e-12
    )


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_antialiased_images_equal_the_reference(scene: str):
    vertices, faces = SCENES[scene]
    fast = EMBREE.rasterize(vertices, faces, CAMERAS, SIZE)
    image = torch.cat([EMBREE.interpolate(vertices, faces, fast), fast.hit[..., None]], dim=-1)
    ours, theirs = EMBREE.antialias(image, fast), REFERENCE.antialias(image, fast)
    torch.testing.assert_close(ours, theirs)
    assert (ours != image).any(dim=-1).sum() > 30


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_gradients_equal_the_reference(scene: str):
    *leaves, faces = inputs(SCENES[scene])
    gradients = []
    for rasterizer in (EMBREE, REFERENCE):
        fresh = [leaf.clone().requires_grad_() for leaf in leaves]
        output = images(rasterizer, *fresh, faces, 16)
        weight = torch.rand(output.shape, generator=torch.Generator().manual_seed(3)).double()
        (output * weight).sum().backward()
        gradients.append([leaf.grad for leaf in fresh])
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_float32_has_the_gradients_of_float64():
    *leaves, faces = inputs(SCENES["torus"])
    weight = torch.rand(2, 32, 32, 8, generator=torch.Generator().manual_seed(3))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        fresh = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        (images(EMBREE, *fresh, faces, 32) * weight.to(dtype)).sum().backward()
        gradients.append([leaf.grad.double() for leaf in fresh])
    for single, double in zip(*gradients, strict=True):
        assert (single - double).norm() < 1e-3 * double.norm()


def test_gradients_are_the_derivatives():
    vertices, faces = soup(2)
    *leaves, faces = inputs((vertices[:14], faces[:8]))
    fresh = [leaf.clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(
        lambda *values: images(EMBREE, *values, faces, 5), fresh, eps=1e-7, atol=1e-4
    )


FRONT = (view_layout("ortho6")[0], view_layout("pinhole4")[0])


def silhouette(vertices: torch.Tensor, faces: torch.Tensor, cameras, size: int) -> torch.Tensor:
    seen = EMBREE.rasterize(vertices, faces, cameras, size)
    return EMBREE.antialias(seen.hit[..., None].float(), seen)[..., 0]


def test_antialiased_coverage_grows_with_the_area():
    sides = np.linspace(0.3, 0.4, 50)  # less than a tenth of a pixel a step
    pixels = [
        float(silhouette(*square(side, x=0.013, z=-0.021), FRONT[:1], 32).sum()) for side in sides
    ]
    assert (np.diff(pixels) > 0).all()
    # The four pixels at the corners are as covered as one of their edges says.
    np.testing.assert_allclose(pixels, (sides / 1.1 * 32) ** 2, atol=1.5)


def test_a_silhouettes_gradient_points_outwards():
    vertices, faces = square(0.513)
    for camera in FRONT:
        leaf = vertices.clone().requires_grad_()
        silhouette(leaf, faces, [camera], 40).sum().backward()
        assert leaf.grad is not None
        outward = (leaf.grad * vertices).sum(dim=1)
        assert (outward > 1.0).all()
        # d area / d scale = 2 area, in pixels
        area = silhouette(vertices, faces, [camera], 40).sum()
        assert outward.sum() == pytest.approx(2.0 * float(area), rel=0.08)


def test_a_square_finds_its_place_and_size_by_its_silhouette():
    start, faces = square(0.30, x=-0.08, z=0.06)
    goal = silhouette(*square(0.45, x=0.07, z=-0.05), FRONT, 48)
    vertices = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vertices], lr=8e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (silhouette(vertices, faces, FRONT, 48) - goal).square().mean()
        loss.backward()
        optimizer.step()
    error = (vertices - square(0.45, x=0.07, z=-0.05)[0])[:, [0, 2]].abs().max()
    assert error < 2e-3  # a tenth of a pixel; it started 7 pixels away


def test_only_folds_and_borders_are_silhouettes():
    _, faces = square(1.0)
    assert opposite_vertices(faces).tolist() == [[-1, 3, -1], [-1, -1, 1]]
    three = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])  # one edge, three faces
    assert (opposite_vertices(three) == -1).all()
    vertices, faces = square(0.6)
    seen = EMBREE.rasterize(vertices, faces, FRONT[:1], 16)
    apart = torch.stack([seen.face == 0, seen.face == 1], dim=-1).float()
    blended = EMBREE.antialias(apart, seen)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[5:11, 5:11] = True
    assert torch.equal(blended[0, inside], apart[0, inside])  # the diagonal stays sharp


@pytest.mark.parametrize("rasterizer", [EMBREE, REFERENCE], ids=["embree", "reference"])
def test_meshes_that_show_nothing(rasterizer):
    nothing = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)
    vertices, faces = square(0.4)
    behind = vertices + torch.tensor([0.0, -9.0, 0.0]), faces
    beside = vertices + torch.tensor([7.0, 0.0, 0.0]), faces
    flat = torch.zeros(3, 3), torch.tensor([[0, 1, 2]])
    edge_on = vertices[:, [1, 0, 2]], faces
    for points, corners in (nothing, behind, beside, flat, edge_on, (vertices, nothing[1])):
        points = points.clone().requires_grad_()
        seen = rasterizer.rasterize(points, corners, FRONT, 8)
        assert not seen.hit.any()
        image = rasterizer.interpolate(points, corners, seen)
        image = image + rasterizer.texture(torch.ones(2, 2, 3), image[..., :2], seen)
        image = rasterizer.antialias(image, seen)
        assert image.shape == (2, 8, 8, 3)
        assert (image == 0).all()


def test_attributes_may_have_faces_of_their_own():
    vertices, faces = square(0.8)
    seen = EMBREE.rasterize(vertices, faces, FRONT[:1], 8)
    colours = torch.eye(2).repeat_interleave(3, dim=0)  # one row a corner: each face its colour
    image = EMBREE.interpolate(colours, torch.arange(6).view(2, 3), seen)
    for face in (0, 1):
        torch.testing.assert_close(image[..., face], (seen.face == face).float())


def test_a_mesh_changed_in_place_is_seen_anew():
    vertices, faces = (leaf.clone() for leaf in square(0.4, x=0.013))
    rasterizer = EmbreeRasterizer()
    first = rasterizer.rasterize(vertices, faces, FRONT, 16)
    assert torch.equal(rasterizer.rasterize(vertices, faces, FRONT, 16).face, first.face)
    vertices.mul_(1.5)
    grown = rasterizer.rasterize(vertices, faces, FRONT, 16)
    assert grown.hit.sum() > 1.5 * first.hit.sum()
    faces.copy_(faces.flip(0))
    swapped = rasterizer.rasterize(vertices, faces, FRONT, 16)
    assert torch.equal(swapped.face, torch.where(grown.hit, 1 - grown.face, -1))


def test_a_mesh_that_another_thread_rasterizes_meanwhile_is_not_mistaken(
    monkeypatch: pytest.MonkeyPatch,
):
    rasterizer, (mine, others) = EmbreeRasterizer(), (torus(), square(0.5))
    made: list[RayScene] = []

    def interrupted(vertices: np.ndarray, faces: np.ndarray) -> RayScene:
        made.append(RayScene(vertices, faces))
        scene = made[-1]
        if len(made) == 1:
            rasterizer.rasterize(*others, CAMERAS, SIZE)
        return scene

    expected = [EmbreeRasterizer().rasterize(*mesh, CAMERAS, SIZE).face for mesh in (mine, others)]
    monkeypatch.setattr("modules.geometry.rasterizer_embree.RayScene", interrupted)
    found = [rasterizer.rasterize(*mesh, CAMERAS, SIZE).face for mesh in (mine, others)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_faces_may_be_int32():
    vertices, attributes, image, faces = inputs(SCENES["torus"])
    short = images(EMBREE, vertices, attributes, image, faces.int(), SIZE)
    assert torch.equal(short, images(EMBREE, vertices, attributes, image, faces, SIZE))


def test_wrong_input_is_refused_with_what_to_do():
    vertices, faces = square(0.4)
    for arguments, message in (
        ((vertices.half(), faces, FRONT, 8), "give float32"),
        ((vertices, faces.short(), FRONT, 8), "int32 or int64"),
        ((vertices, faces + 1, FRONT, 8), "index vertices 1 to 4, but there are 4"),
        ((vertices, faces - 1, FRONT, 8), "index vertices -1 to 2"),
        ((vertices * torch.nan, faces, FRONT, 8), "NaN or infinity"),
        ((vertices.to("meta"), faces, FRONT, 8), "move them together"),
        ((vertices, faces, (), 8), "at least one camera"),
        ((vertices, faces, FRONT, 0), "at least one camera and one pixel"),
    ):
        with pytest.raises(UserError, match=message):
            EMBREE.rasterize(*arguments)
    seen = EMBREE.rasterize(vertices, faces, FRONT, 8)
    with pytest.raises(UserError, match="1 faces but 2 were rasterized"):
        EMBREE.interpolate(vertices, faces[:1], seen)


def test_the_device_chooses_the_backend():
    assert isinstance(rasterizer_for("cpu"), EmbreeRasterizer)


def test_without_nvdiffrast_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", None)
    with pytest.raises(UserError, match=r"docs/install\.md.*EmbreeRasterizer"):
        rasterizer_for("cuda")


def test_a_fall_back_to_embree_is_told_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", None)
    rasterizer_or_embree.cache_clear()
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match=r"docs/install\.md.*Embree is used instead.*slower"):
        assert isinstance(rasterizer_or_embree(device), EmbreeRasterizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rasterizer_or_embree(device)
    rasterizer_or_embree.cache_clear()


def test_nvdiffrast_is_imported_only_where_it_is_used():
    modules = Path(__file__).resolve().parents[2] / "modules"
    users = [path.name for path in modules.rglob("*.py") if "import nvdiffrast" in path.read_text()]
    assert users == ["rasterizer_nvdiffrast.py"]

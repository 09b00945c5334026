"""nvdiffrast draws what Embree and the slow reference draw, with their gradients, and is quick.

nvdiffrast snaps vertices to a sixteenth of a pixel to decide which face a pixel sees: so a few
pixels near edges may differ, and everything else is compared where the faces agree.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from raster_scenes import CAMERAS, images, inputs, soup, square, torus
from torch import Tensor

from data_pipeline.contract import UserError, view_layout
from modules.geometry.rasterizer import Fragments, clip_positions, rasterizer_for
from modules.geometry.rasterizer_antialias import antialias
from modules.geometry.rasterizer_embree import EmbreeRasterizer, barycentric_at
from modules.geometry.rasterizer_nvdiffrast import NvdiffrastRasterizer
from modules.geometry.rasterizer_reference import ReferenceRasterizer

pytestmark = pytest.mark.gpu
REPOSITORY = Path(__file__).resolve().parents[2]
EMBREE = EmbreeRasterizer()
SCENES = {"soup": soup(1), "torus": torus()}


@pytest.fixture(scope="module")
def nvdiffrast() -> NvdiffrastRasterizer:
    pytest.importorskip("nvdiffrast.torch", reason="nvdiffrast is not installed")
    rasterizer = rasterizer_for("cuda")
    assert isinstance(rasterizer, NvdiffrastRasterizer)
    return rasterizer


def on_gpu(scene: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vertices, attributes, image, faces = (leaf.cuda() for leaf in inputs(SCENES[scene]))
    return vertices.float(), attributes.float(), image.float(), faces


def assert_close_gradients(ours: Tensor, theirs: Tensor, relative: float) -> None:
    assert theirs.norm() > 0.1
    error = (ours.double().cpu() - theirs.double().cpu()).norm() / theirs.double().cpu().norm()
    assert error < relative


@pytest.mark.parametrize("scene", SCENES)
def test_faces_and_points_equal_embrees(nvdiffrast: NvdiffrastRasterizer, scene: str):
    vertices, _, _, faces = on_gpu(scene)
    ours = nvdiffrast.rasterize(vertices, faces, CAMERAS, 256)
    theirs = EMBREE.rasterize(vertices, faces, CAMERAS, 256)
    same = ours.face == theirs.face
    assert ours.hit.float().mean() > 0.2
    assert same.float().mean() >= 0.995
    both = same & ours.hit
    points = nvdiffrast.interpolate(vertices, faces, ours)
    exact = EMBREE.interpolate(vertices, faces, theirs)
    assert (points - exact)[both].abs().quantile(0.999) < 5e-5
    assert (points - exact)[both].abs().max() < 2e-3  # faces seen nearly edge-on
    assert (ours.barycentric - theirs.barycentric)[both].abs().quantile(0.999) < 1e-4
    assert (points[~ours.hit] == 0).all()
    assert (ours.barycentric[~ours.hit] == 0).all()


@pytest.mark.parametrize("scene", SCENES)
def test_values_and_gradients_equal_the_reference(nvdiffrast: NvdiffrastRasterizer, scene: str):
    """The reference in float64, given the faces that nvdiffrast saw.

    Where an outline passes a pixel's centre within rounding, the two choose another neighbour to
    blend with: 1 in 100 values. Gradients are those of all others. Where two edges of an outline
    meet they may take another one for the same value: a few vertices' gradients change places.
    """
    leaves, faces = inputs(SCENES[scene])[:3], SCENES[scene][1]
    if scene == "soup":  # nvdiffrast's antialiasing knows no corner behind the camera
        faces = faces[:11]
    fresh = [leaf.float().cuda().requires_grad_() for leaf in leaves]
    recorder = _Recorder(nvdiffrast)
    ours = images(recorder, *fresh, faces.cuda(), 16)
    exact = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = images(_SameFaces(recorder.face), *exact, faces, 16)
    difference = (ours.detach().cpu().double() - theirs.detach()).abs()
    assert difference.quantile(0.99) < 1e-4
    assert difference.mean() < 3e-3
    weight = torch.rand(2, 16, 16, 8, generator=torch.Generator().manual_seed(3)).double()
    weight[(difference > 1e-4).any(dim=-1)] = 0.0
    (ours * weight.float().cuda()).sum().backward()
    (theirs * weight).sum().backward()
    for mine, other, relative in zip(fresh, exact, (0.25, 0.01, 0.01), strict=True):
        assert_close_gradients(mine.grad, other.grad, relative)
    error = (fresh[0].grad.cpu().double() - exact[0].grad).norm(dim=1)
    assert error.quantile(0.9) < 0.02 * exact[0].grad.norm(dim=1).max()


class _Recorder:
    """nvdiffrast, but it keeps which face each pixel saw: at ties another pass may choose anew."""

    def __init__(self, rasterizer: NvdiffrastRasterizer) -> None:
        self.rasterizer = rasterizer

    def __getattr__(self, name: str):
        return getattr(self.rasterizer, name)

    def rasterize(self, *arguments) -> Fragments:
        fragments = self.rasterizer.rasterize(*arguments)
        self.face = fragments.face.cpu()
        return fragments


class _SameFaces(ReferenceRasterizer):
    """The reference, but for which face a pixel sees."""

    def __init__(self, face: Tensor) -> None:
        self.face = face

    def rasterize(self, vertices, faces, cameras, resolution_px) -> Fragments:
        clip = clip_positions(vertices, cameras)
        barycentric = barycentric_at(self.face, clip, faces)
        return Fragments(vertices, faces, tuple(cameras), self.face, barycentric)


def test_textures_repeat_with_v_up(nvdiffrast: NvdiffrastRasterizer):
    vertices, _, _, faces = on_gpu("torus")
    generator = torch.Generator().manual_seed(1)
    uv = (3.0 * torch.rand(len(vertices), 2, generator=generator) - 1.0).cuda()
    image = torch.rand(5, 7, 3, generator=generator).cuda()
    seen = nvdiffrast.rasterize(vertices, faces, CAMERAS, 128)
    where = nvdiffrast.interpolate(uv, faces, seen)
    ours, theirs = (r.texture(image, where, seen) for r in (nvdiffrast, EMBREE))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours[~seen.hit] == 0).all()


def test_antialiasing_of_the_same_faces_is_the_same(nvdiffrast: NvdiffrastRasterizer):
    vertices, _, _, faces = on_gpu("torus")
    vertices.requires_grad_()
    seen = nvdiffrast.rasterize(vertices, faces, CAMERAS, 256)
    image = torch.cat([vertices.detach() + 0.5, vertices.new_ones(len(vertices), 1)], dim=1)
    image = nvdiffrast.interpolate(image, faces, seen).detach()
    ours, theirs = nvdiffrast.antialias(image, seen), antialias(image, seen)
    assert (theirs != image).any(dim=-1).sum() > 300
    apart = (ours - theirs).abs().amax(dim=-1) > 1e-3
    assert apart.float().mean() < 1e-3
    weight = torch.rand(ours.shape, generator=torch.Generator().manual_seed(3)).cuda()
    gradients = [
        torch.autograd.grad((result * weight).sum(), vertices, retain_graph=True)[0]
        for result in (ours, theirs)
    ]
    assert_close_gradients(*gradients, relative=0.03)


@pytest.mark.parametrize("layout", ["ortho6", "pinhole4"])
def test_whole_images_and_gradients_agree(nvdiffrast: NvdiffrastRasterizer, layout: str):
    """Each backend on its own, as a loss of antialiased images sees them.

    Gradients are of the pixels around which both see the same faces: where they do not, an edge
    crosses another pixel, and its gradient is that of another pixel's colour.
    """
    cameras = view_layout(layout)
    vertices, faces = (leaf.cuda() for leaf in torus(24, 16))
    leaves, seen, drawn = [], [], []
    for rasterizer in (nvdiffrast, EMBREE):
        leaf = vertices.float().requires_grad_()
        leaves.append(leaf)
        seen.append(rasterizer.rasterize(leaf, faces, cameras, 128))
        values = torch.cat([leaf + 0.5, leaf.new_ones(len(leaf), 1)], dim=1)
        image = rasterizer.interpolate(values, faces, seen[-1])
        drawn.append(rasterizer.antialias(image, seen[-1]))
    ours, theirs = (image.detach() for image in drawn)
    assert (ours - theirs).abs().mean() < 1e-3
    assert ((ours - theirs).abs().amax(dim=-1) > 0.1).float().mean() < 2e-3
    apart = (seen[0].face != seen[1].face).float()[:, None]
    alike = torch.nn.functional.max_pool2d(apart, 3, stride=1, padding=1)[:, 0, :, :, None] == 0
    assert alike.float().mean() > 0.95
    goal = torch.linspace(0, 1, 128, device="cuda")[:, None]
    gradients = [
        torch.autograd.grad((alike * (image - goal).square()).mean(), leaf)[0].flatten()
        for image, leaf in zip(drawn, leaves, strict=True)
    ]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_a_square_finds_its_place_by_its_silhouette(nvdiffrast: NvdiffrastRasterizer):
    cameras = (view_layout("ortho6")[0], view_layout("pinhole4")[0])

    def silhouette(vertices: Tensor, faces: Tensor) -> Tensor:
        seen = nvdiffrast.rasterize(vertices, faces, cameras, 48)
        return nvdiffrast.antialias(seen.hit[..., None].float(), seen)

    target, faces = (leaf.cuda() for leaf in square(0.45, x=0.07, z=-0.05))
    goal = silhouette(target, faces)
    vertices = square(0.30, x=-0.08, z=0.06)[0].cuda().requires_grad_()
    optimizer = torch.optim.Adam([vertices], lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (silhouette(vertices, faces) - goal).square().mean().backward()
        optimizer.step()
    assert (vertices.detach() - target)[:, [0, 2]].abs().max() < 5e-3


def test_lower_precision_around_it_changes_nothing(nvdiffrast: NvdiffrastRasterizer):
    leaves = on_gpu("torus")
    plain = images(nvdiffrast, *leaves, 64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            lower = images(nvdiffrast, *leaves, 64)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(lower, plain, atol=1e-6, rtol=0)  # atomic sums differ by rounding
    vertices, attributes, _, faces = leaves
    seen = nvdiffrast.rasterize(vertices, faces, CAMERAS, 16)
    assert nvdiffrast.interpolate(attributes.bfloat16(), faces, seen).dtype == torch.float32


def test_embree_takes_cuda_tensors():
    vertices, attributes, image, faces = on_gpu("torus")
    there = images(EMBREE, vertices, attributes, image, faces, 64)
    here = images(EMBREE, *(leaf.cpu() for leaf in (vertices, attributes, image, faces)), 64)
    assert there.is_cuda
    assert ((there.cpu() - here).abs() > 1e-4).float().mean() < 1e-3


def test_meshes_that_show_nothing(nvdiffrast: NvdiffrastRasterizer):
    vertices, faces = (leaf.cuda() for leaf in square(0.4))
    behind = vertices + torch.tensor([0.0, -9.0, 0.0], device="cuda"), faces
    none = vertices[:0], faces[:0]
    for points, corners in (none, behind, (torch.zeros_like(vertices), faces)):
        points = points.clone().requires_grad_()
        seen = nvdiffrast.rasterize(points, corners, CAMERAS, 8)
        assert not seen.hit.any()
        image = nvdiffrast.interpolate(points, corners, seen)
        image = image + nvdiffrast.texture(torch.ones(2, 2, 3).cuda(), image[..., :2], seen)
        assert (nvdiffrast.antialias(image, seen) == 0).all()


def test_wrong_input_is_refused_with_what_to_do(nvdiffrast: NvdiffrastRasterizer):
    vertices, faces = square(0.4)
    for points in (vertices, vertices.cuda().double()):
        with pytest.raises(UserError, match=r"float32 on a CUDA device.*EmbreeRasterizer"):
            nvdiffrast.rasterize(points, faces.to(points.device), CAMERAS, 8)
    with pytest.raises(UserError, match="move them together"):
        nvdiffrast.rasterize(vertices.cuda(), faces, CAMERAS, 8)
    seen = EMBREE.rasterize(vertices, faces, CAMERAS, 8)
    with pytest.raises(UserError, match="another rasterizer"):
        nvdiffrast.interpolate(vertices, faces, seen)


def test_time_of_a_training_step_with_rendering_losses(nvdiffrast: NvdiffrastRasterizer, tmp_path):
    """What benchmarks/rasterizer.py measures on this machine, shown with `pytest -rP`."""
    trimesh = pytest.importorskip("trimesh")
    vertices, faces = torus(200, 100)  # 40,000 faces
    mesh = tmp_path / "torus.ply"
    trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False).export(mesh)
    command = [sys.executable, "benchmarks/rasterizer.py", str(mesh), "--device", "cuda"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    step = re.search(r"training step, 6 x 256 px\D*([\d.]+) ms", result.stdout)
    assert step is not None, result.stdout
    assert float(step[1]) < 50.0

"""Every figure against a second, slow or independent implementation of the same formula."""

from pathlib import Path

import igl
import numpy as np
import pytest
import torch
import trimesh
from analytic import colored
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from scipy.spatial import Delaunay
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.geometry.atlas import grid_atlas
from modules.geometry.mesh import TexturedMesh
from modules.geometry.spans import triangle_spans
from modules.metrics.appearance import image_figures, ssim_map
from modules.metrics.geometry import MeshSurface, compare_surfaces, sphere_directions
from modules.metrics.lpips import Lpips, load_lpips, lpips_figures
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.uv_quality import uv_quality
from modules.metrics.volume import volume_iou

WEIGHTS = Path(__file__).resolve().parents[3] / "shared/weights/lpips_v01_alexnet.safetensors"


def bumpy(seed: int) -> trimesh.Trimesh:
    """A closed body without symmetry, that crosses itself here and there."""
    ball = trimesh.creation.icosphere(2, 0.4)
    wave = np.random.default_rng(seed).normal(size=(3, 3))
    ball.vertices *= 1.0 + 0.15 * np.sin(6.0 * ball.vertices @ wave).sum(axis=1, keepdims=True)
    return ball


def surface_of(mesh: trimesh.Trimesh) -> MeshSurface:
    return MeshSurface(np.array(mesh.vertices), np.array(mesh.faces))


# ----------------------------------------------------------------------------------- geometry


def slow_nearest(mesh: trimesh.Trimesh, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to every triangle, and the nearest of them; trimesh's own way needs rtree."""
    away = np.empty((len(mesh.faces), len(points)))
    for triangle, row in zip(mesh.triangles, away, strict=True):
        repeated = np.broadcast_to(triangle, (len(points), 3, 3))
        nearest = trimesh.triangles.closest_point(repeated, points)
        row[:] = np.linalg.norm(nearest - points, axis=1)
    return away.min(axis=0), away.argmin(axis=0)


def slow_blocked(mesh: trimesh.Trimesh, origins: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Möller and Trumbore (1997) for every ray and every triangle."""
    a, b, c = (mesh.triangles[:, k][None] for k in range(3))
    normal = np.cross(direction, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / (normal * (b - a)).sum(axis=2)
        away = origins[:, None] - a
        u = scale * (away * normal).sum(axis=2)
        turned = np.cross(away, b - a)
        v, t = scale * (turned @ direction), scale * (turned * (c - a)).sum(axis=2)
        return ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)).any(axis=1)


def test_distances_f_scores_and_normals_equal_those_of_every_point_to_every_face():
    meshes = bumpy(0), bumpy(1)
    surfaces = surface_of(meshes[0]), surface_of(meshes[1])
    figures = compare_surfaces(*surfaces, num_samples=800, seed=5)
    samples = surfaces[0].sample(800, 5), surfaces[1].sample(800, 6)
    distances, cosines = [], []
    for own, other in ((0, 1), (1, 0)):
        away, face = slow_nearest(meshes[other], samples[own].points)
        distances.append(away)
        cosines.append((samples[own].normals * meshes[other].face_normals[face]).sum(axis=1))
    precision, recall = ((away <= 0.05).mean() for away in distances)
    expected = {
        "chamfer_l1": np.mean([away.mean() for away in distances]),
        "chamfer_l2": np.mean([(away**2).mean() for away in distances]),
        "precision_0.05": precision,
        "recall_0.05": recall,
        "f_score_0.05": 2.0 / (1.0 / precision + 1.0 / recall),
    }
    for key, value in expected.items():
        assert figures[key] == pytest.approx(value, abs=1e-9), key
    # on an edge either face's normal may be taken, so a few cosines differ
    consistency = np.mean([np.abs(cosine).mean() for cosine in cosines])
    assert figures["normal_consistency"] == pytest.approx(consistency, abs=2e-3)
    flipped = np.mean([(cosine < -0.5).mean() for cosine in cosines])
    assert figures["flipped_normals"] == pytest.approx(flipped, abs=2e-3)


def test_samples_are_spread_by_area():
    mesh = trimesh.creation.box((1.0, 0.5, 0.1))
    face = surface_of(mesh).sample(50_000, 0).face
    assert face is not None
    share = np.bincount(face, minlength=12) / 50_000
    assert share == pytest.approx(np.asarray(mesh.area_faces / mesh.area), abs=0.006)


def test_outer_visibility_equals_that_of_every_ray_with_every_face():
    shell, inner = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(1, 0.3)
    opened = trimesh.Trimesh(shell.vertices, shell.faces[:-2])  # a box without a lid
    mesh = trimesh.util.concatenate([opened, inner])
    surface = surface_of(mesh)
    samples = surface.sample(1000, 0)
    expected = np.zeros(1000, dtype=bool)
    for direction in sphere_directions(64):
        facing = np.abs(samples.normals @ direction) > 0.1
        blocked = slow_blocked(mesh, samples.points + 1e-4 * direction, direction)
        expected |= facing & ~blocked
    assert 0.1 < expected.mean() < 0.95
    assert (surface.visible_from_outside(samples) == expected).mean() > 0.998


def test_volume_overlap_equals_the_share_of_points_by_winding_number():
    meshes = bumpy(0), bumpy(1)
    points = np.random.default_rng(0).uniform(-0.7, 0.7, (40_000, 3))
    inside = [
        np.abs(igl.winding_number(np.array(m.vertices), np.array(m.faces, np.int64), points)) > 0.5
        for m in meshes
    ]
    expected = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
    assert volume_iou(*map(colored, meshes)) == pytest.approx(expected, abs=0.01)


def test_volume_overlap_of_bodies_whose_volumes_are_known():
    large, small = trimesh.creation.icosphere(4, 0.5), trimesh.creation.icosphere(4, 0.4)
    hollow = small.copy()
    hollow.invert()
    shell = trimesh.util.concatenate([large, hollow])
    share = small.volume / large.volume
    assert volume_iou(colored(small), colored(large)) == pytest.approx(share, abs=1e-3)
    assert volume_iou(colored(shell), colored(large)) == pytest.approx(1.0 - share, abs=1e-3)
    assert volume_iou(colored(shell), colored(small)) == pytest.approx(0.0, abs=1e-9)
    inverted = large.copy()
    inverted.invert()
    assert volume_iou(colored(inverted), colored(large)) == 1.0
    for axis in range(3):  # plates thinner than a column, along each axis
        size = np.where(np.arange(3) == axis, 0.002, 1.0)
        plate, moved = trimesh.creation.box(size), trimesh.creation.box(size)
        moved.apply_translation(np.roll([0.5, 0.0, 0.0], axis + 1))
        assert volume_iou(colored(moved), colored(plate)) == pytest.approx(1 / 3, abs=4e-3)


def test_spurious_parts_are_large_and_far():
    body = trimesh.creation.icosphere(3, 0.3)
    blobs = {
        "far and large": (trimesh.creation.icosphere(2, 0.05), 0.45, 1),
        "near and large": (trimesh.creation.icosphere(2, 0.05), 0.32, 0),
        "a speck": (trimesh.creation.icosphere(2, 0.02), 0.45, 0),
    }
    for name, (blob, distance, expected) in blobs.items():
        blob.apply_translation([distance, 0.0, 0.0])
        both = trimesh.util.concatenate([body, blob])
        figures = compare_surfaces(surface_of(both), surface_of(body), num_samples=5000)
        assert figures["spurious_components"] == expected, name


# ------------------------------------------------------------------------------- mesh quality


def test_genus_counts_handles_as_trimesh_does():
    torus = trimesh.creation.torus(0.3, 0.1, 24, 12)
    ball = trimesh.creation.icosphere(2, 0.05)
    for parts, genus in (([ball], 0), ([torus], 1), ([torus, ball, torus.copy()], 2)):
        for index, part in enumerate(parts):
            part.apply_translation([2.0 * index, 0.0, 0.0])
        mesh = trimesh.util.concatenate(parts)
        figures = mesh_quality(np.array(mesh.vertices), np.array(mesh.faces))
        assert figures["genus"] == genus
        assert figures["components"] == mesh.body_count
        assert genus == mesh.body_count - mesh.euler_number / 2
        opened = mesh_quality(np.array(mesh.vertices), np.array(mesh.faces[1:]))
        assert np.isnan(opened["genus"])


def faulty(seed: int) -> trimesh.Trimesh:
    """Spheres with faces missing, doubled and turned, and two that meet at one vertex."""
    generator = np.random.default_rng(seed)
    ball = trimesh.creation.icosphere(1, 0.3)
    other = ball.copy()
    other.apply_translation(2.0 * ball.vertices[0])  # its vertex opposite to 0 is vertex 0
    both = trimesh.util.concatenate([ball, other])
    faces = np.array(both.faces)
    faces = np.delete(faces, generator.integers(0, len(faces), seed), axis=0)
    doubled = faces[generator.integers(0, len(faces), seed // 2)]
    faces[: seed // 3] = faces[: seed // 3, ::-1]
    return trimesh.Trimesh(both.vertices, np.concatenate([faces, doubled]), process=False)


def slow_faults(mesh: trimesh.Trimesh) -> dict[str, int]:
    """Count by dictionaries, and walk around every vertex from face to face."""
    name = {tuple(v): i for i, v in enumerate(np.unique(mesh.vertices.round(9), axis=0))}
    faces = [[name[tuple(mesh.vertices[v].round(9))] for v in face] for face in mesh.faces]
    runs: dict[frozenset[int], list[tuple[int, int]]] = {}
    for face in faces:
        for start, end in zip(face, face[1:] + face[:1], strict=True):
            runs.setdefault(frozenset((start, end)), []).append((start, end))
    pinched = 0
    for vertex in {v for face in faces for v in face}:
        around = [set(face) - {vertex} for face in faces if vertex in face]
        fan = around.pop()
        while joined := [pair for pair in around if pair & fan]:
            around = [pair for pair in around if not pair & fan]
            fan = fan.union(*joined)
        pinched += bool(around)
    return {
        "border_edges": sum(len(uses) == 1 for uses in runs.values()),
        "tangled_edges": sum(
            len(uses) > 2 or (len(uses) == 2 and uses[0] == uses[1]) for uses in runs.values()
        ),
        "pinched_vertices": pinched,
    }


@pytest.mark.parametrize("seed", [0, 2, 7, 12])
def test_faults_of_meshes_equal_those_found_face_by_face_and_trimeshs_verdict(seed: int):
    mesh = faulty(seed)
    figures = mesh_quality(np.array(mesh.vertices), np.array(mesh.faces))
    expected = slow_faults(mesh)
    assert {key: figures[key] for key in expected} == expected
    assert expected["pinched_vertices"] >= 1  # where the balls meet
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces)
    welded.merge_vertices()
    sound = welded.is_watertight and welded.is_winding_consistent
    assert bool(figures["watertight"]) == sound


def pierces(edge: np.ndarray, triangle: np.ndarray) -> bool:
    """Whether a segment passes through a triangle: where it meets the plane, in barycentrics."""
    a, b, c = triangle
    columns = np.stack([b - a, c - a, edge[0] - edge[1]], axis=1)
    u, v, t = np.linalg.solve(columns, edge[0] - a)
    return min(u, v, 1.0 - u - v, t, 1.0 - t) > 0.0


def test_self_intersections_equal_those_of_every_edge_against_every_face():
    generator = np.random.default_rng(0)
    soup = generator.uniform(size=(60, 1, 3)) + generator.uniform(-0.15, 0.15, size=(60, 3, 3))
    found = set()
    for i, first in enumerate(soup):
        for j, second in enumerate(soup):
            if i != j and any(pierces(first[[k, k - 1]], second) for k in range(3)):
                found |= {i, j}
    assert 5 < len(found) < 55
    figures = mesh_quality(soup.reshape(-1, 3), np.arange(180).reshape(-1, 3))
    assert figures["self_intersecting_faces"] == len(found)


def test_triangles_cover_what_a_point_in_triangle_test_says():
    corners = np.random.default_rng(0).uniform(-5.0, 25.0, (40, 3, 2))
    corners[:5] = np.round(corners[:5])  # edges through pixel centres' rows are no trouble
    spans = triangle_spans(corners, 20)
    covered = np.zeros((40, 20, 20), dtype=bool)
    for t, row, start, end in zip(spans.triangle, spans.row, spans.start, spans.end, strict=True):
        covered[t, row, start:end] = True
    x, y = np.meshgrid(np.arange(20) + 0.5, np.arange(20) + 0.5)
    for triangle, found in zip(corners, covered, strict=True):
        a, b, c = triangle
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        inside = np.logical_and.reduce([s > 0 for s in sides])
        inside |= np.logical_and.reduce([s < 0 for s in sides])
        on_edge = np.logical_or.reduce([s == 0 for s in sides])
        assert (found == inside)[~on_edge].all()


def test_triangles_that_share_edges_cover_every_centre_once():
    # Delaunay of integer points: edges and corners lie on rows of centres as often as can be
    points = np.stack(np.meshgrid(np.arange(0, 17, 2), np.arange(0, 17, 2)), -1).reshape(-1, 2)
    points = points + 0.5 * (np.random.default_rng(0).integers(0, 2, points.shape))
    points = np.concatenate([points, [[-9, -9], [40, -9], [-9, 40], [40, 40]]]).astype(float)
    spans = triangle_spans(points[Delaunay(points).simplices], 16)
    counts = np.zeros((16, 16), dtype=int)
    for row, start, end in zip(spans.row, spans.start, spans.end, strict=True):
        counts[row, start:end] += 1
    assert (counts == 1).all()


def textured(uv: np.ndarray, faces: np.ndarray) -> TexturedMesh:
    vertices = np.concatenate([uv, np.zeros((len(uv), 1))], axis=1)
    return TexturedMesh(vertices, faces, uv, np.zeros((4, 4, 3), dtype=np.uint8))


def test_texture_coverage_and_overlap_of_known_charts():
    square = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]])
    two = np.array([[0, 1, 2], [0, 2, 3]])
    figures = uv_quality(textured(square, two))
    assert (figures["uv_coverage"], figures["uv_overlap"]) == (0.25, 0.0)
    half = np.concatenate([square, square + np.array([0.25, 0.0])])  # .125 of .375 is covered twice
    figures = uv_quality(textured(half, np.concatenate([two, two + 4])))
    assert figures["uv_coverage"] == pytest.approx(0.375)
    assert figures["uv_overlap"] == pytest.approx(1 / 3)
    tiled = np.concatenate(
        [square, square + np.array([3.0, -2.0])]
    )  # the same texels in another tile
    figures = uv_quality(textured(tiled, np.concatenate([two, two + 4])))
    assert (figures["uv_coverage"], figures["uv_overlap"]) == (0.25, 1.0)
    ball = trimesh.creation.icosphere(2)
    atlas = grid_atlas(np.array(ball.faces), 256)
    figures = uv_quality(textured(atlas.uv, atlas.faces))
    area = trimesh.triangles.area(np.pad(atlas.uv, ((0, 0), (0, 1)))[atlas.faces]).sum()
    assert figures["uv_coverage"] == pytest.approx(area, abs=2e-3)
    assert figures["uv_overlap"] == 0.0
    square[0] = np.nan  # a corner of both faces
    assert uv_quality(textured(square, two))["uv_coverage"] == 0.0
    bare = uv_quality(colored(ball))
    assert np.isnan([bare["uv_coverage"], bare["uv_overlap"]]).all()


# --------------------------------------------------------------------------------- appearance


def slow_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equation 13 of Wang et al. (2004), K1 = .01, K2 = .03, one channel."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return similarity / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


def test_ssim_equals_its_formula_and_is_averaged_over_the_mask():
    generator = np.random.default_rng(0)
    images = generator.random((2, 2, 24, 24, 3))
    hits = generator.random((2, 2, 24, 24)) < 0.02
    assert ssim_map(images[0, 0], images[1, 0]) == pytest.approx(
        np.mean([slow_ssim(images[0, 0, ..., c], images[1, 0, ..., c]) for c in range(3)], axis=0),
        abs=1e-9,
    )
    shown = [np.where(hits[..., None], images, grey) for grey in (0.0, 1.0)]
    expected = np.mean(
        [
            [
                np.mean([slow_ssim(a[..., c], b[..., c]) for c in range(3)], axis=0)
                for a, b in zip(*each, strict=True)
            ]
            for each in shown
        ],
        axis=0,
    )
    figures = image_figures(images[0], hits[0], images[1], hits[1])
    assert figures["ssim_unmasked"] == pytest.approx(expected.mean(), abs=1e-9)
    mask = np.zeros_like(hits[0])
    for view, row, column in np.argwhere(hits[0] | hits[1]):
        mask[view, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert figures["ssim_masked"] == pytest.approx(expected[mask].mean(), abs=1e-9)
    same = image_figures(images[0], hits[0], images[0], hits[0])
    assert same["ssim_masked"] == same["ssim_unmasked"] == pytest.approx(1.0)


def test_psnr_equals_scikit_images():
    generator = np.random.default_rng(1)
    images = generator.random((2, 3, 16, 16, 3))
    hits = np.ones((3, 16, 16), dtype=bool)
    figures = image_figures(images[0], hits, images[1], hits)
    expected = peak_signal_noise_ratio(images[1], images[0], data_range=1.0)
    assert figures["psnr_masked"] == figures["psnr_unmasked"] == pytest.approx(expected, abs=1e-9)
    assert figures["mask_iou"] == 1.0


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}
    shapes |= {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {}
    for k, (index, shape) in enumerate(shapes.items()):
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * scale
        weights[f"features.{index}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        weights[f"lin{k}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return weights


def plain_lpips(w: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """The definition, written out: one map for each of the five layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, maps = (torch.stack([a, b]) * 2 - 1 - shift) / scale, []
    steps = (
        (0, 4, 2, False),
        (3, 1, 2, True),
        (6, 1, 1, True),
        (8, 1, 1, False),
        (10, 1, 1, False),
    )
    for k, (index, stride, padding, pooled) in enumerate(steps):
        if pooled:
            x = functional.max_pool2d(x, 3, 2)
        weight, bias = w[f"features.{index}.weight"], w[f"features.{index}.bias"]
        x = functional.conv2d(x, weight, bias, stride, padding).clamp(min=0)
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        maps.append((w[f"lin{k}.model.1.weight"][0] * (unit[0] - unit[1]) ** 2).sum(0))
    return maps


@pytest.mark.parametrize("real", [False, True])
def test_lpips_equals_its_definition_written_out(real: bool):
    if real and not WEIGHTS.is_file():
        pytest.skip("the LPIPS weights are not beside this checkout")
    weights = load_file(WEIGHTS) if real else random_weights()
    network = Lpips(weights)
    images = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = [plain_lpips(weights, a, b) for a, b in zip(*images, strict=True)]
    expected = torch.stack([torch.stack([m.mean() for m in layers]).sum() for layers in maps])
    torch.testing.assert_close(network(*images), expected, rtol=1e-4, atol=1e-5)
    assert network(images[0], images[0]).abs().max() == 0.0
    mask = np.zeros((2, 64, 64), dtype=bool)
    mask[0, :10], mask[1, 20:25, 7] = True, True
    enlarged = [
        sum(functional.interpolate(m[None, None], (64, 64), mode="bilinear")[0, 0] for m in layers)
        for layers in maps
    ]
    arrays = [image.permute(0, 2, 3, 1).double().numpy() for image in images]
    figures = lpips_figures(network, arrays[0], arrays[1], mask)
    assert figures["lpips_unmasked"] == pytest.approx(float(expected.mean()), rel=1e-4)
    masked = np.stack([np.asarray(x) for x in enlarged])[mask].mean()
    assert figures["lpips_masked"] == pytest.approx(float(masked), rel=1e-4)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the LPIPS weights are not beside this checkout")
def test_lpips_tells_a_blurred_image_from_a_brighter_one():
    """What LPIPS is for: of two images that are equally far in PSNR, a blurred one looks worse."""
    image = 0.5 * np.random.default_rng(0).random((64, 64, 3))
    image = np.kron(image[::8, ::8], np.ones((8, 8, 1)))
    blurred = gaussian_filter(image, (3.0, 3.0, 0.0))
    error = np.sqrt(((blurred - image) ** 2).mean())
    brighter = image + error
    pairs = [torch.from_numpy(x).permute(2, 0, 1)[None].float() for x in (image, blurred, brighter)]
    network = load_lpips(str(WEIGHTS))
    assert network(pairs[0], pairs[1]) > 2.0 * network(pairs[0], pairs[2])


def test_wrong_lpips_weights_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        load_lpips(str(tmp_path / "missing.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="holds no LPIPS"):
        load_lpips(str(tmp_path / "broken.safetensors"))

"""Faults of meshes and their textures' layout against a second, slow or independent way."""

import numpy as np
import pytest
import trimesh
from analytic import colored
from scipy.spatial import Delaunay

from modules.geometry.atlas import grid_atlas
from modules.geometry.mesh import TexturedMesh
from modules.geometry.spans import triangle_spans
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.uv_quality import uv_quality


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

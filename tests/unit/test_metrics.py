"""The figures have known right answers on shapes whose distances can be worked out by hand."""

import numpy as np
import pytest
import trimesh

from data_pipeline.contract import UserError
from modules.geometry.mesh import ColoredMesh, TexturedMesh
from modules.metrics.appearance import compare_appearance, image_figures, psnr, unseen_cameras
from modules.metrics.geometry import (
    MeshSurface,
    SampledSurface,
    compare_surfaces,
    floor_figures,
)
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.scoring import FAILURE_FIGURES, ScoringOptions, score, summarise

SAMPLES = 20_000


def surface_of(mesh: trimesh.Trimesh) -> MeshSurface:
    return MeshSurface(np.array(mesh.vertices), np.array(mesh.faces))


def sphere(radius: float = 0.5, subdivisions: int = 4) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions, radius)


def plain(mesh: trimesh.Trimesh, colour: tuple[int, int, int]) -> TexturedMesh:
    return TexturedMesh(
        vertices=np.array(mesh.vertices),
        faces=np.array(mesh.faces),
        uv=np.full((len(mesh.vertices), 2), 0.5),
        texture=np.full((4, 4, 3), colour, dtype=np.uint8),
    )


def test_a_mesh_against_itself_is_at_the_floor():
    surface = surface_of(sphere())
    figures = compare_surfaces(surface, surface, num_samples=SAMPLES)
    assert figures["chamfer_l1"] < 1e-9
    assert figures["f_score_0.005"] == 1.0
    assert figures["normal_consistency"] > 0.9999
    assert figures["flipped_normals"] == 0.0
    assert figures["f_score_0.005"] == floor_figures(surface, num_samples=SAMPLES)["f_score_0.005"]


def test_a_larger_sphere_lies_as_far_off_as_its_radius_says():
    reference, larger = surface_of(sphere(0.5, 5)), surface_of(sphere(0.515, 5))
    figures = compare_surfaces(larger, reference, num_samples=SAMPLES)
    assert figures["chamfer_l1"] == pytest.approx(0.015, rel=0.02)
    assert figures["chamfer_l2"] == pytest.approx(0.015**2, rel=0.04)
    assert figures["f_score_0.01"] == 0.0
    assert figures["f_score_0.02"] == 1.0


def test_a_shifted_sphere_has_the_mean_distance_of_its_shift():
    shift = 0.02  # the distance is close to shift |cos|, whose mean over a sphere is shift / 2
    moved = sphere(0.5, 5)
    moved.apply_translation([shift, 0, 0])
    figures = compare_surfaces(surface_of(moved), surface_of(sphere(0.5, 5)), num_samples=SAMPLES)
    assert figures["chamfer_l1"] == pytest.approx(shift / 2, rel=0.03)
    assert figures["f_score_0.01"] == pytest.approx(0.5, abs=0.02)


def test_inverted_faces_are_seen_by_flipped_normals_and_not_by_normal_consistency():
    inverted = sphere()
    inverted.invert()
    figures = compare_surfaces(surface_of(inverted), surface_of(sphere()), num_samples=SAMPLES)
    assert figures["flipped_normals"] > 0.999
    assert figures["normal_consistency"] > 0.999
    assert figures["f_score_0.005"] == 1.0


def test_a_missing_half_halves_recall_and_leaves_precision():
    whole = sphere(0.5, 5)
    half = whole.submesh([np.flatnonzero(whole.triangles_center[:, 2] > 0)], append=True)
    figures = compare_surfaces(surface_of(half), surface_of(whole), num_samples=SAMPLES)
    assert figures["precision_0.005"] == 1.0
    assert figures["recall_0.005"] == pytest.approx(0.5, abs=0.02)
    assert figures["outer_recall_0.005"] == pytest.approx(0.5, abs=0.02)
    assert figures["f_score_0.005"] == pytest.approx(2 / 3, abs=0.02)


def test_a_hidden_inner_shell_counts_for_recall_but_not_for_outer_recall():
    shell, inner = sphere(0.5), sphere(0.4)
    both = trimesh.util.concatenate([shell, inner])
    figures = compare_surfaces(surface_of(shell), surface_of(both), num_samples=SAMPLES)
    assert figures["recall_0.02"] == pytest.approx(0.25 / (0.25 + 0.16), abs=0.02)
    assert figures["outer_recall_0.02"] == 1.0


def test_both_sides_of_an_open_bowl_are_seen_from_outside():
    whole = sphere(0.5, 4)
    bowl = surface_of(
        whole.submesh([np.flatnonzero(whole.triangles_center[:, 2] < 0)], append=True)
    )
    assert bowl.visible_from_outside(bowl.sample(SAMPLES, 0)).mean() > 0.999


def test_stored_samples_stand_for_the_surface_they_were_taken_from():
    mesh = surface_of(sphere(0.5, 5))
    stored = SampledSurface(mesh.sample(16384, 7))
    figures = compare_surfaces(mesh, stored, num_samples=SAMPLES)
    assert figures["f_score_0.005"] > 0.998
    assert figures["chamfer_l1"] < 5e-4
    assert np.isnan(figures["outer_recall_0.02"])
    larger = surface_of(sphere(0.515, 5))
    assert compare_surfaces(larger, stored, num_samples=SAMPLES)["chamfer_l1"] == pytest.approx(
        0.015, rel=0.03
    )


def test_the_same_seed_gives_the_same_figures():
    surfaces = surface_of(sphere(0.5)), surface_of(sphere(0.49))
    assert compare_surfaces(*surfaces, num_samples=2000, seed=3) == compare_surfaces(
        *surfaces, num_samples=2000, seed=3
    )


@pytest.mark.parametrize(
    "vertices",
    [
        np.zeros((3, 3)),
        np.array([[0.0, 0, 0], [1, 0, 0], [0, np.nan, 0]]),
        np.array([[0.0, 0, 0], [1e300, 0, 0], [0, 1e300, 0]]),
    ],
)
def test_a_mesh_without_area_or_with_nan_is_refused(vertices: np.ndarray):
    with pytest.raises(UserError):
        MeshSurface(vertices, np.array([[0, 1, 2]]))


def test_equal_colours_are_at_the_ceiling_and_a_known_difference_gives_its_psnr():
    red, darker = plain(sphere(), (200, 40, 40)), plain(sphere(), (149, 40, 40))
    assert compare_appearance(red, red, num_views=2, resolution_px=48)["psnr_masked"] == 60.0
    figures = compare_appearance(darker, red, num_views=2, resolution_px=96)
    # one channel of three differs by 0.2: 10 log10(3 / 0.04) = 18.75 dB inside; the ring of white
    # pixels around the silhouette is equal and raises it a little
    assert 18.75 < figures["psnr_masked"] < 19.5
    assert figures["psnr_unmasked"] > figures["psnr_masked"] + 3.0
    assert figures["mask_iou"] == 1.0


def test_the_mask_is_the_union_of_silhouettes_grown_by_one_pixel():
    blank = np.ones((1, 12, 12, 3))
    predicted, reference = blank.copy(), blank.copy()
    hits = np.zeros((2, 1, 12, 12), dtype=bool)
    hits[0, 0, 4, 3], hits[1, 0, 4, 4] = True, True
    predicted[0, 4, 3] = 0.0
    reference[0, 4, 4] = 0.0
    figures = image_figures(predicted, hits[0], reference, hits[1])
    # 3 x 4 pixels, of which two are wholly wrong on white, and right on black.
    assert figures["psnr_masked"] == pytest.approx(psnr(1 / 12))
    assert figures["psnr_unmasked"] == pytest.approx(psnr(1 / 144))
    assert figures["mask_iou"] == 0.0


@pytest.mark.parametrize("grey", [0, 255])
def test_no_colour_hides_a_wrong_silhouette(grey: int):
    shapes = [plain(sphere(radius), (grey, grey, grey)) for radius in (0.2, 0.45)]
    figures = compare_appearance(*shapes, num_views=2, resolution_px=48)
    assert figures["mask_iou"] < 0.3
    assert figures["psnr_masked"] < 6.0
    assert figures["ssim_masked"] < 0.8


def test_no_unseen_camera_stands_where_a_layout_has_one():
    for camera in unseen_cameras(12):
        back = camera.matrix[:3, 2]
        assert np.abs(back).max() < 0.99


def test_quality_welds_texture_seams_and_counts_faults():
    box = trimesh.creation.box()
    split = np.array(box.vertices)[np.array(box.faces).reshape(-1)]  # every face on its own
    faces = np.arange(len(split)).reshape(-1, 3)
    sound = mesh_quality(split, faces)
    assert sound["watertight"] == sound["manifold"] == 1.0
    assert (sound["components"], sound["degenerate_faces"]) == (1.0, 0.0)
    opened = mesh_quality(split, faces[:-1])
    assert (opened["watertight"], opened["manifold"], opened["border_edges"]) == (0.0, 1.0, 3.0)
    one_flipped = faces.copy()
    one_flipped[0] = one_flipped[0][::-1]
    assert mesh_quality(split, one_flipped)["manifold"] == 0.0
    collapsed = np.concatenate([faces, [[0, 0, 1]]])
    assert mesh_quality(split, collapsed)["degenerate_faces"] == 1.0
    apart = np.concatenate([split, split + 5.0]), np.concatenate([faces, faces + len(split)])
    assert mesh_quality(*apart)["components"] == 2.0


def test_faces_that_cross_others_are_counted_and_neighbours_are_not():
    ball = trimesh.creation.icosphere(3, 0.4)
    split = np.array(ball.vertices)[np.array(ball.faces).reshape(-1)]  # as texture seams do
    soup = np.arange(len(split)).reshape(-1, 3)
    assert mesh_quality(split, soup)["self_intersecting_faces"] == 0.0
    pushed = np.where(split[:, 2:] > 0.35, split * [1.0, 1.0, -1.5], split)  # out at the far side
    crossing = mesh_quality(pushed, soup)
    assert crossing["watertight"] == crossing["manifold"] == 1.0
    assert 10 < crossing["self_intersecting_faces"] < 0.5 * len(soup)
    folded = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.3, 0]])
    over_itself = mesh_quality(folded, np.array([[0, 1, 2], [1, 0, 3]]))
    assert over_itself["self_intersecting_faces"] == 2.0
    flat = mesh_quality(folded, np.array([[0, 1, 3], [1, 2, 3]]))
    assert flat["self_intersecting_faces"] == 0.0
    assert mesh_quality(folded, np.zeros((0, 3), dtype=np.int64))["self_intersecting_faces"] == 0.0


def test_two_bodies_that_touch_at_a_vertex_or_an_edge_are_not_manifold():
    box = trimesh.creation.box()
    faces = np.concatenate([box.faces, box.faces + 8])
    for shift, pinched, tangled in (([1, 1, 1], 1, 0), ([1, 1, 0], 0, 1)):
        quality = mesh_quality(np.concatenate([box.vertices, box.vertices + shift]), faces)
        assert (quality["pinched_vertices"], quality["tangled_edges"]) == (pinched, tangled)
        assert quality["border_edges"] == quality["manifold"] == 0.0
    assert mesh_quality(box.vertices, np.asarray(box.faces))["pinched_vertices"] == 0.0


def test_a_failed_pair_enters_the_summary_at_its_worst():
    options = ScoringOptions(num_samples=2000, num_views=1, resolution_px=32)
    mesh = plain(sphere(), (90, 90, 90))
    figures = score(mesh, surface_of(sphere()), mesh, options)
    summary = summarise([figures, figures], num_failed=2)
    assert summary["f_score_0.02"]["mean"] == pytest.approx(0.5)
    assert summary["psnr_masked"]["p10"] == 0.0
    assert summary["faces"]["mean"] == len(mesh.faces)
    nothing = summarise([], num_failed=1)
    assert nothing["chamfer_l1"]["median"] == FAILURE_FIGURES["chamfer_l1"]
    assert summarise([]) == {}


def test_a_loaded_mesh_is_scored_like_a_rebuilt_one():
    ball = sphere()
    faces = np.array(ball.faces)
    loaded = ColoredMesh(
        vertices=np.array(ball.vertices),
        faces=faces,
        corner_normals=np.array(ball.vertices)[faces] / 0.5,
        corner_uv=np.zeros((len(faces), 3, 2)),
        corner_tint=np.full((len(faces), 3, 3), 0.1),
        face_texture=np.full(len(faces), -1),
        textures=(),
    )
    options = ScoringOptions(num_samples=2000, num_views=2, resolution_px=32)
    figures = score(loaded, surface_of(ball), loaded, options)
    assert figures["psnr_masked"] == 60.0
    assert figures["watertight"] == 1.0

"""The fidelity gate: every figure has its known value on images changed by a known amount."""

import dataclasses

import numpy as np
import pytest
from analytic import ORTHO6, observe, sphere

from modules.metrics.coherence import WORST_COHERENCE
from modules.metrics.fidelity import BAND_PX, fidelity, latent_statistics, silhouette_regions

RESOLUTION_PX = 64
RGB, NORMAL, COORD = range(3)


@pytest.fixture(scope="module")
def seen() -> tuple[np.ndarray, np.ndarray]:
    return observe(sphere(0.4), RESOLUTION_PX)


def figures_of(seen: tuple[np.ndarray, np.ndarray], decoded: np.ndarray) -> dict[str, float]:
    images, hit = seen
    return fidelity(images, decoded.astype(np.float32), hit, ORTHO6)


def test_nothing_is_lost_of_equal_images(seen):
    figures = figures_of(seen, seen[0])
    for region in ("inside", "band"):
        assert figures[f"decoded_psnr_{region}"] == 60.0
        assert figures[f"decoded_normal_p95_deg_{region}"] < 0.1
        assert figures[f"decoded_position_{region}"] == 0.0
        assert figures[f"decoded_depth_{region}"] == 0.0
    assert figures["decoded_mask_iou"] > 0.99
    for key, value in figures.items():
        if key.startswith("excess_"):
            assert value == pytest.approx(0.0, abs=0.02), key


def test_rgb_that_is_off_by_a_tenth_has_20_db(seen):
    decoded = seen[0].copy()
    grey = seen[1][:, None] & np.ones((1, 3, 1, 1), dtype=bool)
    decoded[RGB] += np.where(grey, -0.2, 0.0)
    figures = figures_of(seen, decoded)
    assert figures["decoded_psnr_inside"] == pytest.approx(20.0, abs=1e-3)
    assert figures["decoded_normal_deg_inside"] < 0.1
    assert figures["decoded_position_inside"] == 0.0


def test_turned_normals_are_measured_in_degrees_and_seen_by_no_other_figure(seen):
    cosine, sine = np.cos(np.radians(10.0)), np.sin(np.radians(10.0))
    decoded = seen[0].copy()
    x, y, z = np.moveaxis(seen[0][NORMAL], 1, 0)
    decoded[NORMAL] = np.stack([x, cosine * y - sine * z, sine * y + cosine * z], axis=1)
    figures = figures_of(seen, decoded)
    assert 5.0 < figures["decoded_normal_deg_inside"] < 10.0  # less near the axis of the turn
    assert figures["decoded_normal_p95_deg_inside"] == pytest.approx(10.0, abs=0.1)
    assert figures["excess_normal_coord_deg"] > 4.0
    assert figures["decoded_position_band"] == 0.0
    assert figures["decoded_psnr_band"] == 60.0


def test_upside_down_normals_are_not_forgiven(seen):
    decoded = seen[0].copy()
    decoded[NORMAL] *= -1.0
    assert figures_of(seen, decoded)["decoded_normal_deg_inside"] == pytest.approx(180.0, abs=0.1)


def test_moved_positions_are_measured_and_their_depth_apart(seen):
    decoded = seen[0].copy()
    decoded[COORD] += 2.0 * np.array([0.0, 0.03, 0.0])[None, :, None, None]
    figures = figures_of(seen, decoded)
    assert figures["decoded_position_inside"] == pytest.approx(0.03, abs=1e-6)
    # Two views of six look along the move, the others across it.
    assert figures["decoded_depth_inside"] == pytest.approx(0.01, rel=0.02)
    assert figures["excess_reprojection_px"] == pytest.approx(
        0.03 / 1.1 * RESOLUTION_PX * 4 / 6, rel=0.1
    )


def test_a_mask_that_shrank_is_seen_in_the_band_and_one_with_holes_inside(seen):
    images, hit = seen
    inside = silhouette_regions(hit)["inside"]
    shrunken, holed = images.copy(), images.copy()
    shrunken[NORMAL] *= inside[:, None]
    holed[NORMAL, :, :, 28:36, 28:36] = 0.0
    shrunken_figures, holed_figures = (figures_of(seen, each) for each in (shrunken, holed))
    assert shrunken_figures["decoded_mask_iou_band"] < 0.1
    assert shrunken_figures["decoded_mask_iou_inside"] > 0.98
    assert holed_figures["decoded_mask_iou_band"] > 0.95
    assert holed_figures["decoded_mask_iou_inside"] == pytest.approx(
        1.0 - 6 * 64 / inside.sum(), abs=0.02
    )


def test_the_band_lies_on_both_sides_of_the_outline(seen):
    hit = seen[1]
    regions = silhouette_regions(hit)
    assert not (regions["inside"] & regions["band"]).any()
    assert not (hit & ~regions["inside"] & ~regions["band"]).any()
    row = RESOLUTION_PX // 2
    across = regions["band"][0, row]
    assert across.sum() == 2 * 2 * BAND_PX
    assert (across & hit[0, row]).sum() == 2 * BAND_PX


def test_statistics_of_latents_are_told_by_modality():
    latents = np.ones((3, 2, 4, 2, 2), np.float32)
    latents[1] = np.array([-2.0, 2.0])[:, None, None, None]
    figures = latent_statistics(latents)
    assert (figures["latent_mean_rgb"], figures["latent_std_rgb"]) == (1.0, 0.0)
    assert (figures["latent_mean_normal"], figures["latent_std_normal"]) == (0.0, 2.0)


def test_swapped_views_are_seen_though_the_hit_rule_would_drop_them():
    figures = compared(lambda images: images[:, [2, 1, 0, 3, 4, 5]])
    assert figures["excess_reprojection_px"] > 3.0


def test_a_coord_that_shows_nothing_counts_as_the_worst():
    figures = compared(lambda images: _with_coord(images, 50.0))
    assert figures["excess_cross_view_position"] == WORST_COHERENCE["cross_view_position"]
    assert figures["excess_cross_view_conflict"] > 0.3


def compared(change) -> dict[str, float]:
    """Return the figures of a ball off the centre, after a change."""
    mesh = sphere(0.2)
    moved = dataclasses.replace(mesh, vertices=mesh.vertices + np.array([0.15, -0.1, 0.1]))
    images, hit = observe(moved, RESOLUTION_PX)
    return figures_of((images, hit), change(images))


def _with_coord(images: np.ndarray, value: float) -> np.ndarray:
    changed = images.copy()
    changed[COORD] += value * np.arange(6.0)[:, None, None, None]
    return changed

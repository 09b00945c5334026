import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, bowl, flat_colored, observe, sphere

from data_pipeline.contract import UserError
from modules.geometry.classical_field import ClassicalField
from modules.geometry.corruption import Corruption, corrupt, subsample
from modules.geometry.evidence import EXACT_ROUGHNESS, Evidence
from modules.geometry.lift import lift
from modules.geometry.mesh import load_mesh, save_mesh
from modules.losses.field import distance_loss, eikonal_loss, near_weights, wrong_side
from modules.metrics.geometry import MeshSurface, compare_surfaces
from modules.metrics.mesh_quality import mesh_quality
from modules.networks.refined_field import RefinedField
from modules.networks.refiner import Refiner
from modules.networks.refiner_files import load_refiner, save_refiner
from modules.pipelines.reconstruction import Reconstructor


def small_refiner(trained: bool) -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(width=4, hidden=16, side=16, unseen=True)
    if trained:  # as good as: the heads' last layers hold something
        heads: Any = refiner.point_head, refiner.distance_head, refiner.colour_head
        for head in heads:
            torch.nn.init.normal_(head[-1].weight, std=0.5)
    return refiner.eval()


@pytest.fixture(scope="module")
def field() -> ClassicalField:
    images, hit = observe(bowl(), 32)
    return ClassicalField(lift(images, ORTHO6, hit))


def queries(count: int = 500) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (count, 3))


def up(count: int = 500) -> np.ndarray:
    return np.tile([0.0, 0.0, 1.0], (count, 1))


def test_an_untrained_refiner_equals_the_classical_field_bit_for_bit(field: ClassicalField):
    untrained, classical = RefinedField(field, small_refiner(False)), RefinedField(field, None)
    np.testing.assert_array_equal(untrained.distance(queries()), classical.distance(queries()))
    np.testing.assert_array_equal(
        untrained.colour(queries(), up()), classical.colour(queries(), up())
    )


def test_an_untrained_refiner_rebuilds_the_classical_mesh():
    images, hit = observe(sphere(), 32)
    arguments = torch.from_numpy(images), ORTHO6, torch.from_numpy(hit)
    untrained = Reconstructor(small_refiner(False))(*arguments, grid=32, texture_px=64)
    classical = Reconstructor.classical()(*arguments, grid=32, texture_px=64)
    np.testing.assert_array_equal(untrained.vertices, classical.vertices)
    np.testing.assert_array_equal(untrained.texture, classical.texture)


@pytest.mark.parametrize("resolution_px", [32, 64, 160])
def test_where_exact_views_saw_the_surface_no_residual_speaks_at_any_resolution(
    resolution_px: int,
):
    """Up to two cells of the default grid away: marching cubes reads values that far off."""
    images, hit = observe(sphere(), resolution_px)
    field = ClassicalField(lift(images, ORTHO6, hit))
    refined = RefinedField(field, small_refiner(True))
    directions = queries() / np.linalg.norm(queries(), axis=1, keepdims=True)
    seen = np.concatenate([(0.4 + offset) * directions for offset in (-0.02, 0.0, 0.02)])
    np.testing.assert_array_equal(refined.distance(seen), field.sample(seen).distance)


def test_where_views_contradict_each_other_points_move_and_unseen_distances_change():
    images, hit = observe(bowl(), 64)
    noise = Corruption(clean_share=0.0, coord_noise=(0.015, 0.015), drop_share=0.0)
    spoilt, mask, cameras = corrupt(images, hit, ORTHO6, noise, np.random.default_rng(0))
    noisy = ClassicalField(lift(spoilt, cameras, mask))
    refiner = small_refiner(True)
    refined = RefinedField(noisy, refiner)
    moved = refined.classical.observation.position - noisy.observation.position
    assert np.linalg.norm(moved, axis=1).mean() > 1e-3
    learned = refined.distance(queries()) - refined.classical.sample(queries()).distance
    assert np.abs(learned).max() > 1e-4
    unseen = Evidence(noisy).doubt(queries(), refined.classical.free_space(queries()))[1]
    assert (unseen > 0).any()
    np.testing.assert_array_equal(learned != 0, unseen > 0)
    refiner.unseen = False
    classical = refined.classical.sample(queries()).distance
    np.testing.assert_array_equal(refined.distance(queries()), classical)


def test_exact_images_give_the_classical_field_bit_for_bit(field: ClassicalField):
    refined = RefinedField(field, small_refiner(True))
    np.testing.assert_array_equal(refined.distance(queries()), field.sample(queries()).distance)
    assert refined.classical is field


def test_points_that_are_corrected_give_the_field_of_the_true_images():
    """A network that knows what noise added, which stands in for a trained one."""
    images, hit = observe(bowl(), 48)
    noise = Corruption(clean_share=0.0, coord_noise=(0.015, 0.015), drop_share=0.0, blur_px=0.0)
    spoilt, mask, cameras = corrupt(images, hit, ORTHO6, noise, np.random.default_rng(0))
    true, noisy = lift(images, ORTHO6, hit), ClassicalField(lift(spoilt, cameras, mask))
    missing = (true.depth - noisy.observation.depth)[hit]

    class Knowing(Refiner):
        def correct_points(self, volumes, points, evidence, normals, along):
            assert torch.allclose(evidence[..., 0], torch.ones(()), atol=0.2)
            return torch.from_numpy(missing).float()[None], torch.from_numpy(true.normal)[None]

    refined = RefinedField(noisy, Knowing(width=4, hidden=16, side=16))
    near = true.position + np.random.default_rng(1).normal(0.0, 0.003, true.position.shape)
    exact = ClassicalField(true).sample(near).distance
    before = np.abs(noisy.sample(near).distance - exact).mean()
    assert before > 0.003
    assert np.abs(refined.distance(near) - exact).mean() < 0.3 * before


@pytest.mark.parametrize("resolution_px", [48, 96])
def test_doubt_tells_noisy_images_from_exact_ones(resolution_px: int):
    images, hit = observe(bowl(), resolution_px)
    surface = lift(images, ORTHO6, hit).position
    exact = Evidence(ClassicalField(lift(images, ORTHO6, hit)))
    assert exact.roughness < EXACT_ROUGHNESS
    assert np.percentile(exact.doubt(surface, exact.field.free_space(surface))[0], 95) == 0.0
    for level in (0.015, 0.04):
        settings = Corruption(clean_share=0, coord_noise=(level, level), drop_share=0)
        spoilt = corrupt(images, hit, ORTHO6, settings, np.random.default_rng(0))
        noisy = Evidence(ClassicalField(lift(*_images_cameras_hit(*spoilt))))
        assert np.percentile(noisy.doubt(surface, noisy.field.free_space(surface))[0], 5) > 0.5


def inputs(field: ClassicalField) -> tuple[torch.Tensor, ...]:
    """Return both volumes, the queries and their features, as batches of one."""
    evidence = Evidence(field)
    features = evidence.features(queries(), field.sample(queries()))
    arrays = *evidence.volumes(16), queries(), features
    return tuple(torch.from_numpy(array).float()[None] for array in arrays)


def test_geometry_does_not_depend_on_rgb(field: ClassicalField):
    refiner = small_refiner(True)
    geometry, colour, points, features = inputs(field)
    shades = [
        refiner.distance_residual(refiner.encode(geometry, c), points, features)
        for c in (colour, torch.zeros_like(colour))
    ]
    torch.testing.assert_close(shades[0], shades[1], atol=0.0, rtol=0.0)


def test_every_parameter_gets_gradient_once_the_heads_have_left_zero(field: ClassicalField):
    refiner = small_refiner(True)
    geometry, colour, points, features = inputs(field)
    volumes = refiner.encode(geometry, colour)
    base, normals = (
        torch.rand(1, 500, 3),
        torch.nn.functional.normalize(torch.rand(1, 500, 3), dim=2),
    )
    total = refiner.distance_residual(volumes, points, features).square().sum()
    moved, turned = refiner.correct_points(volumes, points, features, normals, normals)
    total = total + moved.square().sum() + (turned * torch.rand(1, 500, 3)).sum()
    total = total + refiner.colour_residual(volumes, points, features, base, normals).square().sum()
    total.backward()
    for name, parameter in refiner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_volumes_are_read_at_the_voxel_that_holds_the_point():
    images, hit = observe(sphere(), 32)
    volume, _ = Evidence(ClassicalField(lift(images, ORTHO6, hit))).volumes(16)
    x, y, z = np.meshgrid(*[(np.arange(16) + 0.5) / 16 * 1.1 - 0.55] * 3, indexing="ij")
    for axis, centre in enumerate((x, y, z)):  # mean normals point away from the centre
        strong = volume[4 + axis] > 0.5
        assert centre[strong].min() > 0.1


def test_saved_and_loaded_refiners_are_equal(tmp_path: Path, field: ClassicalField):
    refiner = small_refiner(True)
    (tmp_path / "refiner_decoder").mkdir()
    save_refiner(tmp_path / "refiner_decoder", refiner)
    files = {path.name for path in (tmp_path / "refiner_decoder").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    loaded = Reconstructor.from_pretrained(tmp_path).refiner
    assert loaded is not None
    np.testing.assert_array_equal(
        RefinedField(field, refiner).distance(queries()),
        RefinedField(field, loaded).distance(queries()),
    )


@pytest.mark.parametrize(
    "damage", ["nothing", "no_weights", "torn", "other_conventions", "other_size"]
)
def test_a_damaged_export_is_a_user_error(tmp_path: Path, damage: str):
    if damage != "nothing":
        save_refiner(tmp_path, small_refiner(False))
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    content = json.loads(config.read_text()) if config.exists() else {}
    if damage == "no_weights":
        weights.unlink()
    elif damage == "torn":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "other_conventions":
        config.write_text(json.dumps(content | {"conventions": 99}))
    elif damage == "other_size":
        content["refiner"]["width"] = 8
        config.write_text(json.dumps(content))
    with pytest.raises(UserError):
        load_refiner(tmp_path)


def test_eikonal_loss_is_zero_for_a_true_distance_and_one_for_a_constant():
    points = torch.rand(64, 3, dtype=torch.float64) + 0.5
    step = 1e-4
    shifted = points[:, None] + step * torch.eye(3, dtype=torch.float64)
    centre, moved = points.norm(dim=-1), shifted.norm(dim=-1)
    ones = torch.ones(64, dtype=torch.float64)
    assert eikonal_loss(centre, moved, step, ones) < 1e-6
    assert abs(eikonal_loss(0 * centre, 0 * moved, step, ones) - 1.0) < 1e-4
    assert eikonal_loss(centre, moved, step, 0 * ones) == 0.0


def test_distances_of_unknown_sign_are_compared_without_it():
    predicted, target = torch.tensor([-0.02, 0.03]), torch.tensor([0.02, 0.03])
    sure, unsure = torch.ones(2), torch.zeros(2)
    assert distance_loss(predicted, target, unsure, 0.05, sure) == 0.0
    torch.testing.assert_close(
        distance_loss(predicted, target, sure, 0.05, sure), torch.tensor(0.4), atol=1e-6, rtol=0.0
    )
    one = torch.ones(1)
    far = distance_loss(torch.tensor([0.05]), torch.tensor([0.5]), one, 0.05, one)
    assert far == 0.0  # beyond the truncation all distances are alike


def test_leaving_out_a_thin_sheet_costs_as_much_as_filling_what_surrounds_it():
    """A sheet .004 thick at an unknown place: without weights nothing at all would err least."""
    height = torch.linspace(-0.02, 0.02, 400)[None].expand(2, -1)
    thin, thick = height[:1].abs() - 0.002, height[1:]
    target, sure = torch.cat([thin, thick]), torch.ones(2, 400)
    weight = near_weights(target, sure, 0.015)
    inside = target < 0
    torch.testing.assert_close(
        (weight * inside).sum(dim=1), (weight * ~inside).sum(dim=1), rtol=0.02, atol=0.0
    )
    assert weight[target.abs() > 0.015].max() == 0.0
    assert weight[1][target[1].abs() < 0.014].std() < 0.01  # both sides of a thick body: alike
    empty = torch.full_like(target, 0.01)
    assert wrong_side(empty, target, weight) == pytest.approx(0.5, abs=0.01)
    assert wrong_side(target, target, weight) == 0.0


def test_corruption_is_a_function_of_its_seed_and_leaves_exact_samples_exact():
    images, hit = observe(bowl(), 32)
    settings = Corruption(clean_share=0.0)
    first, second, other = (
        corrupt(images, hit, ORTHO6, settings, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])
    clean = corrupt(
        images, hit, ORTHO6, Corruption(clean_share=1.0, drop_share=0.0), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(clean[0], images)
    spoilt, new_hit, cameras = first
    assert spoilt.shape[1] == len(cameras) == len(new_hit)
    length = np.linalg.norm(spoilt[1], axis=1)
    np.testing.assert_allclose(length[new_hit], 1.0, atol=1e-4)
    assert length[~new_hit].max() == 0.0


def test_a_subsampled_image_shows_some_of_the_same_points():
    images, hit = observe(bowl(), 64)
    fine = lift(images, ORTHO6, hit)
    for corner in ((0, 0), (0, 1), (1, 1)):
        coarse = lift(*_images_cameras_hit(*subsample(images, hit, ORTHO6, corner)))
        distance = np.linalg.norm(fine.position[:, None] - coarse.position[None, ::37], axis=2)
        np.testing.assert_allclose(distance.min(axis=0), 0.0, atol=1e-6)
        assert coarse.spacing == pytest.approx(2.0 * fine.spacing)
        assert len(coarse.position) == pytest.approx(len(fine.position) / 4, rel=0.1)


def test_misaligned_views_stand_beside_their_images():
    images, hit = observe(sphere(), 64)
    settings = Corruption(
        clean_share=0.0, coord_noise=(1e-6, 1.0001e-6), drop_share=0.0, misaligned_share=1.0,
        misaligned_px=2.0, misaligned_deg=0.0, blur_px=0.0,
    )  # fmt: skip
    _, mask, cameras = corrupt(images, hit, ORTHO6, settings, np.random.default_rng(0))
    np.testing.assert_array_equal(mask, hit)
    moved = np.stack(
        [a.matrix[:3, 3] - b.matrix[:3, 3] for a, b in zip(cameras, ORTHO6, strict=True)]
    )
    along = np.stack([camera.matrix[:3, 2] for camera in ORTHO6])
    np.testing.assert_allclose((moved * along).sum(axis=1), 0.0, atol=1e-12)
    assert 0.5 < np.linalg.norm(moved, axis=1).mean() / (1.1 / 64) < 6.0


def _images_cameras_hit(images: np.ndarray, hit: np.ndarray, cameras: tuple) -> tuple:
    return images, cameras, hit


@pytest.mark.parametrize("level", [0.01, 0.04, 0.1])
def test_noisy_images_give_a_watertight_manifold_mesh_in_the_file_too(tmp_path: Path, level: float):
    """As generated images come: noise over all pixels, views that contradict, no exact `hit`."""
    images, hit = observe(bowl(), 48)
    settings = Corruption(clean_share=0, coord_noise=(level, level * 1.001), drop_share=0)
    rng = np.random.default_rng(0)
    spoilt, _, cameras = corrupt(images, hit, ORTHO6, settings, rng)
    spoilt += level * rng.standard_normal(spoilt.shape).astype(np.float32)
    mesh = Reconstructor(num_faces=3000)(torch.from_numpy(spoilt), cameras, grid=64, texture_px=64)
    save_mesh(mesh, tmp_path / "noisy.glb")
    loaded = load_mesh(tmp_path / "noisy.glb")
    quality = mesh_quality(loaded.vertices, loaded.faces)
    assert quality["watertight"] == quality["manifold"] == 1.0


def test_a_thin_sheet_is_neither_torn_nor_thick_on_a_coarse_grid():
    sheet = trimesh.creation.box(extents=(0.8, 1e-5, 0.8))
    sheet.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 0, 0.3]))
    images, hit = observe(flat_colored(sheet), 96)
    mesh = Reconstructor.classical()(
        torch.from_numpy(images), ORTHO6, torch.from_numpy(hit), grid=48, texture_px=64
    )
    surface = MeshSurface(np.asarray(sheet.vertices), np.asarray(sheet.faces))
    figures = compare_surfaces(MeshSurface(mesh.vertices, mesh.faces), surface, num_samples=5000)
    assert figures["recall_0.01"] > 0.99
    assert figures["precision_0.01"] > 0.97
    assert mesh_quality(mesh.vertices, mesh.faces)["components"] == 1.0


def test_images_that_show_nothing_are_a_user_error():
    with pytest.raises(UserError, match="no surface"):
        Reconstructor.classical()(torch.zeros(3, 6, 3, 16, 16), ORTHO6)


def test_one_point_is_enough_for_evidence():
    images, hit = observe(sphere(), 32)
    few = np.zeros_like(hit)
    few[0, 16, 16] = True
    refined = RefinedField(ClassicalField(lift(images, ORTHO6, few)), small_refiner(True))
    assert np.isfinite(refined.distance(queries())).all()
    assert np.isfinite(refined.colour(queries(), up())).all()

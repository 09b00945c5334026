"""What the refiner-decoder reads of a sample, and where its images come from."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, flat_colored, observe
from sphere_shards import write_sphere_shards
from torch.utils.data import DataLoader

from data_pipeline.contract import UserError, view_layout
from data_pipeline.loading.samples import SampleDataset, collate
from modules.callbacks.round_trips import RoundTrips
from modules.geometry.corruption import Corruption
from modules.geometry.evidence import UNSEEN_CHANNEL
from modules.geometry.made_images import load_made_images, made_images_of, save_made_images
from modules.latents.spec import fingerprint
from modules.networks.refiner import Refiner
from modules.networks.refiner_files import save_refiner
from modules.systems.classical_inputs import ClassicalInputs
from modules.systems.refiner_decoder import RefinerDecoderSystem

NO_NOISE = Corruption(clean_share=1.0, drop_share=0.0)
RESOLUTION = 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sphere_shards(tmp_path_factory.mktemp("set") / "shards", num_samples=2)


def dataset(shards: Path, **settings: Any) -> SampleDataset:
    settings = {"side": 8, "truncation": 0.05, "corruption": NO_NOISE} | settings
    prepare = ClassicalInputs(eikonal_points=4, **settings)
    return SampleDataset(
        shards, num_surface_points=64, num_sdf_points=64, seed=0, keep_decoded=True, prepare=prepare
    )


def test_exact_images_of_a_sphere_give_its_distances(shards: Path):
    sample = dataset(shards)[0, 0]
    assert sample["points"].shape == (64 + 3 * 4, 3)
    truth = sample["points"].norm(dim=1) - 0.5
    near = truth.abs() < 0.04
    assert (sample["distance"] - truth)[near].abs().max() < 0.01
    steps = sample["points"][64:].view(4, 3, 3) - sample["sdf_position"][:4, None]
    inside = sample["points"][64:].abs().max() < 0.549
    if inside:
        torch.testing.assert_close(steps, 0.01 * torch.eye(3).expand(4, 3, 3), atol=1e-6, rtol=0.0)


def test_what_is_drawn_depends_on_the_position_alone(shards: Path):
    noise = Corruption(clean_share=0.0)
    first, again = dataset(shards, corruption=noise), dataset(shards, corruption=noise)
    again[3, 1], again[9, 0]
    for key in ("points", "distance", "features", "geometry", "colour", "base"):
        torch.testing.assert_close(first[5, 0][key], again[5, 0][key], atol=0.0, rtol=0.0)
    assert not torch.equal(first[5, 0]["geometry"], first[6, 0]["geometry"])


def test_some_samples_of_a_batch_bring_a_grid(shards: Path):
    samples = dataset(shards, rendering_share=0.5, rendering_cells=16)
    drawn = [samples[position, 0] for position in range(12)]
    with_grid = [sample["grid"] is not None for sample in drawn]
    for rank in range(2):  # ranks take positions in strides
        assert 0 < sum(with_grid[rank::2]) < 6
    batch = collate([drawn[with_grid.index(True)], drawn[with_grid.index(False)]])
    grid, none = batch["grid"]
    assert none is None
    points = torch.cartesian_prod(*[torch.linspace(-0.54, 0.54, 17)] * 3)
    signs = points.norm(dim=1) - 0.5
    sure = signs.abs() > 0.03
    assert ((grid["values"].flatten() > 0) == (signs > 0))[sure].all()
    assert len(grid["features"]) == len(grid["base"]) == len(grid["index"]) > 100


def smaller_sphere() -> np.ndarray:
    """Return images of a sphere of radius 0.25, as a model would make them of another asset."""
    coords, normals = [], []
    for camera in view_layout("ortho6"):
        origins, directions = camera.rays(RESOLUTION)
        along = -(origins * directions).sum(-1, keepdims=True)
        foot = origins + along * directions
        inside = 0.25**2 - (foot**2).sum(-1, keepdims=True)
        coord = np.where(inside > 0, foot - np.sqrt(np.maximum(inside, 0.0)) * directions, 0.0)
        coords.append(2.0 * coord)
        normals.append(coord / 0.25)
    images = np.stack([np.ones_like(coords), normals, coords])
    return np.moveaxis(images, -1, 2)


def test_what_seen_points_lack_is_what_was_added_to_them(shards: Path):
    """On spoilt images of a ball of radius .5, at every size and with views beside their places."""
    exact = dataset(shards)[0, 0]
    assert exact["seen_known"].min() == 1.0
    assert exact["seen_depth"].abs().max() < 1e-4
    noise = Corruption(
        clean_share=0.0, coord_noise=(0.01, 0.01), drop_share=1.0, misaligned_share=1.0
    )
    for halved in (0.0, 1.0):
        sample = dataset(shards, corruption=noise, halved_share=halved)[2, 0]
        position, along, truth = (sample[f"seen_{name}"] for name in ("position", "along", "truth"))
        known = (sample["seen_known"] > 0) & ((along * truth).sum(dim=1) < -0.5)
        assert known.float().mean() > 0.5
        before = (position.norm(dim=1) - 0.5).abs()[known]
        mended = position + sample["seen_depth"][:, None] * along
        after = (mended.norm(dim=1) - 0.5).abs()[known]
        assert before.mean() > 0.002
        assert after.mean() < 0.1 * before.mean()


def test_made_views_in_another_order_are_compared_with_what_they_show(shards: Path, tmp_path: Path):
    folders = []
    for name, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        cameras = view_layout("ortho6")[order]
        save_made_images(folders[-1] / "sphere_0.a.npz", smaller_sphere()[:, order], cameras)
    for folder in folders:
        sample = dataset(shards, made=[str(folder)], made_share=1.0)[0, 0]
        position, along, depth = (sample[f"seen_{name}"] for name in ("position", "along", "depth"))
        known = (sample["seen_known"] > 0) & ((along * position).sum(dim=1) < -0.15)
        assert known.float().mean() > 0.3
        mended = (position + depth[:, None] * along)[known]
        assert (mended.norm(dim=1) - 0.5).abs().max() < 0.05


def test_images_that_a_model_made_of_an_asset_take_the_place_of_its_own(
    shards: Path, tmp_path: Path
):
    uid = "sphere_0"
    save_made_images(tmp_path / f"{uid}.a.npz", smaller_sphere(), view_layout("ortho6"))
    samples = dataset(shards, made=[str(tmp_path)], made_share=1.0)
    made, own = samples[0, 0], samples[0, 1]  # there is none of the other asset
    for sample, radius in ((made, 0.25), (own, 0.5)):
        truth = sample["points"].norm(dim=1) - radius
        near = truth.abs() < 0.03
        assert near.any()
        assert (sample["distance"] - truth)[near].abs().mean() < 0.01


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_torn_file_of_made_images_is_named(tmp_path: Path, kept: float):
    file = tmp_path / "a.npz"
    save_made_images(file, smaller_sphere(), view_layout("ortho6"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=r"a\.npz holds no made images"):
        load_made_images(file)


def test_made_images_that_are_not_finite_are_refused(tmp_path: Path):
    images = smaller_sphere()
    images[0, 0, 0, 0, 0] = np.nan
    save_made_images(tmp_path / "a.npz", images, view_layout("ortho6"))
    with pytest.raises(UserError, match="NaN or infinity"):
        load_made_images(tmp_path / "a.npz")


def test_round_trips_are_made_once_and_are_what_the_autoencoder_gives(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Scaled(torch.nn.Module):
        """An autoencoder that loses contrast: `half` keeps half of it."""

        def __init__(self, source: str) -> None:
            super().__init__()
            self.register_buffer("share", torch.tensor(0.5 if source == "half" else 0.9))

        def encode(self, images: torch.Tensor) -> Any:
            return SimpleNamespace(latents=self.share * images)

        def decode(self, latents: torch.Tensor) -> Any:
            return SimpleNamespace(sample=latents)

    monkeypatch.setattr("modules.callbacks.round_trips.load_autoencoder", Scaled)
    samples = dataset(shards)
    callback = RoundTrips(["half"], tmp_path / "made", count=1)
    callback.write(samples, torch.device("cpu"))
    files = made_images_of("sphere_0", [tmp_path / "made"])
    weights = fingerprint(Scaled("half"))[:8]
    assert [file.name for file in files] == [
        f"sphere_0.round_trip_{weights}.npz", f"sphere_0.round_trip_{weights}_half.npz",
    ]  # fmt: skip
    assert len(list((tmp_path / "made").iterdir())) == 2  # nothing unfinished is left
    assert made_images_of("sphere_1", [tmp_path / "made"]) == []
    images, cameras = load_made_images(files[0])
    exact = samples.load(0)["images"].numpy()
    np.testing.assert_allclose(images, 0.5 * exact, atol=5e-4)
    assert [c.matrix.tolist() for c in cameras] == [
        c.matrix.tolist() for c in view_layout("ortho6")
    ]
    halved, _ = load_made_images(files[1])
    np.testing.assert_allclose(halved, 0.5 * exact[..., ::2, ::2], atol=5e-4)
    written = files[0].stat().st_mtime_ns
    callback.write(samples, torch.device("cpu"))
    assert files[0].stat().st_mtime_ns == written
    # Another autoencoder in the first place does not pass for the one that was there.
    RoundTrips(["other"], tmp_path / "made", count=1).write(samples, torch.device("cpu"))
    both = set(made_images_of("sphere_0", [tmp_path / "made"]))
    [new] = (path for path in both - set(files) if "_half" not in path.name)
    np.testing.assert_allclose(load_made_images(new)[0], 0.9 * exact, atol=1e-3)


def test_an_offset_planted_in_the_refiner_is_undone_by_the_rendering_losses_alone(shards: Path):
    torch.manual_seed(0)
    network = partial(Refiner, width=4, hidden=16, side=8)
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    weights = {"depth": 1.0, "mask": 1.0, "normal": 0.1, "colour": 0.1}
    system = RefinerDecoderSystem(network, optimizer, rendering_weights=weights)
    system.configure_model()
    for head in (system.refiner.distance_head, system.refiner.colour_head):
        torch.nn.init.normal_(head[-1].weight, std=1e-3)
    torch.nn.init.constant_(system.refiner.distance_head[-1].bias, 0.8)  # 0.04 world units
    noise = Corruption(clean_share=0.0, coord_noise=(0.01, 0.01), drop_share=0.0)
    sample = dataset(shards, corruption=noise, rendering_share=1.0, rendering_cells=24)[0, 0]
    batch = collate([sample])
    for features in (batch["surface_features"][0], batch["grid"][0]["features"]):
        features[:, UNSEEN_CHANNEL] = 1.0  # as if no view had seen it
    system.refiner.point_head.requires_grad_(False)  # what was seen is not corrected on the grid
    optimizers = system.configure_optimizers()

    def error() -> float:
        volumes = system.refiner.encode(batch["geometry"], batch["colour"])
        points = batch["surface_position"]
        residual = system.refiner.distance_residual(volumes, points, batch["surface_features"])
        return float(residual.abs().mean())

    planted = error()
    for _ in range(30):
        volumes = system.refiner.encode(batch["geometry"], batch["colour"])
        figures, count = system.rendering_figures(batch, volumes)
        assert count == 1
        assert set(figures) == {f"rendered_{name}" for name in weights}
        optimizers.zero_grad()
        torch.stack([figures[f"rendered_{n}"] * w for n, w in weights.items()]).sum().backward()
        for name, parameter in system.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        optimizers.step()
    assert planted > 0.01
    assert error() < 0.5 * planted


def test_a_grid_counts_the_same_whatever_else_its_rank_found(shards: Path):
    samples = dataset(shards, rendering_share=1.0, rendering_cells=16)
    rendered, plain = samples[0, 0], samples[0, 0] | {"grid": None}
    torch.manual_seed(0)

    def loss(batch: list[dict[str, Any]], **settings: Any) -> float:
        network = partial(Refiner, width=4, hidden=16, side=8)
        system = RefinerDecoderSystem(network, partial(torch.optim.Adam, lr=1e-3), **settings)
        torch.manual_seed(0)
        system.configure_model()
        system.log = lambda *args, **kwargs: None
        return float(system.training_step(collate(batch), 0).detach())

    settings = {"rendering_weights": {"depth": 1.0}, "rendering_share": 0.5}
    without = loss([plain, plain])
    one, two = (loss([rendered, other], **settings) - without for other in (plain, rendered))
    assert one > 0.01
    assert two == pytest.approx(2.0 * one, rel=1e-3)
    assert loss([plain, plain], **settings) == without


def test_validation_looks_at_the_images_of_the_grids_that_it_is_given(shards: Path):
    samples = dataset(shards, rendering_share=1.0, rendering_cells=16)
    rendered, other = samples[0, 0], samples[1, 1]
    bare = [sample | {"grid": None} for sample in (rendered, other)]

    def validate(*batches: list[dict[str, Any]]) -> dict[str, float]:
        network = partial(Refiner, width=4, hidden=16, side=8)
        optimizer = partial(torch.optim.Adam, lr=1e-3)
        system = RefinerDecoderSystem(network, optimizer, rendering_weights={"depth": 1.0})
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        loader = DataLoader(list(batches), batch_size=None, collate_fn=collate)
        trainer.validate(system, loader, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    name = "val/loss/rendered_depth"
    one, two = validate([rendered, bare[1]]), validate([other])
    both = validate([rendered, bare[1]], bare, [other])
    assert one[name] > 0.01
    assert both[name] == pytest.approx((one[name] + two[name]) / 2.0, rel=1e-4)
    nothing = validate(bare)
    assert name not in nothing
    assert nothing["val/loss/wrong_side"] == nothing["val/loss/classical_wrong_side"]


def test_rendering_losses_begin_when_they_are_told_to(shards: Path):
    batch = collate([dataset(shards, rendering_share=1.0, rendering_cells=16)[0, 0]])
    losses = []
    for after in (0, 1):
        system = RefinerDecoderSystem(
            partial(Refiner, width=4, hidden=16, side=8),
            partial(torch.optim.Adam, lr=1e-3),
            rendering_weights={"depth": 1.0},
            rendering_after=after,
        )
        torch.manual_seed(0)
        system.configure_model()
        system.log = lambda *args, **kwargs: None
        losses.append(float(system.training_step(batch, 0).detach()))
    assert losses[0] > losses[1] + 0.01


def plate_sample() -> dict[str, Any]:
    """Return a sample of a plate that is .01 thick, with points on its upper side."""
    plate = flat_colored(trimesh.creation.box(extents=(0.8, 0.8, 0.01)))
    images, hit = observe(plate, 64)
    place = np.random.default_rng(0).uniform(-0.3, 0.3, (50, 3)).astype(np.float32)
    place[:, 2] = 0.005
    return {
        "uid": "plate", "images": torch.from_numpy(images), "hit": torch.from_numpy(hit),
        "camera_to_world": torch.from_numpy(np.stack([c.matrix for c in ORTHO6])),
        "ortho_scale": torch.tensor([c.ortho_scale for c in ORTHO6], dtype=torch.float64),
        "fov_deg": torch.full((6,), torch.nan, dtype=torch.float64),
        "sdf_position": torch.from_numpy(place), "surface_position": torch.from_numpy(place),
        "surface_normal": torch.tensor([0.0, 0.0, 1.0]).expand(50, 3),
    }  # fmt: skip


def test_what_is_learned_is_not_to_undo_the_thickening_of_sheets():
    settings: dict[str, Any] = {"side": 8, "truncation": 0.05, "corruption": NO_NOISE}
    settings |= {"eikonal_points": 4, "rendering_cells": 40, "thickened_for": (40, 40)}
    prepared = ClassicalInputs(**settings)(plate_sample(), 0)
    assert prepared["distance"][:50].abs().max() < 1e-3
    assert prepared["grid"] is None
    seen = 0.05 * prepared["features"][:50, 2]
    torch.testing.assert_close(seen, torch.full_like(seen, -0.00985), atol=1e-3, rtol=0.0)
    system = RefinerDecoderSystem(
        partial(Refiner, width=4, hidden=16, side=8),
        torch.optim.Adam,
        rendering_weights={"depth": 1.0},
    )
    system.configure_model()
    batch = collate([ClassicalInputs(rendering_share=1.0, **settings)(plate_sample(), 0)])
    volumes = system.refiner.encode(batch["geometry"], batch["colour"])
    figures, count = system.rendering_figures(batch, volumes)
    assert count == 1
    assert float(figures["rendered_depth"].detach()) < 0.06


def test_a_misspelt_rendering_loss_is_refused():
    with pytest.raises(UserError, match="has nrmal: the rendering losses are mask, depth"):
        RefinerDecoderSystem(Refiner, torch.optim.Adam, rendering_weights={"nrmal": 1.0})


def test_training_goes_on_from_an_exported_refiner_of_the_same_shape(tmp_path: Path):
    exported = Refiner(width=4, hidden=16, side=8)
    (tmp_path / "refiner_decoder").mkdir()
    save_refiner(tmp_path / "refiner_decoder", exported)

    def started(width: int) -> RefinerDecoderSystem:
        network = partial(Refiner, width=width, hidden=16, side=8)
        system = RefinerDecoderSystem(network, torch.optim.Adam, start=str(tmp_path))
        system.configure_model()
        return system

    for ours, theirs in zip(started(4).refiner.parameters(), exported.parameters(), strict=True):
        assert ours.requires_grad
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(UserError, match=r"another shape: give refiner\.width=4 refiner\.hidden=16"):
        started(8)

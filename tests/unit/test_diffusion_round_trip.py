"""Images that a diffusion model makes of partly noised ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sampler import VIEWS, make_pipeline

from data_pipeline.contract import UserError, view_layout
from modules.callbacks.round_trips import RoundTrips
from modules.geometry.made_images import load_made_images, made_images_of
from modules.pipelines import diffusion_round_trip
from modules.pipelines.diffusion_round_trip import DiffusionRoundTrip

CPU = torch.device("cpu")


def sample_of(side: int = 4, views: int = VIEWS, uid: str = "a") -> dict[str, Any]:
    cameras = view_layout("ortho6")[:views]
    images = torch.rand(3, views, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {
        "uid": uid, "caption": "a red chair", "images": 2.0 * images - 1.0,
        "hit": torch.ones(views, side, side, dtype=torch.bool),
        "camera_to_world": torch.from_numpy(np.stack([c.matrix for c in cameras])),
        "ortho_scale": torch.tensor([c.ortho_scale for c in cameras]),
        "fov_deg": torch.full((views,), torch.nan),
    }  # fmt: skip


@pytest.fixture
def make_trip(monkeypatch):
    """Return a round trip through the random little pipeline of test_sampler."""

    def make(model: dict[str, Any] = {}, **options: Any) -> DiffusionRoundTrip:  # noqa: B006
        pipeline = make_pipeline(**model)
        load = lambda _: pipeline  # noqa: E731
        monkeypatch.setattr(diffusion_round_trip.TextTo25D, "from_pretrained", load)
        return DiffusionRoundTrip(Path("pipeline"), CPU, **options)

    return make


class Recording(torch.nn.Module):
    """A denoiser that was told the answer; keeps what it was given."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.given = answer, []

    def forward(self, latents, timesteps, text, **options):
        self.given.append((latents.clone(), timesteps.clone(), text, options))
        return self.answer.expand(len(latents), *self.answer.shape)


def test_the_flow_starts_at_the_noised_latents_and_ends_where_the_denoiser_leads(make_trip):
    trip = make_trip(steps=10, guidance=1.0)
    sample = sample_of()
    clean = trip.generator.codec.encode(sample["images"][None])[0]
    answer = 0.5 * clean  # other images
    trip.generator.denoiser = Recording(answer)
    made, cameras = trip(sample, 0.4)
    levels = [timesteps[0, 0].item() for _, timesteps, *_ in trip.generator.denoiser.given]
    assert levels == pytest.approx([0.4, 0.3, 0.2, 0.1])
    noise = (trip.generator.denoiser.given[0][0][0] - 0.6 * clean) / 0.4
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), clean.flatten()]))[0, 1]) < 0.2
    torch.testing.assert_close(made, trip.generator.codec.decode(answer[None])[0])
    assert [c.matrix.tolist() for c in cameras] == [
        c.matrix.tolist() for c in view_layout("ortho6")[:VIEWS]
    ]


def test_images_stay_at_little_noise_and_leave_the_truth_with_more(make_trip):
    trip, sample = make_trip({"prediction": "velocity"}, steps=5), sample_of()
    error = [(trip(sample, s)[0] - sample["images"]).abs().mean().item() for s in (0.01, 0.3, 0.9)]
    assert error[0] < 0.05
    assert error[0] < error[1] < error[2]
    assert torch.equal(trip(sample, 0.3)[0], trip(sample, 0.3)[0])
    assert not torch.equal(trip(sample | {"uid": "b"}, 0.3)[0], trip(sample, 0.3)[0])


def test_the_model_is_told_the_caption_and_the_first_view(make_trip):
    told = {}
    for name, num_references, changed in (
        ("another caption", 0, {"caption": "a blue mug"}),
        ("caption", 0, {}),
        ("reference", 1, {}),
    ):
        trip = make_trip({"num_references": num_references}, guidance=1.0)
        trip.generator.denoiser = Recording(torch.zeros(3, VIEWS, 12, 2, 2))
        trip(sample_of() | changed, 0.5)
        told[name] = trip.generator.denoiser.given[0][2:]
        codec = trip.generator.codec
    assert not torch.equal(told["another caption"][0], told["caption"][0])
    assert "references" not in told["caption"][1]
    latents = codec.encode(sample_of()["images"][None])[0]
    torch.testing.assert_close(told["reference"][1]["references"][0, 0], latents[0, 0])


def test_twice_the_size_is_thinned_out_and_other_views_are_refused(make_trip):
    trip = make_trip({"prediction": "velocity"})
    fine = sample_of(side=8)
    made, cameras = trip(fine, 0.01)
    assert (made - fine["images"][..., ::2, ::2]).abs().mean() < 0.05
    moved = cameras[0].matrix[:3, 3] - view_layout("ortho6")[0].matrix[:3, 3]
    assert np.abs(moved).max() == pytest.approx(0.5 * 1.1 / 8)
    for wrong in (sample_of(side=16), sample_of(side=6), sample_of(views=6)):
        with pytest.raises(UserError, match=r"pipeline makes 2 views of 4 px, a has \d of \d+ px"):
            trip(wrong, 0.5)


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.2, 1.2, float("nan")])
def test_a_strength_out_of_its_range_is_refused(make_trip, strength: float):
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        make_trip()(sample_of(), strength)


def test_a_folder_without_a_diffusion_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is no pipeline folder"):
        DiffusionRoundTrip(tmp_path, CPU)
    (tmp_path / "autoencoder").mkdir()
    with pytest.raises(UserError, match="holds autoencoder, but no denoiser: train it"):
        DiffusionRoundTrip(tmp_path, CPU)


class Samples:
    """Two samples, as a SampleDataset gives them."""

    def __len__(self) -> int:
        return 2

    def load(self, i: int) -> dict[str, Any]:
        return sample_of(uid=f"asset_{i}")


def test_samples_are_written_for_every_strength_and_stay(make_trip, tmp_path: Path):
    trip = make_trip(steps=3)
    asked = {"pipelines": ["p"], "diffusion": lambda pipeline, device: trip}
    RoundTrips([], tmp_path, 1, strengths=[0.2, 0.4], **asked).write(Samples(), CPU)
    names = [f"asset_0.diffused_{trip.name}_{s}.npz" for s in ("0.2", "0.4")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    images, cameras = load_made_images(tmp_path / names[1])
    np.testing.assert_allclose(images, trip(sample_of(uid="asset_0"), 0.4)[0], atol=5e-4)
    assert len(cameras) == VIEWS
    RoundTrips([], tmp_path, strengths=[0.4, 0.6], **asked).write(Samples(), CPU)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len(made_images_of("asset_0", [tmp_path])) == 3
    assert len(made_images_of("asset_1", [tmp_path])) == 2


def test_ranks_share_the_assets(make_trip, tmp_path: Path):
    trip = make_trip(steps=3)
    trips = RoundTrips(
        [], tmp_path, pipelines=["p"], strengths=[0.2], diffusion=lambda pipeline, device: trip
    )
    trips.write(Samples(), CPU, rank=1, num_ranks=2)
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["asset_1"]
    trips.write(Samples(), CPU, rank=0, num_ranks=2)
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"asset_0", "asset_1"}


def test_how_it_samples_and_its_weights_are_in_a_round_trips_name(make_trip, monkeypatch):
    names = {make_trip(steps=steps).name for steps in (5, 6)}
    names.add(make_trip(steps=5, guidance=1.0).name)
    monkeypatch.setattr(diffusion_round_trip, "model_digest", lambda *_: "other weights")
    names.add(make_trip(steps=5).name)
    assert len(names) == 4
    assert make_trip(steps=5).name in names


def test_pipelines_without_strengths_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="need strengths"):
        RoundTrips([], tmp_path, pipelines=["p"], diffusion=lambda *_: None)

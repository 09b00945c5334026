"""Samples that are trained on again: which ones, and that turning them keeps all of it together."""

import pytest
import torch

from data_pipeline.contract import UserError
from data_pipeline.loading.samples import collate
from modules.networks.refiner import _read
from modules.systems.replay import ORIENTATIONS, Replay, turned

SIDE = 8


def prepared(number: int) -> dict[str, torch.Tensor]:
    """Return a sample whose volume's vectors are positions, and so its features at its points."""
    centre = (torch.arange(SIDE) + 0.5) * 1.1 / SIDE - 0.55
    position = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"))
    generator = torch.Generator().manual_seed(number)
    points = torch.rand(20, 3, generator=generator) - 0.5
    inner = 0.8 * points  # where interpolation needs no border
    return {
        "geometry": torch.cat([position[:1], position, position, torch.ones(4, *[SIDE] * 3)]),
        "colour": position[[0, 1, 2, 2]],
        "points": inner,
        "surface_position": inner[:5],
        "surface_normal": torch.nn.functional.normalize(inner[:5], dim=1),
        "seen_position": inner[:7],
        "seen_normal": torch.nn.functional.normalize(inner[:7], dim=1),
        "seen_along": -inner[:7],
        "seen_truth": torch.nn.functional.normalize(inner[:7], dim=1),
        "seen_features": torch.ones(7, 27),
        "seen_depth": torch.ones(7),
        "seen_known": torch.ones(7),
        "distance": torch.full((20,), float(number)),
        "features": inner.norm(dim=1, keepdim=True),
        "sdf_distance": inner.norm(dim=1),
        "sdf_confidence": torch.ones(20),
        "surface_albedo": torch.rand(5, 3, generator=generator),
        "surface_features": torch.ones(5, 27),
        "base": torch.ones(5, 3),
    }


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_turned_sample_is_one_of_a_turned_world(orientation: int):
    batch = collate([prepared(0), prepared(1)])
    result = turned(batch, orientation)
    read = _read(result["geometry"], result["points"])
    torch.testing.assert_close(read[..., 1:4], result["points"], atol=1e-5, rtol=0.0)
    torch.testing.assert_close(read[..., 4:7], result["points"], atol=1e-5, rtol=0.0)
    coloured = _read(result["colour"], result["points"])[..., 2]  # z stays up
    torch.testing.assert_close(coloured, batch["points"][..., 2], atol=1e-5, rtol=0.0)
    normals = torch.nn.functional.normalize(result["surface_position"], dim=-1)
    torch.testing.assert_close(result["surface_normal"], normals)
    torch.testing.assert_close(result["seen_along"], -result["seen_position"])
    for key in ("seen_normal", "seen_truth"):
        seen = torch.nn.functional.normalize(result["seen_position"], dim=-1)
        torch.testing.assert_close(result[key], seen)
    if orientation:
        assert not torch.allclose(result["points"], batch["points"])
    else:
        assert all(torch.equal(result[key], batch[key]) for key in batch)


def test_no_two_orientations_are_the_same():
    corner = {key: value[None] for key, value in prepared(0).items()}
    found = {tuple(turned(corner, k)["points"][0, 0].tolist()) for k in range(ORIENTATIONS)}
    assert len(found) == ORIENTATIONS


def test_a_batch_is_followed_by_the_newest_of_earlier_ones():
    replay, generator = Replay(count=3, capacity=4), torch.Generator().manual_seed(0)
    batches = [collate([prepared(2 * k), prepared(2 * k + 1)]) for k in range(6)]
    sizes, replayed = [], set()
    for batch in batches[:5]:
        joined = replay(batch | {"uid": ["a", "b"], "grid": [None, None]}, generator)
        for key, value in batch.items():
            assert torch.equal(joined[key][:2], value), key
        sizes.append(len(joined["points"]))
    assert sizes == [2, 4, 5, 5, 5]
    for _ in range(20):
        joined = replay(batches[5], generator)
        replayed |= set(joined["distance"][2:, 0].tolist())
    assert replayed == {6.0, 7.0, 8.0, 9.0, 10.0, 11.0}


def test_fewer_than_a_batch_or_than_are_added_cannot_be_kept():
    with pytest.raises(UserError, match=r"replay_count=3 .* system.replay_capacity=2"):
        Replay(3, 2)
    replay = Replay(1, 1)
    with pytest.raises(UserError, match="capacity=1 must be at least the batch, 2"):
        replay(collate([prepared(0), prepared(1)]), torch.Generator())

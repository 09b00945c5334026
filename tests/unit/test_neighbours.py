import pytest
import torch

from modules.geometry.neighbours import CellIndex, PointIndex


def cloud(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("number", "count"), [(3000, 10), (3000, 1), (4, 10), (1, 3)])
@pytest.mark.parametrize("reach", [0.03, 0.2, 3.0])
def test_cells_find_what_a_tree_finds(
    number: int, count: int, reach: float, monkeypatch: pytest.MonkeyPatch
):
    """Also with so few pairs at a time that they come in many turns, and far from all points."""
    monkeypatch.setattr("modules.geometry.neighbours.MOST_PAIRS", 5000)
    points, asked = cloud(number, seed=0), 1.5 * cloud(800, seed=1) - 0.2
    asked[0], asked[1] = 1e30, points[0] + 0.01
    expected, nearest = PointIndex(points).query(asked, count, reach)
    distance, index = CellIndex(points, reach).query(asked, count)
    torch.testing.assert_close(distance, expected)
    assert distance.isfinite().any()
    assert (distance.diff(dim=1).nan_to_num() >= 0).all()
    found = distance.isfinite()
    assert (index[~found] == 0).all()
    assert (nearest[~found] == 0).all()
    away = (points[index] - asked[:, None]).norm(dim=-1)
    torch.testing.assert_close(away[found], distance[found])


def test_points_at_one_place_are_all_found():
    points = cloud(1, seed=0).expand(12, 3)
    distance, index = CellIndex(points, 0.1).query(points[:1], 12)
    assert (distance == 0).all()
    assert sorted(index[0].tolist()) == list(range(12))


def test_nothing_is_asked():
    distance, index = CellIndex(cloud(5, seed=0), 0.1).query(cloud(0, seed=0), 3)
    assert distance.shape == index.shape == (0, 3)

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from modules.geometry import neighbours
from modules.geometry.neighbours import CellIndex, PointIndex, in_chunks

CPU = torch.device("cpu")


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(neighbours, "LEAST_CHUNK", 50)
    monkeypatch.setattr(neighbours, "MOST_CHUNK", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Tree(cKDTree):
    """Notes how many workers each query may use."""

    def query(self, x, k=1, workers=1, **options):
        self.workers = [*getattr(self, "workers", []), workers]
        return super().query(x, k, workers=workers, **options)


@pytest.mark.usefixtures("three_threads")
def test_chunks_on_threads_give_what_one_call_gives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "cKDTree", Tree)
    points, values = np.random.default_rng(0).random((2, 1050, 3))
    index, used, together = PointIndex(torch.from_numpy(points)), set(), threading.Barrier(2)

    def nearest(chunk: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(used) < 2:
            used.add(threading.get_ident())
            together.wait(10.0)  # so that more than one thread takes part
        return index.query(chunk, 2)[0], other.sum(dim=1)

    distance, total = in_chunks(nearest, CPU, values[::-1], points)
    expected = index.query(torch.from_numpy(values[::-1].copy()), 2)[0]
    np.testing.assert_array_equal(distance, expected.numpy())
    np.testing.assert_allclose(total, points.sum(axis=1))
    assert threading.get_ident() not in used
    assert isinstance(index._tree, Tree)
    assert index._tree.workers == [1] * 11 + [3]


def test_chunks_are_of_double_precision():
    [result] = in_chunks(lambda some: (2.0 * some,), CPU, np.ones((3, 2), np.float32))
    assert result.dtype == np.float64


def test_no_points_give_empty_results():
    [result] = in_chunks(lambda chunk: (chunk[:, 0],), CPU, np.zeros((0, 3)))
    assert result.shape == (0,)


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

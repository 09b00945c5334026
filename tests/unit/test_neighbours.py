"""Many points on several threads: the same answers, and no thread asks for more threads."""

import threading

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from modules.geometry import neighbours
from modules.geometry.neighbours import in_chunks, query


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(neighbours, "LEAST_CHUNK", 50)
    monkeypatch.setattr(neighbours, "MOST_CHUNK", 100)


class Tree(cKDTree):
    """Notes how many workers each query may use."""

    def query(self, x, k=1, workers=1, **options):
        self.workers = [*getattr(self, "workers", []), workers]
        return super().query(x, k, workers=workers, **options)


@pytest.mark.usefixtures("four_threads")
def test_chunks_on_threads_give_what_one_call_gives():
    points, values = np.random.default_rng(0).random((2, 1050, 3))
    tree, used, together = Tree(points), set(), threading.Barrier(2, timeout=10.0)

    def nearest(chunk: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(used) < 2:
            used.add(threading.get_ident())
            together.wait()  # so that more than one thread takes part
        return query(tree, chunk)[0], other.sum(axis=1)

    distance, total = in_chunks(nearest, values, points)
    np.testing.assert_array_equal(distance, query(tree, values)[0])
    np.testing.assert_array_equal(total, points.sum(axis=1))
    assert threading.get_ident() not in used
    assert tree.workers == [1] * 11 + [4]


def test_one_thread_stays_one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(neighbours, "LEAST_CHUNK", 50)
    monkeypatch.setattr(neighbours, "MOST_CHUNK", 100)
    used = set()

    def same(chunk: np.ndarray) -> tuple[np.ndarray]:
        used.add(threading.get_ident())
        return (chunk,)

    values = np.arange(250.0)
    np.testing.assert_array_equal(in_chunks(same, values)[0], values)
    assert used == {threading.get_ident()}


def test_no_points_give_empty_results():
    [result] = in_chunks(lambda chunk: (chunk[:, 0],), np.zeros((0, 3)))
    assert result.shape == (0,)

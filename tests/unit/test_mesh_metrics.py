"""The torchmetrics interface gives the figures of eval.py, on one process or on several."""

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from analytic import colored
from torch import distributed

from data_pipeline.contract import UserError
from modules.geometry.mesh import Mesh
from modules.metrics.geometry import MeshSurface
from modules.metrics.meshes import MeshMetrics
from modules.metrics.scoring import FIGURE_KEYS, ScoringOptions, score, summarise

OPTIONS = ScoringOptions(num_samples=1000, num_views=1, resolution_px=32)
TRUTH = colored(trimesh.creation.icosphere(2, 0.5))


def predictions() -> list[Mesh | None]:
    """Four balls of several sizes, of which one is open, a failed pair and a mesh without area."""
    balls: list[Mesh | None] = [
        colored(trimesh.creation.icosphere(2, radius)) for radius in (0.5, 0.47, 0.4)
    ]
    whole = trimesh.creation.icosphere(2, 0.45)
    opened = colored(trimesh.Trimesh(whole.vertices, whole.faces[:-20]))
    collapsed = colored(trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False))
    return [*balls, opened, None, collapsed]


def update(metric: MeshMetrics, meshes: list[Mesh | None]) -> MeshMetrics:
    surface = MeshSurface(TRUTH.vertices, TRUTH.faces)
    for mesh in meshes:
        metric.update(mesh, surface, TRUTH)
    return metric


def test_it_summarises_what_score_gives():
    meshes = predictions()
    surface = MeshSurface(TRUTH.vertices, TRUTH.faces)
    pairs = [score(mesh, surface, TRUTH, OPTIONS) for mesh in meshes[:4] if mesh is not None]
    assert all(set(pair) <= set(FIGURE_KEYS) for pair in pairs)
    assert math.isnan(pairs[3]["volume_iou"])  # one of four is open
    metric = update(MeshMetrics(OPTIONS), meshes)
    assert metric.compute() == summarise(pairs, num_failed=2)
    metric.reset()
    assert metric.compute() == {}
    with pytest.raises(UserError, match="does not exist"):
        MeshMetrics(ScoringOptions(lpips_weights="/no/such.safetensors"))


SHARES = ([[0, 4], [1, 2, 3, 5]], [[], [0, 1, 2, 3, 4, 5]])
"""Of each rank, by run: uneven ones, and one without any pair."""


def rank_summaries(rank: int, file: str, out) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    meshes = predictions()
    for shares in SHARES:
        out.put(update(MeshMetrics(OPTIONS), [meshes[i] for i in shares[rank]]).compute())
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_with_uneven_shares_give_the_figures_of_one(tmp_path: Path):
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    out = context.Queue()
    ranks = [
        context.Process(target=rank_summaries, args=(rank, f"{tmp_path}/rendezvous", out))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    alone = update(MeshMetrics(OPTIONS), predictions()).compute()
    summaries = [out.get(timeout=120) for _ in range(4)]
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    for summary in summaries:
        assert summary.keys() == alone.keys()
        for key, figures in alone.items():
            assert summary[key] == pytest.approx(figures, rel=1e-12), key

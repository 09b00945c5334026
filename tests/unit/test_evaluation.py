"""What an interrupted or shared evaluation keeps, and what it does anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from analytic import colored

from data_pipeline.contract import SourceFrame, UserError
from modules.geometry.mesh import load_mesh
from modules.metrics.geometry import MeshSurface, SampledSurface, SurfaceSamples
from modules.metrics.scoring import ScoringOptions, summarise
from modules.reporting.evaluation import (
    Case,
    RebuildError,
    Shard,
    Truth,
    Unfinished,
    evaluate,
    score_mesh_case,
)


@dataclass(frozen=True)
class Options:
    """Any will do."""

    seed: int = 0


class Scorer:
    """Scores cases, and remembers which; `broken` ones fail."""

    def __init__(self, mesh: Path | None = None) -> None:
        self.scored: list[str] = []
        self.mesh = mesh

    def __call__(self, case: Case, options: Any, out: Path, picture: str) -> dict[str, Any]:
        self.scored.append(case.name)
        (out / picture).write_bytes(b"png")
        failed = "a reason" if case.name == "broken" else None
        metrics = {"f_score_0.02": 0.5}
        mesh = self.mesh and str(self.mesh)
        return {
            "name": case.name, "failed": failed, "metrics": metrics, "picture": picture,
            "mesh": mesh,
        }  # fmt: skip


def cases(*names: str) -> list[Case]:
    return [Case(name, "inputs", lambda: None) for name in names]


def scored(out: Path, *names: str, mesh: Path | None = None) -> list[str]:
    scorer = Scorer(mesh)
    evaluate(cases(*names), Options(), out, score_case=scorer)
    return scorer.scored


def test_what_is_whole_is_kept_and_what_failed_is_tried_again(tmp_path):
    assert scored(tmp_path, "a", "broken") == ["a", "broken"]
    assert scored(tmp_path, "a", "broken", "c") == ["broken", "c"]


@pytest.mark.parametrize("content", [b"", b'{"key": ', b"[1, 2]", b"null", b"{}", b"\xff\xfe"])
def test_a_damaged_pair_is_not_kept(content, tmp_path):
    scored(tmp_path, "a")
    [kept] = (tmp_path / "pairs").iterdir()
    kept.write_bytes(content)
    assert scored(tmp_path, "a") == ["a"]
    assert scored(tmp_path, "a") == []


def test_a_pair_whose_picture_or_mesh_is_gone_is_made_again(tmp_path):
    out, mesh = tmp_path / "out", tmp_path / "mesh.glb"
    mesh.write_bytes(b"glTF")
    scored(out, "a", mesh=mesh)
    assert scored(out, "a", mesh=mesh) == []
    for path in (out / "pictures").iterdir():
        path.unlink()
    assert scored(out, "a", mesh=mesh) == ["a"]
    moved = mesh.rename(tmp_path / "moved.glb")
    assert scored(out, "a", mesh=moved) == ["a"]


def test_a_shard_tells_how_many_pairs_are_missing_and_how_many_are_of_other_options(tmp_path):
    every = cases("a", "b", "c", "d")

    def run(index: int, seed: int) -> Any:
        shard = Shard(index, 2)
        return evaluate(every, Options(seed), tmp_path, shard, Scorer())

    assert run(0, seed=0) == Unfinished(num_missing=2, num_stale=0)
    assert run(1, seed=1) == Unfinished(num_missing=2, num_stale=2)
    assert len(run(0, seed=1)) == 4


def test_a_truth_is_known_by_its_content_whatever_its_frame(tmp_path):
    box = trimesh.creation.box((1.0, 2.0, 3.0)).subdivide().subdivide()
    box.export(tmp_path / "box.glb")
    loaded = load_mesh(tmp_path / "box.glb")

    def digest(mesh: Any) -> str:
        return Truth(MeshSurface(mesh.vertices, mesh.faces), mesh).digest()

    moved = loaded.transformed(SourceFrame(scale=1.0 / 3.0, offset=(0.1, -7.3, 0.02)))
    assert digest(moved) == digest(loaded)
    assert digest(colored(trimesh.creation.box((1.0, 2.0, 2.9)).subdivide().subdivide())) != (
        digest(colored(box))
    )
    points = np.random.default_rng(0).normal(size=(50, 3))
    samples = [
        Truth(SampledSurface(SurfaceSamples(p, points)), None).digest() for p in (points, -points)
    ]
    assert len({digest(loaded), *samples}) == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("resolution_px", 4096000), ("num_samples", 10**12), ("num_views", 0)],
)
def test_options_that_cannot_be_used_are_told(option, value):
    with pytest.raises(UserError, match=f"{option}={value}"):
        ScoringOptions(**{option: value})


def test_what_is_known_of_a_failed_pair_counts_and_the_rest_is_at_its_worst():
    scored = {"f_score_0.02": 0.8, "decoded_mask_iou": 0.9}
    found = summarise([scored], 0, [{"decoded_mask_iou": 0.7}])
    assert found["decoded_mask_iou"]["mean"] == pytest.approx(0.8)
    assert found["f_score_0.02"]["mean"] == pytest.approx(0.4)


def test_the_images_of_a_sample_count_though_no_mesh_could_be_made_of_them(tmp_path):
    def load() -> None:
        raise RebuildError("the images show no surface", {"decoded_mask_iou": 0.7})

    pair = score_mesh_case(Case("a", "", load), ScoringOptions(), tmp_path, "a.png")
    assert pair["failed"] == "the images show no surface"
    assert pair["metrics"] == {"decoded_mask_iou": 0.7}

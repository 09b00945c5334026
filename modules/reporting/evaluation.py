"""Score cases one by one and keep what is done, so that work can stop, go on and be shared."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from data_pipeline.contract import UserError
from modules.geometry.mesh import Mesh
from modules.metrics.geometry import SampledSurface, Surface, floor_figures
from modules.metrics.scoring import ScoringOptions, score
from modules.reporting.page import write_bytes, write_text
from modules.reporting.pictures import (
    resized,
    shaded_views,
    side_by_side,
    to_png,
    turntable_cameras,
)

PICTURE_PX, PICTURE_VIEWS = 150, 4


@dataclass(frozen=True)
class Truth:
    """What a prediction is judged by, in the frame where it fills the unit cube.

    Args:
        surface: the surface to measure to.
        mesh: the mesh; None when only samples of the surface are known.
        views: what to show of it when there is no mesh: RGBA views.
    """

    surface: Surface
    mesh: Mesh | None
    views: UInt8[ndarray, "v h w 4"] | None = None

    def digest(self) -> str:
        """Return 16 hex digits that name shape and colours, wherever and however large it lies."""
        if isinstance(self.surface, SampledSurface):
            samples = self.surface.samples
            parts = [samples.points, samples.normals]
        else:
            assert self.mesh is not None
            vertices, faces = self.mesh.vertices, self.mesh.faces
            used = vertices[faces].reshape(-1, 3)
            low, high = used.min(axis=0), used.max(axis=0)
            # The same file is moved here by slightly different frames. No coordinate that a person
            # or a grid would give lies half way between two steps of an irrational size.
            steps = np.rint((used - low) / (high - low).max() * (np.pi * 1e5)).astype(np.int64)
            thirds = np.full((len(faces), 3), 1.0 / 3.0)
            colours = self.mesh.colours_at(np.arange(len(faces)), thirds)
            parts = [steps, np.rint(colours * 255.0).astype(np.uint8)]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Loaded:
    """One case, ready to be scored.

    Args:
        predicted: the mesh, in the truth's frame.
        truth: what it is judged by.
        path: its file, if it has one.
        figures: figures that are known already.
        picture: what to show of the pair; None for views of the two meshes.
    """

    predicted: Mesh
    truth: Truth
    path: Path | None
    figures: Mapping[str, float] = field(default_factory=dict)
    picture: UInt8[ndarray, "h w c"] | None = None


class RebuildError(UserError):
    """No mesh could be made of images, of which some figures are known all the same."""

    def __init__(self, reason: str, figures: Mapping[str, float]) -> None:
        super().__init__(reason)
        self.figures = dict(figures)


@dataclass(frozen=True)
class Case:
    """One pair to be scored.

    Args:
        name: of the pair, unique.
        identity: text that changes when anything changes that its figures depend on.
        load: makes it ready, for meshes as `Loaded`; raises UserError, whose message is the reason
            of the failure.
        products: files that `load` writes: without them it runs again, unless it failed.
    """

    name: str
    identity: str
    load: Callable[[], Any]
    products: Sequence[Path] = ()


@dataclass(frozen=True)
class Shard:
    """A part of the cases, for one of several processes that share a folder.

    Args:
        index: from 0; the cases are dealt out in turn.
        count: of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """Return what `shard=0/4` means; all of the cases for None."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
        if not found or int(found[1]) >= int(found[2]):
            raise UserError(f"shard={text} is no share: the shards of four are 0/4, 1/4, 2/4, 3/4")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Unfinished:
    """Cases of other shards that have no pair yet.

    Args:
        num_missing: how many.
        num_stale: how many of them have a pair of other options, inputs or code.
    """

    num_missing: int
    num_stale: int


ScoreCase = Callable[[Case, Any, Path, str], dict[str, Any]]
"""Makes a pair of a case, the options, the report's folder, and the picture's path below it."""


def evaluate(
    cases: Sequence[Case],
    options: Any,
    out: Path,
    shard: Shard = Shard(),
    score_case: "ScoreCase | None" = None,
) -> list[dict[str, Any]] | Unfinished:
    """Score the shard's cases; return the pairs of all of them, worst first, once all are scored.

    Every finished pair is kept below `out`, so an interrupted command goes on where it stopped, and
    is scored anew when it failed, or its inputs, the options or this code have changed. A pair's
    figures do not depend on the others, so they are the same from one process and from many.

    Args:
        cases: the pairs.
        options: how figures are taken: a dataclass.
        out: the report's folder.
        shard: the part of the cases that this process scores.
        score_case: makes a pair of a case; by default one of a mesh against its truth, for which
            options are `ScoringOptions`.

    Returns:
        What is missing, while other shards have cases left.
    """
    score_case = score_case or score_mesh_case
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    (out / "pictures").mkdir(exist_ok=True)
    common = json.dumps([asdict(options), code_digest()])

    def kept(case: Case) -> dict[str, Any] | None:
        pair = _read_kept(_kept_path(out, case), _key(common, case))
        if pair is None:
            return None
        needed = [out / pair["picture"]] if pair["picture"] else []
        if pair["failed"] is None:
            needed += [*case.products, *([Path(pair["mesh"])] if pair["mesh"] else [])]
        return pair if all(path.is_file() for path in needed) else None

    mine = cases[shard.index :: shard.count]
    for case in tqdm(mine, desc="evaluate", unit="mesh", delay=1):
        pair = kept(case)
        if pair is None or pair["failed"] is not None:  # what made it fail may have been mended
            path = _kept_path(out, case)
            pair = score_case(case, options, out, f"pictures/{path.stem}.png")
            write_text(path, json.dumps({"key": _key(common, case), "pair": pair}))
    pairs = [pair for pair in map(kept, cases) if pair is not None]
    if num_missing := len(cases) - len(pairs):
        num_stale = sum(kept(case) is None and _kept_path(out, case).is_file() for case in cases)
        return Unfinished(num_missing, num_stale)
    return sorted(pairs, key=_quality)


def score_mesh_case(case: Case, options: ScoringOptions, out: Path, picture: str) -> dict[str, Any]:
    """Return the pair of a mesh and its truth, and draw its picture."""
    pair: dict[str, Any] = {
        "name": case.name,
        "failed": None,
        "truth": None,
        "truth_digest": None,
        "metrics": {},
        "floor": {},
        "picture": None,
        "mesh": None,
    }
    try:
        loaded = case.load()
        kind = "samples" if loaded.truth.mesh is None else "mesh"
        pair |= {"truth": kind, "truth_digest": loaded.truth.digest()}
        metrics = score(loaded.predicted, loaded.truth.surface, loaded.truth.mesh, options)
    except UserError as error:
        known = error.figures if isinstance(error, RebuildError) else {}
        return pair | {"failed": str(error), "metrics": known}
    floor = floor_figures(loaded.truth.surface, num_samples=options.num_samples, seed=options.seed)
    drawn = loaded.picture
    if drawn is None:
        drawn = pair_picture(loaded.predicted, loaded.truth)
    write_bytes(out / picture, to_png(drawn))
    return pair | {
        "metrics": metrics | dict(loaded.figures),
        "floor": floor,
        "picture": picture,
        "mesh": loaded.path and str(loaded.path),
    }


def pair_picture(predicted: Mesh, truth: Truth) -> UInt8[ndarray, "h w 4"]:
    """Return two rows of views, the truth above the prediction."""
    cameras = turntable_cameras(truth.mesh or predicted, PICTURE_VIEWS)
    below = shaded_views(predicted, cameras, PICTURE_PX)
    if truth.mesh is not None:
        above = shaded_views(truth.mesh, cameras, PICTURE_PX)
    else:
        assert truth.views is not None
        above = resized(truth.views[:PICTURE_VIEWS], PICTURE_PX)
    return np.concatenate([side_by_side(list(row)) for row in (above, below)], axis=0)


def _quality(pair: Mapping[str, Any]) -> tuple[bool, float, str]:
    """Sort key: failures first, then by F-score."""
    metrics = pair["metrics"]
    known = (key for key in ("f_score_0.02", "clip_score", "attributes_right") if key in metrics)
    return pair["failed"] is None, metrics.get(next(known, ""), 0.0), pair["name"]


def _kept_path(out: Path, case: Case) -> Path:
    return out / "pairs" / f"{hashlib.sha256(case.name.encode()).hexdigest()[:16]}.json"


def _key(common: str, case: Case) -> str:
    return hashlib.sha256(f"{common}\n{case.identity}".encode()).hexdigest()


def _read_kept(path: Path, key: str) -> dict[str, Any] | None:
    """Return the pair of an earlier run of the same command; None for anything else."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["pair"] if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return None


def code_digest() -> str:
    """Return a hash of this package's sources: other code may give other figures."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()

"""Seconds and memory of every stage from 2.5D images to a textured mesh, on several grids.

    python benchmarks/reconstruction_stages.py shards/128 --count 4 --grids 64 96 128 192 256

The classical method on true images, one thread, a process for each sample and grid. Prints the
median over the samples of CPU seconds, and the greatest memory that the process held during a stage
beyond what it held before the first: one row each for grid and stage.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from process_memory import memory_mb, reset_peak

from data_pipeline.contract import layout_cameras
from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.manifest import ShardSet
from modules.geometry.atlas import unwrap
from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.decimation import decimate
from modules.geometry.isosurface import (
    drop_small_components,
    extract_isosurface,
    least_thickness,
    round_apart,
)
from modules.geometry.lift import lift
from modules.geometry.mesh import smooth_normals
from modules.geometry.texture import BakeSettings, bake
from modules.pipelines.reconstruction import shows_edges
from modules.reporting.environment import describe_environment

Result = TypeVar("Result")


class Stages:
    """CPU seconds and peak memory by stage."""

    def __init__(self) -> None:
        self.before = memory_mb("VmRSS")
        self.rows: dict[str, tuple[float, float]] = {}

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work returns, and note what it took, with the processes it started."""
        reset_peak()
        start = sum(os.times()[:4])
        result = work()
        self.rows[name] = sum(os.times()[:4]) - start, memory_mb("VmHWM") - self.before
        return result


def rebuild(
    sample: dict[str, Any], cameras: list[Any], grid: int, num_faces: int, texture_px: int
) -> dict[str, tuple[float, float]]:
    """Return what each stage took: the same calls as `Reconstructor` makes.

    Args:
        sample: decoded.
        cameras: of its views.
        grid: cells along a side.
        num_faces: face budget.
        texture_px: side of the texture.
    """
    stages = Stages()
    images, hit = sample["images"].numpy().astype(np.float64), sample["hit"].numpy()
    observation = stages.run("lift", lambda: lift(images, cameras, hit))
    settings = ClassicalSettings(thickness=least_thickness(grid))
    field = stages.run("field", lambda: ClassicalField(observation, settings))
    vertices, faces = stages.run(
        "isosurface",
        lambda: extract_isosurface(
            lambda points: field.sample(points).distance,
            grid,
            field.observation.position,
            sharp=shows_edges(field, grid),
        ),
    )

    def simplify() -> tuple[Any, Any]:
        kept, kept_faces = drop_small_components(vertices, faces, 0.01)
        kept = field.thinned(kept, smooth_normals(kept, kept_faces))
        kept, kept_faces = decimate(kept, kept_faces, num_faces)
        return round_apart(kept, kept_faces), kept_faces

    vertices, faces = stages.run("decimate", simplify)
    atlas = stages.run("unwrap", lambda: unwrap(vertices, faces, texture_px))
    normals = smooth_normals(vertices, faces)[atlas.source]
    stages.run(
        "bake",
        lambda: bake(
            vertices[atlas.source],
            atlas,
            normals,
            field.observation,
            field.noise,
            field.colour,
            BakeSettings(resolution_px=texture_px),
        ),
    )
    total = sum(seconds for seconds, _ in stages.rows.values())
    return stages.rows | {"all": (total, max(peak for _, peak in stages.rows.values()))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--count", type=int, default=4, help="of samples, evenly over the set")
    parser.add_argument("--grids", type=int, nargs="+", default=[64, 96, 128, 192, 256])
    parser.add_argument("--faces", type=int, default=10_000)
    parser.add_argument("--texture-px", type=int, default=1024)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shard_set = ShardSet(arguments.shards, "samples")
    chosen = np.linspace(0, len(shard_set) - 1, min(arguments.count, len(shard_set))).astype(int)
    print(", ".join(f"{name} {value}" for name, value in describe_environment().items()))
    print(", ".join(shard_set.uids[i] for i in chosen), f"; began at {time.ctime()}\n")
    print("| grid | stage | CPU s, median | largest | peak MB, median | largest |")
    print("|---|---|---|---|---|---|")
    for grid in arguments.grids:
        found: list[dict[str, tuple[float, float]]] = []
        for i in chosen.tolist():
            members = shard_set.read(i)
            work = (
                decode_sample(members),
                layout_cameras(json.loads(members["meta.json"])),
                grid,
                arguments.faces,
                arguments.texture_px,
            )
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found.append(pool.apply(rebuild, work))
        for stage in found[0]:
            seconds, peak = np.array([rows[stage] for rows in found]).T
            print(
                f"| {grid} | {stage} | {np.median(seconds):.2f} | {seconds.max():.2f} "
                f"| {np.median(peak):.0f} | {peak.max():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

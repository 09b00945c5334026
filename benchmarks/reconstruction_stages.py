"""Seconds and memory of every stage from 2.5D images to a textured mesh, on several grids.

    python benchmarks/reconstruction_stages.py shards/128 --count 4 --grids 64 96 128 192 256
    python benchmarks/reconstruction_stages.py shards/128 --grids 128 --device cuda --threads 16

The classical method on true images. Of every sample and grid a process of its own takes the stages
one by one (on CUDA all in this process, after one reconstruction that is not counted), then the
same process times `Reconstructor` as a whole, twice: rows `whole`, of which the second counts.
Prints the median and the largest over the samples of wall seconds and of CPU seconds, and the
greatest memory that the process held during a stage beyond what it held before the first: one row
each for grid and stage. Stages are one after the other; as a whole, the processes that unwrap (up
to four, each on a core of its own) start while the surface is sought.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

if "--threads" not in sys.argv:
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
from modules.pipelines.reconstruction import Reconstructor, shows_edges

Result = TypeVar("Result")
Row = tuple[float, float, float]
"""Wall seconds, CPU seconds, megabytes."""


class Stages:
    """Seconds and peak memory by stage."""

    def __init__(self) -> None:
        self.before = memory_mb("VmRSS")
        self.rows: dict[str, Row] = {}

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work returns, and note what it took, with the processes it started."""
        reset_peak()
        start, wall = sum(os.times()[:4]), time.perf_counter()
        result = work()
        wall = time.perf_counter() - wall
        self.rows[name] = wall, sum(os.times()[:4]) - start, memory_mb("VmHWM") - self.before
        return result


def rebuild(
    sample: dict[str, Any], cameras: list[Any], arguments: argparse.Namespace, grid: int
) -> dict[str, Row]:
    """Return what each stage took, by the same calls as `Reconstructor` makes, and all of it.

    Args:
        sample: decoded.
        cameras: of its views.
        arguments: of the command line.
        grid: cells along a side.
    """
    torch.set_num_threads(arguments.threads)
    stages, num_faces, texture_px = Stages(), arguments.faces, arguments.texture_px
    images, hit = sample["images"].numpy().astype(np.float64), sample["hit"].numpy()
    observation = stages.run("lift", lambda: lift(images, cameras, hit))
    settings = ClassicalSettings(thickness=least_thickness(grid))
    field = stages.run("field", lambda: ClassicalField(observation, settings, arguments.device))
    vertices, faces = stages.run(
        "isosurface",
        lambda: extract_isosurface(
            lambda points: field.sample(points).distance,
            grid,
            field.observation.position,
            sharp=shows_edges(field, grid),
            device=arguments.device,
        ),
    )

    def thin() -> tuple[Any, Any]:
        kept, kept_faces = drop_small_components(vertices, faces, 0.01)
        return field.thinned(kept), kept_faces

    def simplify() -> tuple[Any, Any]:
        kept, kept_faces = decimate(thinned, dense, num_faces)
        return round_apart(kept, kept_faces), kept_faces

    thinned, dense = stages.run("thin", thin)
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
            arguments.device,
        ),
    )
    reconstruct = Reconstructor.classical(num_faces=num_faces, device=arguments.device)
    for _ in range(2):
        stages.run(
            "whole",
            lambda: reconstruct(
                sample["images"], cameras, sample["hit"], grid=grid, texture_px=texture_px
            ),
        )
    return stages.rows


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
    parser.add_argument(
        "--device", default="cpu", help="where field, surface and baking run: cpu or cuda"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shard_set = ShardSet(arguments.shards, "samples")
    chosen = np.linspace(0, len(shard_set) - 1, min(arguments.count, len(shard_set))).astype(int)
    accelerator = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "none"
    print(
        f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPUs, {arguments.threads} "
        f"threads, field, surface and baking on {arguments.device}, accelerator: {accelerator}"
    )
    print(", ".join(shard_set.uids[i] for i in chosen), f"; began at {time.ctime()}\n")
    print(
        "| grid | stage | wall s, median | largest | CPU s, median | largest | peak MB | largest |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    warm = accelerator == "none"
    for grid in arguments.grids:
        found: list[dict[str, Row]] = []
        for i in chosen.tolist():
            members = shard_set.read(i)
            work = (
                decode_sample(members),
                layout_cameras(json.loads(members["meta.json"])),
                arguments,
                grid,
            )
            if accelerator == "none":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found.append(pool.apply(rebuild, work))
                continue
            if not warm:  # kernels are compiled and loaded once
                rebuild(*work)
                warm = True
            found.append(rebuild(*work))
        for stage in found[0]:
            wall, seconds, peak = np.array([rows[stage] for rows in found]).T
            print(
                f"| {grid} | {stage} | {np.median(wall):.2f} | {wall.max():.2f} "
                f"| {np.median(seconds):.2f} | {seconds.max():.2f} "
                f"| {np.median(peak):.0f} | {peak.max():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

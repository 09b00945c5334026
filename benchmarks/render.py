"""Seconds per asset and stage of the renderer: `python benchmarks/render.py FOLDER [COUNT]`.

Renders COUNT (24) of the GLB files of FOLDER, evenly chosen, in one worker with one thread each at
128 and 512 px, and prints a table: median and 90th percentile of every stage, assets per minute,
and the workers' peak memory.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from data_pipeline.contract import RenderSpec, make_uid
from data_pipeline.render.command import render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

STAGES = ("import", "render", "geometry", "write", "total")


def main() -> None:
    """Render and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=24)
    arguments = parser.parse_args()
    os.sched_setaffinity(
        0, {min(os.sched_getaffinity(0))}
    )  # one core: figures that can be compared
    paths = sorted(arguments.folder.glob("*.glb"))
    chosen = paths[:: max(1, len(paths) // arguments.count)][: arguments.count]
    assets = [Asset(uid=make_uid(path.stem), path=path, captions=("",)) for path in chosen]
    for resolution_px, samples in ((128, 4), (512, 16)):
        spec = RenderSpec(resolution_px=resolution_px, samples=samples)
        with tempfile.TemporaryDirectory() as folder:
            summary = render_assets(assets, Path(folder) / "out", spec, workers=1)
            records = Staging(Path(folder) / "out").records()
        done = [record for record in records if record["status"] == "done"]
        print(f"\n{resolution_px} px, {samples} samples, {len(spec.cameras)} views: {summary}")
        rate = 60 * len(done) / summary.seconds
        print(f"{rate:.1f} assets a minute on one core, with Blender's start")
        print(f"peak memory {max(record['rss_mb'] for record in done):.0f} MB")
        print(f"{'stage':10} {'median s':>9} {'p90 s':>9}")
        for stage in STAGES:
            seconds = [record["seconds"][stage] for record in done]
            print(f"{stage:10} {np.median(seconds):9.2f} {np.quantile(seconds, 0.9):9.2f}")


if __name__ == "__main__":
    main()

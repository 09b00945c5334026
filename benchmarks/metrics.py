"""Seconds to measure a pair of meshes, and how far other libraries' distances differ.

    python benchmarks/metrics.py REBUILT ASSETS

Two folders of meshes of the same names, such as the `rebuilt` folder of `eval.py task=rebuild` and
the assets it was rebuilt from. 100,000 samples on each mesh, as in the report. Open3D and trimesh
measure the very same samples; either is left out, and the script says so, where it (for trimesh:
rtree) is missing. trimesh takes long: it measures every fourth pair.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modules.metrics.geometry import NUM_SAMPLES, MeshSurface, compare_surfaces
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.volume import volume_iou
from modules.reporting.evaluation import Loaded
from modules.reporting.folder_cases import folder_cases
from modules.reporting.mesh_files import named_files

TRIMESH_EVERY = 4

Nearest = Callable[[MeshSurface, np.ndarray], np.ndarray]


def open3d_nearest() -> Nearest:
    """Return distances by Open3D's ray casting scene (Embree, float32)."""
    open3d = importlib.import_module("open3d")

    def nearest(surface: MeshSurface, points: np.ndarray) -> np.ndarray:
        scene = open3d.t.geometry.RaycastingScene()
        scene.add_triangles(surface.vertices.astype(np.float32), surface.faces.astype(np.uint32))
        return scene.compute_distance(points.astype(np.float32)).numpy()

    return nearest


def trimesh_nearest() -> Nearest:
    """Return distances by trimesh's closest point (numpy, an R-tree of boxes)."""
    trimesh = importlib.import_module("trimesh")
    importlib.import_module("rtree")

    def nearest(surface: MeshSurface, points: np.ndarray) -> np.ndarray:
        mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
        return trimesh.proximity.closest_point(mesh, points)[1]

    return nearest


def timed(call: Callable[[], Any], times: list[tuple[float, float]]) -> Any:
    """Return what `call` returns; its wall and CPU seconds are added to `times`."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    times.append((wall, cpu))
    return result


def measure(
    pair: Loaded,
    peers: dict[str, Nearest],
    times: dict[str, list],
    gaps: dict[str, list],
) -> None:
    """Add one pair's seconds, and the largest difference of each peer's distances from ours."""
    predicted, reference = pair.predicted, pair.truth.mesh
    assert reference is not None
    surfaces = [MeshSurface(mesh.vertices, mesh.faces) for mesh in (predicted, reference)]
    timed(lambda: compare_surfaces(surfaces[0], surfaces[1]), times["all figures of distance"])
    quality = timed(
        lambda: [mesh_quality(m.vertices, m.faces) for m in (predicted, reference)],
        times["quality of both meshes"],
    )
    if all(found["watertight"] for found in quality):
        timed(lambda: volume_iou(predicted, reference), times["volume overlap, where closed"])
    samples = [surface.sample(NUM_SAMPLES, seed) for seed, surface in enumerate(surfaces)]
    timed(lambda: surfaces[1].visible_from_outside(samples[1]), times["of it: outer visibility"])
    ours = timed(
        lambda: [surfaces[1 - i].nearest(samples[i].points)[0] for i in (0, 1)],
        times["of it: distances both ways (igl)"],
    )
    for name, nearest in peers.items():
        theirs = timed(
            lambda near=nearest: [near(surfaces[1 - i], samples[i].points) for i in (0, 1)],
            times[name],
        )
        gaps[name].append(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("meshes", type=Path)
    parser.add_argument("reference", type=Path)
    arguments = parser.parse_args()
    peers: dict[str, tuple[Nearest, int]] = {}
    for name, load, every in (
        ("distances both ways, Open3D", open3d_nearest, 1),
        ("distances both ways, trimesh", trimesh_nearest, TRIMESH_EVERY),
    ):
        try:
            peers[name] = load(), every
        except (ImportError, OSError) as error:
            print(f"left out: {name}: {error}")
    rows = (
        "all figures of distance",
        "of it: distances both ways (igl)",
        "of it: outer visibility",
        "volume overlap, where closed",
        "quality of both meshes",
        *peers,
    )
    times: dict[str, list] = {row: [] for row in rows}
    gaps: dict[str, list] = {name: [] for name in peers}
    both = named_files(arguments.meshes).keys() & named_files(arguments.reference).keys()
    cases = [c for c in folder_cases(arguments.meshes, arguments.reference) if c.name in both]
    for i, case in enumerate(cases):
        due = {name: nearest for name, (nearest, every) in peers.items() if i % every == 0}
        measure(case.load(), due, times, gaps)
    print(f"{len(cases)} pairs, {NUM_SAMPLES:,} samples on each mesh; seconds a pair")
    print("| what | pairs | wall, median | wall, p90 | CPU, median | largest difference |")
    print("|---|---|---|---|---|---|")
    for row, found in times.items():
        if found:
            wall, cpu = np.array(found).T
            gap = f"{max(gaps[row]):.1e}" if row in gaps else ""
            print(
                f"| {row} | {len(found)} | {np.median(wall):.2f} | {np.percentile(wall, 90):.2f} "
                f"| {np.median(cpu):.2f} | {gap} |"
            )


if __name__ == "__main__":
    main()

"""Seconds and memory to find near-duplicates among many assets, on synthetic features.

    python benchmarks/duplicates.py 50000 200000 800000

Every shape has ten assets: hashes that differ in up to four bits, boxes and thumbnails that differ
by noise. Half of the shapes are drawn near 200 archetypes, 60 bits away: the crowded buckets that
real sets have. Each count runs in a process of its own, on one thread.
"""

import os
import resource
import subprocess
import sys
import time

import numpy as np

from data_pipeline.duplicates.near import FeatureTable, Limits, components, similar_pairs

VIEWS, PER_SHAPE, ARCHETYPES = 6, 10, 200


def main() -> None:
    """Run every count, or measure the one that a process was started for."""
    if sys.argv[1] == "--one":
        measure(int(sys.argv[2]))
        return
    print(f"{'assets':>9} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'pairs':>10}  groups right")
    for count in sys.argv[1:]:
        subprocess.run([sys.executable, __file__, "--one", count], check=True)


def measure(count: int) -> None:
    """Print one row of the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table, shape_of = synthetic(count)
    wall, cpu = time.perf_counter(), time.process_time()
    pairs, _ = similar_pairs(table, Limits())
    group = components(pairs, count)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # Right: one group holds all ten of a shape, and nothing else.
    both = np.unique(np.stack([shape_of, group]), axis=1)
    shapes, of_shape = np.unique(both[0], return_counts=True)
    groups, of_group = np.unique(both[1], return_counts=True)
    alone = np.isin(both[1], groups[of_group == 1]) & np.isin(both[0], shapes[of_shape == 1])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count:9} {wall:8.1f} {cpu:8.1f} {peak_mb:8.0f} {len(pairs):10}  "
        f"{alone.sum()} of {len(shapes)}",
        flush=True,
    )


def synthetic(count: int) -> tuple[FeatureTable, np.ndarray]:
    """Return features of `count` assets, and the number of each one's shape."""
    rng = np.random.default_rng(0)
    shapes = count // PER_SHAPE
    bits = rng.integers(0, 2**64, (shapes, VIEWS), dtype=np.uint64)
    box = rng.uniform(0.2, 1.0, (shapes, 3)).astype(np.float32)
    near = np.arange(shapes) < shapes // 2
    archetype = rng.integers(0, ARCHETYPES, shapes)
    crowd = rng.integers(0, 2**64, (ARCHETYPES, VIEWS), dtype=np.uint64)[archetype]
    bits = np.where(near[:, None], flip(crowd, 60, rng), bits)
    home = rng.uniform(0.2, 1.0, (ARCHETYPES, 3)).astype(np.float32)[archetype]
    box = np.where(near[:, None], home + rng.normal(0, 0.05, box.shape).astype(np.float32), box)
    shape_of = np.repeat(np.arange(shapes), PER_SHAPE)
    depth = rng.integers(0, 256, (shapes, VIEWS, 8, 8), dtype=np.uint8)
    colour = rng.integers(0, 256, (shapes, VIEWS, 8, 8, 3), dtype=np.uint8)
    jitter = rng.normal(0, 0.002, (len(shape_of), 3)).astype(np.float32)
    table = FeatureTable(
        box=box[shape_of] + jitter,
        bits=flip(bits[shape_of], 4, rng),
        depth=depth[shape_of],
        colour=colour[shape_of],
    )
    return table, shape_of


def flip(bits: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return hashes in which up to `most` random bits are turned over."""
    bits = bits.copy()
    rows = np.arange(len(bits))
    for _ in range(most):
        place = rng.integers(0, 64 * VIEWS, len(bits))
        bits[rows, place // 64] ^= np.uint64(1) << (place % 64).astype(np.uint64)
    return bits


if __name__ == "__main__":
    main()

"""Does the Reconstructor end well on images that show nothing, lie, or are no images at all?

    python benchmarks/hostile_images.py [--count 200] [--meshes FOLDER] [--pipeline FOLDER]

Seeded inputs of the kinds below, one child process each with a limit of time and of memory, which
rebuilds, writes a GLB and reads it again. A mesh and a `UserError` are good ends; another error, a
process that died, ran into a limit or is late are not. The GLBs of FOLDER can then be checked by
`node tests/gltf_validator/validate.mjs FOLDER/*.glb`, and in Blender by
`python -m data_pipeline render source=folder source.root=FOLDER out=STAGING resolution_px=16`.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import trimesh
from rebuild_peers import bare_mesh
from scipy import ndimage

from data_pipeline.contract import Camera, UserError, view_layout
from modules.geometry.mesh import load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.mesh_quality import mesh_quality
from modules.pipelines.reconstruction import Reconstructor


@dataclass(frozen=True)
class Case:
    """One input of the Reconstructor.

    Args:
        images: rgb, normal and coord (m v 3 h w).
        hit: exact foreground (v h w), or None: it is to be found in the images.
        cameras: one per view.
    """

    images: np.ndarray
    hit: np.ndarray | None
    cameras: tuple[Camera, ...]


def honest(rng: np.random.Generator, sizes_px: tuple[int, ...]) -> Case:
    """Return what the views show of one closed body, with or without its mask."""
    extents = rng.uniform(0.2, 0.9, 3)
    bodies = (
        trimesh.creation.box(extents=extents),
        trimesh.creation.icosphere(subdivisions=3, radius=extents[0] / 2),
        trimesh.creation.torus(major_radius=0.3, minor_radius=rng.uniform(0.03, 0.12)),
        trimesh.creation.capsule(height=0.4, radius=extents[1] / 4),
        trimesh.creation.cone(radius=0.3, height=0.6),
    )
    body = bodies[rng.integers(len(bodies))]
    body.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
    body.apply_translation(-body.bounds.mean(axis=0))
    body.apply_scale(min(1.0, 1.0 / float(body.extents.max())))
    cameras = view_layout("ortho6" if rng.random() < 0.8 else "pinhole4")
    views = render_mesh(
        bare_mesh(body.vertices, np.asarray(body.faces, np.int64)),
        cameras,
        int(rng.choice(sizes_px)),
    )
    rgb = np.where(views.hit[..., None], np.clip(views.coord + 0.5, 0.0, 1.0), 1.0)
    stack = np.stack([rgb * 2.0 - 1.0, views.normal, views.coord * 2.0])
    images = np.moveaxis(stack, -1, 2).astype(np.float32)
    return Case(images, views.hit if rng.random() < 0.5 else None, cameras)


def _foreground(case: Case) -> np.ndarray:
    return np.linalg.norm(case.images[1], axis=1) > 0.5


def _blank(case: Case, views: np.ndarray) -> Case:
    """Return the case with nothing in some views."""
    images = case.images.copy()
    images[:, views] = np.array([1.0, 0.0, 0.0])[:, None, None, None, None]
    hit = case.hit if case.hit is None else case.hit & ~views[:, None, None]
    return replace(case, images=images, hit=hit)


def empty(case: Case, rng: np.random.Generator) -> Case:
    return _blank(case, np.ones(len(case.cameras), bool))


def one_view_missing(case: Case, rng: np.random.Generator) -> Case:
    return _blank(case, np.arange(len(case.cameras)) == rng.integers(len(case.cameras)))


def one_view_only(case: Case, rng: np.random.Generator) -> Case:
    return _blank(case, np.arange(len(case.cameras)) != rng.integers(len(case.cameras)))


def mask_all_true(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, hit=np.ones(case.images.shape[1:2] + case.images.shape[3:], bool))


def mask_inverted(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, hit=~_foreground(case))


def mask_of_few_pixels(case: Case, rng: np.random.Generator) -> Case:
    seen = np.argwhere(_foreground(case))
    hit = np.zeros_like(_foreground(case))
    hit[tuple(seen[rng.choice(len(seen), min(len(seen), rng.integers(1, 6)))].T)] = True
    return replace(case, hit=hit)


def mask_checkered(case: Case, rng: np.random.Generator) -> Case:
    row, column = np.indices(case.images.shape[3:])
    return replace(case, hit=_foreground(case) & ((row + column) % 2 == 0))


def some_nan(case: Case, rng: np.random.Generator) -> Case:
    images = case.images.copy()
    images[rng.random(images.shape) < rng.choice([1e-4, 0.02])] = rng.choice([np.nan, np.inf])
    images[rng.integers(3), 0, 0, 0, 0] = np.nan
    return replace(case, images=images)


def all_nan(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, images=np.full_like(case.images, rng.choice([np.nan, np.inf, -np.inf])))


def constant(case: Case, rng: np.random.Generator) -> Case:
    value = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (3, 1, 3, 1, 1))
    return replace(case, images=np.broadcast_to(value, case.images.shape).astype(np.float32))


def huge_values(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, images=case.images * np.float32(rng.choice([10.0, 1e6, 1e30])))


def noise(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, images=rng.uniform(-1, 1, case.images.shape).astype(np.float32))


def blurred_noise(case: Case, rng: np.random.Generator) -> Case:
    """What an untrained model makes."""
    sigma = (0, 0, 0, rng.uniform(1, 6), rng.uniform(1, 6))
    made = ndimage.gaussian_filter(rng.standard_normal(case.images.shape), sigma)
    return replace(case, images=(made / np.abs(made).max()).astype(np.float32))


def noisy(case: Case, rng: np.random.Generator) -> Case:
    level = rng.choice([0.05, 0.2, 0.5])
    added = level * rng.standard_normal(case.images.shape)
    return replace(case, images=(case.images + added).astype(np.float32))


def other_bodies(case: Case, rng: np.random.Generator) -> Case:
    """Every view shows a body of its own."""
    images, cameras = case.images.copy(), case.cameras
    for view in range(len(cameras)):
        other = honest(rng, images.shape[-1:])
        while len(other.cameras) != len(cameras):
            other = honest(rng, images.shape[-1:])
        images[:, view] = other.images[:, view]
    return replace(case, images=images, hit=None)


def views_swapped(case: Case, rng: np.random.Generator) -> Case:
    order = rng.permutation(len(case.cameras))
    hit = None if case.hit is None else case.hit[order]
    return replace(case, images=case.images[:, order], hit=hit)


def mirrored(case: Case, rng: np.random.Generator) -> Case:
    hit = None if case.hit is None else case.hit[..., ::-1].copy()
    return replace(case, images=case.images[..., ::-1].copy(), hit=hit)


def random_normals(case: Case, rng: np.random.Generator) -> Case:
    images = case.images.copy()
    random = rng.standard_normal(images[1].shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    images[1] = random * _foreground(case)[:, None]
    return replace(case, images=images)


def coords_out_of_range(case: Case, rng: np.random.Generator) -> Case:
    images = case.images.copy()
    images[2] = images[2] * rng.choice([-1.0, 3.0]) + rng.uniform(-2, 2, (1, 3, 1, 1))
    return replace(case, images=images)


def dust(case: Case, rng: np.random.Generator) -> Case:
    """Single pixels at depths of their own."""
    chosen = rng.random(_foreground(case).shape) < rng.choice([0.01, 0.1, 0.3])
    images = _blank(case, np.ones(len(case.cameras), bool)).images
    made = rng.uniform(-1, 1, images.shape).astype(np.float32)
    made[1] /= np.linalg.norm(made[1], axis=1, keepdims=True)
    return replace(case, images=np.where(chosen[None, :, None], made, images), hit=chosen)


def two_levels(case: Case, rng: np.random.Generator) -> Case:
    return replace(case, images=np.where(case.images > 0, 1, -1).astype(np.float32))


def torn_halves(case: Case, rng: np.random.Generator) -> Case:
    images, half = case.images.copy(), case.images.shape[-1] // 2
    images[..., :half] = np.array([1.0, 0.0, 0.0])[:, None, None, None, None]
    hit = None if case.hit is None else case.hit.copy()
    if hit is not None:
        hit[..., :half] = False
    return replace(case, images=images, hit=hit)


def wrong_shape(case: Case, rng: np.random.Generator) -> Case:
    images, cameras, hit = case.images, case.cameras, case.hit
    return (
        replace(case, cameras=cameras[:-1]),
        replace(case, images=images[:2]),
        replace(case, images=images[..., :-3]),
        replace(case, images=images[:, :0], cameras=(), hit=None),
        replace(case, images=images[..., :2, :2], hit=None),
        replace(case, hit=np.ones((1, 3, 3), bool) if hit is None else hit[:, :-1]),
    )[rng.integers(6)]


KINDS: dict[str, Callable[[Case, np.random.Generator], Case]] = {
    make.__name__: make
    for make in (
        empty, one_view_missing, one_view_only, mask_all_true, mask_inverted, mask_of_few_pixels,
        mask_checkered, some_nan, all_nan, constant, huge_values, noise, blurred_noise, noisy,
        other_bodies, views_swapped, mirrored, random_normals, coords_out_of_range, dust,
        two_levels, torn_halves, wrong_shape,
    )
}  # fmt: skip
KINDS["honest"] = lambda case, rng: case

OF_ONE_BODY = ("honest", "one_view_missing", "mask_checkered")
"""Kinds whose surface is known to be one piece."""


def make_cases(
    count: int, sizes_px: tuple[int, ...] = (16, 32, 64)
) -> Iterator[tuple[str, int, Case]]:
    """Yield `count` inputs, the kinds in turn, each with its kind and seed."""
    for seed in range(count):
        kind = list(KINDS)[seed % len(KINDS)]
        rng = np.random.default_rng(seed)
        yield kind, seed, KINDS[kind](honest(rng, sizes_px), rng)


def rebuild(case: Case, path: Path, reconstruct: Reconstructor, **sizes: int) -> dict[str, Any]:
    """Return what became of a case: outcome, and the message or the quality of the file's mesh."""
    hit = None if case.hit is None else torch.from_numpy(case.hit)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            mesh = reconstruct(torch.from_numpy(case.images), case.cameras, hit, **sizes)
        save_mesh(mesh, path)
        loaded = load_mesh(path)
    except UserError as error:
        return {"outcome": "error", "said": str(error), "seconds": time.perf_counter() - start}
    except MemoryError as error:
        return {"outcome": "memory", "said": str(error)}
    except Exception as error:  # whatever it is, it is the finding
        return {"outcome": "crash", "said": f"{type(error).__name__}: {error}"}
    return {
        "outcome": "mesh",
        "seconds": time.perf_counter() - start,
        "warnings": sorted({str(each.message) for each in told}),
        **mesh_quality(loaded.vertices, loaded.faces),
    }


def in_child(seconds: float, memory_mb: float, *arguments: Any, **sizes: int) -> dict[str, Any]:
    """Return what `rebuild` returns, from a forked process that may take so much."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run(connection: Connection) -> None:
        os.setsid()  # its own children end with it
        limit = int((_status_mb("VmSize") + memory_mb) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
        before = _status_mb("VmRSS")
        found = rebuild(*arguments, **sizes)
        connection.send(found | {"peak_mb": _status_mb("VmHWM") - before})

    child = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
    child.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            found = ours.recv()
        else:
            found = {"outcome": "hang", "said": f"took over {seconds:g} s"}
            assert child.pid is not None
            os.killpg(child.pid, signal.SIGKILL)
    except EOFError:
        child.join()
        found = {"outcome": "crash", "said": f"the process died ({child.exitcode})"}
    child.join()
    return found


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024.0
    raise KeyError(name)


def print_table(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Print a line for each kind and for all, then whatever was said."""
    outcomes = ("mesh", "error", "crash", "hang", "memory")
    print("| kind | " + " | ".join(outcomes) + " | s, median, most | peak MB | sound | one piece |")
    print("|---" * (len(outcomes) + 5) + "|")
    for kind in (*KINDS, "all"):
        found = [row for name, row in rows if kind in (name, "all")]
        meshes = [row for row in found if row["outcome"] == "mesh"]
        cells = [str(sum(row["outcome"] == each for row in found)) for each in outcomes]
        seconds = [row["seconds"] for row in found if "seconds" in row] or [np.nan]
        cells += [f"{np.median(seconds):.1f}, {np.max(seconds):.1f}"]
        cells += [f"{max([row.get('peak_mb', 0.0) for row in found], default=0.0):.0f}"]
        sound = [row["watertight"] * row["manifold"] for row in meshes]
        cells += [f"{np.mean(sound):.2f}" if sound else ""]
        pieces = [row["components"] == 1.0 for row in meshes]
        cells += [f"{np.mean(pieces):.2f}" if kind in OF_ONE_BODY and pieces else ""]
        print(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    said = {row["said"] for _, row in rows if "said" in row}
    said |= {text for _, row in rows for text in row.get("warnings", ())}
    print("\nSaid:\n" + "\n".join(f"- {text}" for text in sorted(said)))


def main() -> None:
    """Make, rebuild, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--meshes", type=Path, help="folder that takes every mesh as GLB")
    parser.add_argument("--pipeline", type=Path, help="pipeline folder; else the classical method")
    parser.add_argument("--grid", type=int, default=96)
    parser.add_argument("--texture-px", type=int, default=512)
    parser.add_argument("--refine-steps", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--memory-mb", type=float, default=2048.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    reconstruct = Reconstructor.classical()
    if arguments.pipeline is not None:
        reconstruct = Reconstructor.from_pretrained(arguments.pipeline)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.meshes or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for kind, seed, case in make_cases(arguments.count):
            path = folder / f"{kind}_{seed}.glb"
            limits = arguments.seconds, arguments.memory_mb
            sizes = {key: getattr(arguments, key) for key in ("grid", "texture_px", "refine_steps")}
            rows.append((kind, in_child(*limits, case, path, reconstruct, **sizes)))
            print(kind, seed, rows[-1][1]["outcome"], rows[-1][1].get("said", ""), flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()

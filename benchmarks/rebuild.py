"""Rebuild rendered samples by our methods and by two classical peers: one table, one scoring code.

    python benchmarks/rebuild.py shards/64 shards/128 --reference ORIGINALS \
        --pipeline runs/demo/pipeline --out rebuild.jsonl

Every method reads the true images of every sample; its surface is judged against the original
asset (the file of REFERENCE whose name gives the uid) by `modules.metrics.scoring.score`. Each
rebuild runs in a process of its own on one thread: seconds are of CPU, memory is what the process
took beyond what it held before. Ours unwrap and bake a texture too; the peers make a bare surface.
OUT takes one line a sample and method, with the model where one is read (`refined-96
mine/pipeline@1a2b3c`, `64 decoded by madebyollin/taef2`); lines that are there already are not
computed again, and several processes (`--part 0/2`, `--part 1/2`) may share it: the last one prints
all.

With --inputs other than `true` every method reads spoilt images instead, the same for all:
`mild`, `medium` and `strong` (see SPOILT) with the silhouettes that are left; `decoded` by
--autoencoder; or `sampled` by the diffusion model of --diffusion from the true latents, noised up
to --strength. Of the last two every method takes the foreground by Relief's hit rule, as nothing
else is known.

Methods: `classical-G`, `fitted-G` (the same and FIT_STEPS of the fit) and `refined-G` (with
--pipeline; grid of G cells), `poisson-D` and `poisson-D-trimmed` (depth D; needs Open3D, see
rebuild_peers.py), `tsdf-G`.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import igl
import numpy as np
import torch
from numpy.typing import NDArray
from process_memory import memory_mb, reset_peak
from rebuild_peers import bare_mesh, load_open3d, poisson, tsdf

from data_pipeline.contract import (
    Camera,
    SourceFrame,
    UserError,
    layout_cameras,
    make_uid,
)
from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.manifest import ShardSet
from modules.geometry.corruption import Corruption, corrupt
from modules.geometry.lift import lift
from modules.geometry.mesh import Mesh, load_mesh
from modules.geometry.rasterize import RayScene
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.metrics.geometry import MeshSurface, SurfaceSamples, floor_figures
from modules.metrics.scoring import FAILURE_FIGURES, ScoringOptions, score, summarise
from modules.pipelines.diffusion_round_trip import DiffusionRoundTrip
from modules.pipelines.reconstruction import Reconstructor
from modules.reporting.environment import describe_environment
from modules.reporting.evaluation import Shard
from modules.reporting.mesh_files import SUFFIXES
from modules.reporting.rebuild_cases import file_or_folder_digest

METHODS = (
    "classical-96", "classical-192", "fitted-96", "refined-96", "poisson-6", "poisson-7",
    "poisson-8", "poisson-7-trimmed", "tsdf-128",
)  # fmt: skip
SPOILT = {
    name: Corruption(
        clean_share=0.0, coord_noise=(level, level), drop_share=drop, max_dropped=1, blur_px=blur
    )
    for name, level, drop, blur in (
        ("mild", 0.005, 0.0, 0.5), ("medium", 0.015, 0.0, 1.0), ("strong", 0.04, 1.0, 1.5),
    )
}  # fmt: skip
"""Noise of depth (world units; that of normals is 5 times as much), views lost, blur of outlines
(pixels)."""

INPUTS = ("true", *SPOILT, "decoded", "sampled")
NEEDS = {"decoded": "autoencoder", "sampled": "diffusion"}  # inputs, and the option for each
FLOOR = "floor"
TRIM = 0.02  # of the vertices
LARGEST_MISFIT = 0.002  # of rendered points from the original: beyond, it is another shape
FIT_STEPS = 10
LEAST_UNSEEN = 0.001  # share of the surface: below, an asset has no recall of what is unseen
COLUMNS = {
    "f_score_0.005": "F@.005",
    "f_score_0.01": "F@.01",
    "f_score_0.02": "F@.02",
    "chamfer_l1": "mean distance",
    "normal_consistency": "normals",
    "outer_recall_0.01": "outer recall@.01",
    "outer_f_score_0.01": "outer F@.01",
    "unseen_recall_0.01": "unseen recall@.01",
    "unseen_recall_0.02": "unseen recall@.02",
    "watertight": "watertight",
    "cpu_s": "CPU s",
    "peak_mb": "peak MB",
}
LESS_IS_BETTER = ("chamfer_l1", "cpu_s", "peak_mb")
WORST = FAILURE_FIGURES | {
    "outer_f_score_0.01": 0.0,
    "unseen_recall_0.01": 0.0,
    "unseen_recall_0.02": 0.0,
}


def main() -> None:
    """Rebuild, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--pipeline", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--inputs", choices=INPUTS, default="true")
    parser.add_argument("--autoencoder", help="folder, file or hub id, for --inputs decoded")
    parser.add_argument("--diffusion", type=Path, help="pipeline folder, for --inputs sampled")
    parser.add_argument("--strength", type=float, default=0.4, help="noise level, the flow's t")
    parser.add_argument("--meshes", type=Path, help="folder that takes every surface as PLY")
    parser.add_argument("--part", type=Shard.parse, default=Shard(), help="0/2: of two processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = [m for m in arguments.methods if arguments.pipeline or not m.startswith("refined")]
    if any(method.startswith("poisson") for method in methods):
        load_open3d()
    files = sorted(p for p in arguments.reference.rglob("*") if p.suffix.lower() in SUFFIXES)
    originals = {make_uid(path.stem): path for path in files}
    for inputs, option in NEEDS.items():
        if (arguments.inputs == inputs) != (getattr(arguments, option) is not None):
            raise SystemExit(f"--inputs {inputs} needs --{option}, and nothing else takes it")
    rows, part = _read(arguments.out), arguments.part
    rated = (FLOOR, *(method_name(m, arguments.pipeline) for m in methods))
    model = arguments.autoencoder or arguments.diffusion
    made_by = f" by {model_name(model)}" if model else ""

    def set_name(shards: Path) -> str:
        if arguments.inputs == "true":
            return shards.name
        strength = f" {arguments.strength:g}" if arguments.inputs == "sampled" else ""
        return f"{shards.name} {arguments.inputs}{strength}{made_by}"

    sets = {shards: ShardSet(shards, "samples") for shards in arguments.shards}
    if missing := {uid for found in sets.values() for uid in found.uids} - originals.keys():
        raise SystemExit(f"{arguments.reference} holds no original of {', '.join(sorted(missing))}")
    for shards, shard_set in sets.items():
        for i, uid in list(enumerate(shard_set.uids))[part.index :: part.count]:
            name = set_name(shards)
            wanted = [m for m in rated if (name, uid, m) not in rows]
            own = [method for method in wanted if method != FLOOR]
            seen = _in_child(_inputs, shard_set, i, arguments) if own else {}
            if "failed" in seen:
                raise SystemExit(
                    f"there are no images of {uid} to rebuild: what went wrong is above"
                )
            rebuilt = {m: _in_child(_rebuild, seen, m, arguments.pipeline) for m in own}
            meshes = arguments.meshes and arguments.meshes / name
            scored = _in_child(_score, shard_set, i, originals[uid], wanted, rebuilt, meshes)
            if isinstance(scored.get("failed"), str):
                raise SystemExit(f"scoring {uid} died (memory?): leave it out of the shards")
            for method, figures in scored.items():
                rows[name, uid, method] = figures
                names = {"set": name, "uid": uid, "method": method}
                with arguments.out.open("a") as file:
                    file.write(json.dumps(names | {"figures": figures}) + "\n")
            print(name, uid, flush=True)
    rows = _read(arguments.out)
    print("\n" + ", ".join(f"{k} {v}" for k, v in describe_environment().items()))
    for shards in arguments.shards:
        print(f"\n{set_name(shards)}\n")
        print_table({k[1:]: v for k, v in rows.items() if k[0] == set_name(shards)}, methods)


def model_name(model: Path | str) -> str:
    """Return the end of a path and of its contents' hash, `mine/pipeline@1a2b3c`, or a hub id."""
    digest = file_or_folder_digest(str(model))
    if digest == str(model):
        return digest
    return f"{'/'.join(Path(os.path.abspath(model)).parts[-2:])}@{digest[:6]}"


def method_name(method: str, pipeline: Path | None) -> str:
    """Return what a method's rows are named by: with its model, where it has one."""
    return f"{method} {model_name(pipeline)}" if pipeline and "refined" in method else method


def print_table(rows: dict[tuple[str, str], dict[str, Any]], methods: list[str]) -> None:
    """Print median and the worse of p10 and p90 of every figure; failures count as the worst.

    Args:
        rows: figures by uid and method.
        methods: which, in this order, each model of one by itself; the floor comes last.
    """
    print("| method | " + " | ".join(COLUMNS.values()) + " | failed |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    names = sorted({name for _, name in rows})
    for method in [n for m in (*methods, FLOOR) for n in names if n.split(" ")[0] == m]:
        own = [figures for (_, name), figures in rows.items() if name == method]
        summary = summarise([WORST if "failed" in figures else figures for figures in own])
        cells = []
        for key in COLUMNS:
            if key not in summary:
                cells.append("")
                continue
            values = summary[key]
            worse = values["p90" if key in LESS_IS_BETTER else "p10"]
            digits = 4 if key == "chamfer_l1" else 0 if key == "peak_mb" else 3
            if key == "watertight":
                cells.append(f"{values['mean']:.2f}")
            elif key == "cpu_s":
                cells.append(f"{values['median']:.1f}, {worse:.1f}")
            else:
                cells.append(f"{values['median']:.{digits}f}, {worse:.{digits}f}")
        failed = sum("failed" in figures for figures in own)
        print(f"| {method} | {' | '.join(cells)} | {failed} |")


def _rebuild(seen: dict[str, Any], method: str, pipeline: Path | None) -> dict[str, Any]:
    """Return a method's surface of what `_inputs` gave, and what it took; or why it failed."""
    rebuild = _rebuilder(method, seen["images"], seen["hit"], seen["cameras"], pipeline)
    reset_peak()
    before, start = memory_mb("VmRSS"), _cpu_seconds()
    try:
        mesh = rebuild()
    except (UserError, RuntimeError, ValueError, IndexError) as error:
        return {"failed": str(error) or type(error).__name__}
    took = {"cpu_s": _cpu_seconds() - start, "peak_mb": memory_mb("VmHWM") - before}
    return {"vertices": mesh.vertices, "faces": mesh.faces, "took": took}


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended: of unwrapping."""
    return sum(os.times()[:4])


def _score(
    shard_set: ShardSet,
    i: int,
    original: Path,
    wanted: list[str],
    rebuilt: dict[str, dict[str, Any]],
    meshes: Path | None,
) -> dict[str, dict[str, Any]]:
    """Return the figures of every rebuild of one sample, and of the floor if wanted.

    None where the original, as read here, is not what was rendered: skinned meshes are not posed.
    """
    members = shard_set.read(i)
    meta = json.loads(members["meta.json"])
    frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
    truth = load_mesh(original).transformed(frame)
    surface, options = _Reference(truth.vertices, truth.faces), ScoringOptions()
    rendered = decode_sample(members)["geometry"]["surface_position"].astype(np.float64)
    away = np.percentile(surface.nearest(rendered)[0], 95)
    if away > LARGEST_MISFIT:
        print(f"{meta['uid']} is left out: what was rendered is {away:.3f} from {original}")
        return {}
    unseen = surface.unseen(layout_cameras(meta), options)
    scored: dict[str, dict[str, Any]] = {}
    for method in wanted:
        found = rebuilt.get(method, {})
        if "failed" in found:
            scored[method] = found
            continue
        if method == FLOOR:
            mesh, figures = truth, floor_figures(surface, num_samples=options.num_samples)
        else:
            mesh = bare_mesh(found["vertices"], found["faces"])
            if meshes is not None:
                (meshes / method).mkdir(parents=True, exist_ok=True)
                path = meshes / method / f"{meta['uid']}.ply"
                igl.write_triangle_mesh(str(path), mesh.vertices, mesh.faces)
            try:
                figures = score(mesh, surface, None, options) | found["took"]
            except UserError as error:
                scored[method] = {"failed": str(error)}
                continue
        precision, recall = figures["precision_0.01"], figures["outer_recall_0.01"]
        figures["outer_f_score_0.01"] = 2.0 * precision * recall / max(precision + recall, 1e-9)
        figures["unseen_share"] = len(unseen) / options.num_samples
        if figures["unseen_share"] >= LEAST_UNSEEN:
            distance, _ = MeshSurface(mesh.vertices, mesh.faces).nearest(unseen)
            for threshold in (0.01, 0.02):
                figures[f"unseen_recall_{threshold}"] = float((distance <= threshold).mean())
        scored[method] = figures
    return scored


class _Reference(MeshSurface):
    """An original, whose outer visible surface is found once for all methods."""

    def __init__(self, vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> None:
        super().__init__(vertices, faces)
        self._outer: dict[bytes, NDArray[np.bool_]] = {}

    def visible_from_outside(self, samples: SurfaceSamples) -> NDArray[np.bool_]:
        """Return which samples can be seen from outside: as the parent does, but once."""
        key = samples.points[:2].tobytes()
        if key not in self._outer:
            self._outer[key] = super().visible_from_outside(samples)
        return self._outer[key]

    def unseen(self, cameras: list[Camera], options: ScoringOptions) -> NDArray[np.float64]:
        """Return the points of the scored samples that no view shows.

        A view shows a point when the ray from it to the camera meets nothing.
        """
        samples = self.sample(options.num_samples, options.seed + 1)
        scene, seen = RayScene(self.vertices, self.faces), np.zeros(options.num_samples, bool)
        for camera in cameras:
            todo = np.flatnonzero(~seen)
            if camera.projection == "orthographic":
                direction = np.broadcast_to(camera.matrix[:3, 2], (len(todo), 3))
            else:
                direction = camera.matrix[:3, 3] - samples.points[todo]
                direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
            facing = np.abs((samples.normals[todo] * direction).sum(axis=1)) > 0.1
            todo, direction = todo[facing], direction[facing]
            face = scene.first_face(samples.points[todo] + 1e-4 * direction, direction)
            seen[todo[face < 0]] = True
        return samples.points[~seen]


def _inputs(shard_set: ShardSet, i: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all methods read: `images`, `hit` where the foreground is known, `cameras`."""
    members = shard_set.read(i)
    sample = decode_sample(members)
    cameras: Sequence[Camera] = layout_cameras(json.loads(members["meta.json"]))
    images, hit = sample["images"].numpy(), sample["hit"].numpy()
    if arguments.inputs == "decoded":
        autoencoder = load_autoencoder(arguments.autoencoder)
        latents = encode_packed(autoencoder, sample["images"], 1)
        images, hit = decode_packed(autoencoder, latents, 1).numpy(), None
    elif arguments.inputs == "sampled":
        trip = DiffusionRoundTrip(arguments.diffusion, torch.device("cpu"))
        made, cameras = trip(sample, arguments.strength)
        images, hit = made.numpy(), None
    elif arguments.inputs != "true":
        rng = np.random.default_rng(i)
        images, hit, cameras = corrupt(images, hit, cameras, SPOILT[arguments.inputs], rng)
    return {"images": images, "hit": hit, "cameras": cameras}


def _rebuilder(
    method: str,
    images: NDArray[np.float32],
    hit: NDArray[np.bool_] | None,
    cameras: Sequence[Camera],
    pipeline: Path | None,
) -> Callable[[], Mesh]:
    """Return what rebuilds the sample, with everything loaded that is not part of the work."""
    name, size, *trimmed = method.split(" ")[0].split("-")
    if name in ("classical", "fitted", "refined"):
        if name != "refined":
            reconstruct = Reconstructor.classical()
        else:
            assert pipeline is not None
            reconstruct = Reconstructor.from_pretrained(pipeline)
        steps = FIT_STEPS * (name == "fitted")
        shown = torch.from_numpy(images).float(), None if hit is None else torch.from_numpy(hit)
        return lambda: reconstruct(shown[0], cameras, shown[1], grid=int(size), refine_steps=steps)
    values = images.astype(np.float64)

    def peer() -> Mesh:
        observation = lift(values, cameras, hit)
        if name == "tsdf":
            return tsdf(observation, int(size))
        return poisson(observation, int(size), TRIM if trimmed else 0.0)

    return peer


def _in_child(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what the work returns in a forked process: its own memory, and its own crashes.

    This process starts no threads, so that it can be forked.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run(connection: Connection) -> None:
        connection.send(work(*arguments))

    child = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
    child.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        result = {"failed": "the process died"}
    child.join()
    return result


def _read(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the figures that a file holds, by set, uid and method."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(each["set"], each["uid"], each["method"]): each["figures"] for each in lines}


if __name__ == "__main__":
    main()

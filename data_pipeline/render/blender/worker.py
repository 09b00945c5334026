"""A Blender worker: reads one asset per line, writes one sample, answers with one line.

Requests and replies travel on two pipes of their own, because Blender and its importers print to
stdout as they like. The worker ends when its request pipe closes or when its parent dies.
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bpy

from data_pipeline.codec import encode_views
from data_pipeline.contract import CONVENTIONS_VERSION, RenderSpec
from data_pipeline.render.blender.cycles import set_up_cycles
from data_pipeline.render.blender.geometry import Geometry, encode_npz, sample_geometry
from data_pipeline.render.blender.materials import show_base_colours
from data_pipeline.render.blender.passes import render_views
from data_pipeline.render.blender.scene import (
    MeshPart,
    extract_parts,
    import_asset,
    missing_textures,
    normalise,
)
from data_pipeline.render.blender.surface import Surface
from data_pipeline.render.blender.views import Views, encode_passes
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.nonfinite import check_finite
from data_pipeline.render.quality import judge, summarise

PR_SET_PDEATHSIG = 1


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 4)


def render_asset(
    job: dict[str, Any], spec: RenderSpec, config_hash: str, threads: int, watch: Stopwatch
) -> dict[str, Any]:
    """Write the sample of one asset into the folder `job["folder"]` and return its metadata.

    Args:
        job: `uid`, `path`, `folder`, `captions`, `licence`, `author`, `source`, `attributes`.
        spec: what to render.
        config_hash: of the staging folder; goes into meta.json.
        threads: of Cycles; changes no pixel.
        watch: gets the seconds of each stage.

    Raises:
        AssetFailure: the asset cannot become a sample.
    """
    path, folder = Path(job["path"]), Path(job["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seed = spec.asset_seed(job["uid"])
    with watch.stage("import"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        check_finite(path)
        import_asset(path)
        missing = missing_textures()
        show_base_colours(keep_lit=set(spec.lightings) != {"albedo"})
        parts = extract_parts()
        frame = normalise(parts)
        surface = Surface(parts, frame)
    with watch.stage("render"):
        set_up_cycles(spec, seed, threads)
        passes = render_views(spec, job["uid"], surface.box, folder)
        views = encode_passes(passes, spec.resolution_px, surface.face_normals)
        figures = summarise(views.figures, missing)
        try:
            flags = judge(figures, spec.qa)
        except AssetFailure:
            (folder / "rgb.png").write_bytes(encode_views(views.rgb))  # for the page of `stats`
            raise
    watch.seconds["cycles"] = round(views.cycles_seconds, 4)
    with watch.stage("geometry"):
        geometry = sample_geometry(surface, spec, seed)
    with watch.stage("write"):
        meta = {
            "uid": job["uid"],
            "source": {
                "file": os.fsencode(path.name).decode(errors="replace"),
                "sha256": sha256,
                "source": job["source"],
                "attributes": job["attributes"],
            },
            "licence": job["licence"],
            "author": job["author"],
            "captions": job["captions"],
            "scale": frame.scale,
            "offset": list(frame.offset),
            "cameras": [camera.to_json() for camera in spec.cameras(job["uid"])],
            "lightings": list(spec.lightings),
            "conventions": CONVENTIONS_VERSION,
            "config_hash": config_hash,
            "render_spec": spec.identity(),
            "blender": bpy.app.version_string,
            "device": spec.device,
            "counts": _counts(parts),
            "qa": figures | geometry.qa | {"flags": flags},
        }
        _write(folder, meta, views, geometry)
    return meta


def _write(folder: Path, meta: dict[str, Any], views: Views, geometry: Geometry) -> None:
    members = {
        "rgb.png": encode_views(views.rgb),
        "normal.png": encode_views(views.normal),
        "coord.png": encode_views(views.coord),
        "hit.png": encode_views(views.hit),
        "geometry.npz": encode_npz(geometry.arrays),
        "meta.json": (json.dumps(meta, sort_keys=True, indent=1) + "\n").encode(),
    }
    if views.albedo is not None:
        members["albedo.png"] = encode_views(views.albedo)
    for name, content in members.items():
        (folder / name).write_bytes(content)


def _counts(parts: list[MeshPart]) -> dict[str, int]:
    return {
        "vertices": sum(part.num_vertices for part in parts),
        "faces": sum(len(part.triangles) for part in parts),
        "objects": len(parts),
        "materials": len({material.name for part in parts for material in part.materials}),
    }


def _reset_peak_memory() -> None:
    """Have Linux count this process's peak memory from now on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Return the peak memory since the reset, where Linux tells; else since the start."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _answer(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to one request; every failure has a class and a line."""
    watch = Stopwatch()
    start, cpu_start = time.perf_counter(), time.process_time()
    _reset_peak_memory()
    reply: dict[str, Any] = {"uid": job["uid"], "reason": None, "message": ""}
    try:
        meta = render_asset(
            job,
            RenderSpec.from_mapping(settings["spec"]),
            settings["config_hash"],
            settings["threads"],
            watch,
        )
        reply |= {"device": meta["device"], "input_sha256": meta["source"]["sha256"]}
    except AssetFailure as failure:
        reply |= {"reason": failure.reason, "message": failure.message}
    except MemoryError:
        reply |= {"reason": "oom", "message": "the worker ran out of memory"}
    except Exception as error:  # one asset's trouble must not end the run; it is named and kept
        traceback.print_exc()
        line = " ".join(f"{type(error).__name__}: {error}".split())
        reply |= {"reason": "crash", "message": line[:500]}
    watch.seconds["total"] = round(time.perf_counter() - start, 4)
    watch.seconds["cpu"] = round(time.process_time() - cpu_start, 4)
    return reply | {"seconds": watch.seconds, "rss_mb": round(_peak_memory_mb(), 1)}


def _die_with_parent(parent: int) -> None:
    """Have Linux kill this process with its parent, and before others when memory runs out."""
    if platform.system() != "Linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(0)
    Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Serve until the request pipe closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, required=True, help="file descriptor to read from")
    parser.add_argument("--replies", type=int, required=True, help="file descriptor to write to")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--settings", required=True, help="JSON: spec, config_hash, threads")
    arguments = parser.parse_args()
    _die_with_parent(arguments.parent)
    settings = json.loads(arguments.settings)
    with os.fdopen(arguments.requests) as requests, os.fdopen(arguments.replies, "w") as replies:
        print(json.dumps({"ready": bpy.app.version_string}), file=replies, flush=True)
        for line in requests:
            reply = _answer(json.loads(line), settings)
            sys.stdout.flush()
            sys.stderr.flush()
            print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()

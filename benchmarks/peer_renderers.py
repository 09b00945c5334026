"""Run objaverse-xl's and TRELLIS's published Blender scripts beside ours. Their code is not here.

Give the scripts as files (allenai/objaverse-xl: scripts/rendering/blender_script.py, Apache-2.0;
microsoft/TRELLIS: dataset_toolkits/blender_script/render.py, MIT). `PATCHES` lists what is changed
before they run, in a temporary copy: what Blender 4.5's module needs, and what makes them equal.
They take our six orthographic views too, unless their own are asked for.
"""

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SEED = "import random; random.seed(0); import numpy; numpy.random.seed(0)\n"

PATCHES = {
    "objaverse-xl": (
        (r"cycles\.samples = 128", "cycles.samples = {samples}"),
        (r"resolution_([xy]) = 512", r"resolution_\1 = {resolution_px}"),
    ),
    "TRELLIS": (
        (r"cycles\.samples = 128", "cycles.samples = {samples}"),
        (r"'View Layer'", "'ViewLayer'"),  # its name since Blender 3.2
        (r"cycles\.filter_type", "cycles.pixel_filter_type"),  # the property that there is
    ),
}
"""By renderer: regular expression and replacement. Both also get a fixed seed."""

ORTHO6 = """
import math, bpy, mathutils
def look(camera, view):
    azimuth, elevation = [(0, 0), (90, 0), (180, 0), (270, 0), (0, 89.9), (0, -89.9)][view]
    azimuth, elevation = math.radians(azimuth), math.radians(elevation)
    flat = math.cos(elevation)
    camera.location = mathutils.Vector(
        (3 * math.sin(azimuth) * flat, -3 * math.cos(azimuth) * flat, 3 * math.sin(elevation)))
    camera.rotation_euler = (-camera.location).to_track_quat("-Z", "Y").to_euler()
    camera.data.type, camera.data.ortho_scale = "ORTHO", 1.1
"""
"""Puts a camera where `ortho6` has its own; both scripts bring the asset into the unit cube."""

OUR_VIEWS = {
    "objaverse-xl": ((r"        # render the image\n", "        look(camera, i)\n"),),
    "TRELLIS": ((r"        cam\.data\.lens = 16 .*\n", "        look(cam, i)\n"),),
}
"""By renderer: patches beside `PATCHES`."""


@dataclass(frozen=True)
class PeerRun:
    """One asset rendered by a peer's script: seconds of CPU and wall clock, and where it lies."""

    cpu_s: float
    wall_s: float
    folder: Path


def run_peer(
    name: str,
    script: Path,
    python: Path,
    asset: Path,
    folder: Path,
    *,
    samples: int,
    resolution_px: int,
    own_views: bool,
    denoise: bool = True,
) -> PeerRun:
    """Render six views of one asset in a process of its own, as the script's authors do.

    Args:
        name: of the renderer.
        script: its authors'.
        python: of Blender's environment.
        asset: a GLB file.
        folder: to be made, for what the script writes.
        samples: per pixel.
        resolution_px: side of each image.
        own_views: whether it takes its own views instead of ours.
        denoise: as both scripts do.

    Raises:
        RuntimeError: a patch no longer applies, or the script failed.
    """
    text = script.read_text()
    patches = PATCHES[name] + (() if own_views else OUR_VIEWS[name])
    if not denoise:
        patches += ((r"use_denoising = True", "use_denoising = False"),)
    for pattern, replacement in patches:
        replacement = replacement.format(samples=samples, resolution_px=resolution_px)
        text, count = re.subn(pattern, replacement, text)
        if not count:
            raise RuntimeError(f"{name}: nothing to patch for {pattern}")
    with tempfile.TemporaryDirectory() as scratch:
        patched = Path(scratch) / "script.py"
        patched.write_text(SEED + ORTHO6 + text)
        arguments = _arguments(name, asset.absolute(), Path("views"), resolution_px)
        cpu_s, wall_s = _timed([str(python), str(patched), "--", *arguments], Path(scratch))
        shutil.copytree(Path(scratch) / "views", folder)
    return PeerRun(cpu_s, wall_s, folder)


def _arguments(name: str, asset: Path, folder: Path, resolution_px: int) -> list[str]:
    if name == "objaverse-xl":
        return [
            "--object_path", str(asset), "--output_dir", str(folder), "--engine", "CYCLES",
            "--num_renders", "6",
        ]  # fmt: skip
    sides = [(azimuth * math.pi / 2, 0.0) for azimuth in range(4)]
    angles = [*sides, (0.0, 1.5), (0.0, -1.5)]
    views = [{"yaw": a, "pitch": e, "radius": 2, "fov": math.radians(40)} for a, e in angles]
    return [
        "--object", str(asset), "--output_folder", str(folder), "--engine", "CYCLES",
        "--resolution", str(resolution_px), "--views", json.dumps(views),
        "--save_depth", "--save_normal", "--save_albedo",
    ]  # fmt: skip


def _timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command in a folder; return its CPU and wall-clock seconds."""
    start = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command[1]}: {(folder / 'log').read_text()[-800:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start

"""Resolve `device=auto`, and refuse a GPU that is not there before any worker starts."""

import dataclasses
import glob
import json
import subprocess
from pathlib import Path

from data_pipeline.contract import RenderSpec, UserError

GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
"""What Linux shows where a GPU is that Cycles could use; without any, Blender need not be asked."""

PREFERENCE = ("optix", "cuda", "hip", "cpu")
"""What `auto` chooses, best first."""

REPOSITORY = Path(__file__).resolve().parents[2]


def resolve_device(spec: RenderSpec, blender_python: Path) -> RenderSpec:
    """Return the spec with a device of a kind that this machine has.

    Raises:
        UserError: it asks for a GPU that Cycles does not find.
    """
    if spec.device == "cpu":
        return spec
    found = ["cpu"]
    if any(glob.glob(pattern) for pattern in GPU_FILES):
        found = _ask_blender(blender_python)
    if spec.device == "auto":
        return dataclasses.replace(spec, device=next(k for k in PREFERENCE if k in found))
    if spec.device not in found:
        raise UserError(
            f"device={spec.device}: Cycles finds no such GPU on this machine (it finds "
            f"{', '.join(found)}): check the driver, or choose device=auto"
        )
    return spec


def _ask_blender(python: Path) -> list[str]:
    command = [str(python), "-m", "data_pipeline.render.blender.device"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"Blender could not list its devices: {line}")
    return json.loads(done.stdout.strip().splitlines()[-1])

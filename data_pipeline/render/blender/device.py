"""The device that Cycles renders on: asked for, enabled, and checked, never fallen back from.

`python -m data_pipeline.render.blender.device` prints the kinds that this machine has, as JSON.
"""

import json

import bpy

from data_pipeline.contract import DEVICES


def available_devices() -> list[str]:
    """Return the kinds of device that Cycles finds here, `cpu` first."""
    return ["cpu", *(kind for kind in DEVICES if kind != "cpu" and _devices(kind))]


def use_device(kind: str) -> None:
    """Make Cycles render on devices of `kind` and on nothing else.

    Raises:
        RuntimeError: there is none, or Cycles did not take it.
    """
    scene = bpy.context.scene
    if kind == "cpu":
        _preferences().compute_device_type = "NONE"
        scene.cycles.device = "CPU"
        return
    devices = _devices(kind)
    if not devices:
        raise RuntimeError(f"device={kind}: Cycles finds no such GPU here; it finds {_found()}")
    for device in _preferences().devices:
        device.use = device.type == kind.upper()
    scene.cycles.device = "GPU"
    used = {device.type for device in _preferences().devices if device.use}
    if used != {kind.upper()} or not _preferences().has_active_device():
        raise RuntimeError(f"device={kind}: Cycles would render on {sorted(used) or 'nothing'}")


def _preferences() -> bpy.types.AddonPreferences:
    return bpy.context.preferences.addons["cycles"].preferences


def _devices(kind: str) -> list[str]:
    """Return the names of the GPUs of one kind; the compute type is then set to it."""
    preferences = _preferences()
    try:
        preferences.compute_device_type = kind.upper()
    except TypeError:  # this build of Blender has no such backend
        return []
    preferences.refresh_devices()
    return [device.name for device in preferences.devices if device.type == kind.upper()]


def _found() -> str:
    return ", ".join(available_devices())


if __name__ == "__main__":
    print(json.dumps(available_devices()))

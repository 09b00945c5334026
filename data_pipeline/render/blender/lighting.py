"""Lighting presets for the unit cube: fixed area lights, a seeded sky, environment images."""

import math
from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Euler, Vector

from data_pipeline.contract import RenderSpec
from data_pipeline.render.failures import AssetFailure

STUDIO_LIGHTS = (
    # position, side of the square, watts
    ((-1.8, -2.4, 2.6), 1.2, 150.0),  # key: front left, above
    ((2.6, -1.8, 0.8), 2.0, 60.0),  #   fill: front right, large and soft
    ((0.4, 2.6, 2.2), 1.2, 110.0),  #   rim: behind
)
STUDIO_AMBIENT = 0.28
"""Radiance from everywhere, so that the sides which no light faces (below) are not black."""

SUN_ELEVATION_DEG = (15.0, 75.0)
SUN_STRENGTH = (1.5, 3.5)
SUN_ANGLE_DEG = 4.0
"""Eight times the real sun's: softer shadows, and less noise at few samples."""

SKY_COLOURS = {  # linear radiance: ground, horizon, zenith, each from its first to its second
    "ground": ((0.10, 0.09, 0.08), (0.30, 0.26, 0.22)),
    "horizon": ((0.65, 0.62, 0.60), (1.00, 0.92, 0.80)),
    "zenith": ((0.20, 0.35, 0.65), (0.75, 0.80, 0.90)),
}

MAP_RESOLUTION = 512
"""Width of the map by which Cycles samples an environment image's bright parts."""


class Lights:
    """What lights the scene: one preset at a time.

    Args:
        spec: its `hdri` names the environment images.
    """

    def __init__(self, spec: RenderSpec):
        self._spec = spec
        self._lamps: list[bpy.types.Object] = []
        self._current: tuple[str, int] | None = None

    def set(self, lighting: str, seed: int) -> None:
        """Light the scene by a preset; `hdri` depends on the seed, `studio` does not."""
        key = (lighting, seed if lighting == "hdri" else 0)
        if key == self._current:
            return
        self._current = key
        for lamp in self._lamps:
            bpy.data.objects.remove(lamp)
        self._lamps.clear()
        bpy.context.scene.world = None
        if lighting == "studio":
            self._studio()
        elif lighting == "hdri":
            rng = np.random.default_rng([2, seed])
            if self._spec.hdri.paths:
                self._image(self._spec.hdri.paths, rng)
            else:
                self._sky(rng)

    def _studio(self) -> None:
        for place, side, watts in STUDIO_LIGHTS:
            lamp = bpy.data.lights.new("relief_area", "AREA")
            lamp.shape, lamp.size, lamp.energy = "SQUARE", side, watts
            thing = self._add(lamp)
            thing.location = place
            thing.rotation_euler = (-Vector(place)).to_track_quat("-Z", "Y").to_euler()
        tree = _new_world()
        background = tree.nodes["Background"]
        background.inputs["Color"].default_value = (STUDIO_AMBIENT,) * 3 + (1.0,)

    def _sky(self, rng: np.random.Generator) -> None:
        """Set a gradient from ground over horizon to zenith, and one sun."""
        sun = bpy.data.lights.new("relief_sun", "SUN")
        sun.angle = math.radians(SUN_ANGLE_DEG)
        sun.energy = float(rng.uniform(*SUN_STRENGTH))
        elevation = math.radians(float(rng.uniform(*SUN_ELEVATION_DEG)))
        azimuth = float(rng.uniform(0.0, 2.0 * math.pi))
        self._add(sun).rotation_euler = Euler((math.pi / 2.0 - elevation, 0.0, azimuth))
        colours = {
            name: np.array(first) + rng.random() * (np.array(second) - np.array(first))
            for name, (first, second) in SKY_COLOURS.items()
        }
        tree = _new_world()
        nodes, links = tree.nodes, tree.links
        direction, separate = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeSeparateXYZ")
        scale, ramp = nodes.new("ShaderNodeMapRange"), nodes.new("ShaderNodeValToRGB")
        scale.inputs["From Min"].default_value = -1.0
        stops = ramp.color_ramp.elements
        stops[0].position, stops[1].position = 0.47, 1.0
        stops.new(0.52)
        for stop, name in zip(stops, ("ground", "horizon", "zenith"), strict=True):
            stop.color = (*colours[name], 1.0)
        links.new(direction.outputs["Generated"], separate.inputs[0])
        links.new(separate.outputs["Z"], scale.inputs["Value"])
        links.new(scale.outputs[0], ramp.inputs["Fac"])
        links.new(ramp.outputs["Color"], nodes["Background"].inputs["Color"])

    def _image(self, paths: Sequence[str], rng: np.random.Generator) -> None:
        """Set one of the environment images, turned about the vertical."""
        path = paths[int(rng.integers(len(paths)))]
        tree = _new_world()
        nodes, links = tree.nodes, tree.links
        direction, turn = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
        picture = nodes.new("ShaderNodeTexEnvironment")
        picture.image = bpy.data.images.load(str(Path(path).resolve()), check_existing=True)
        if not picture.image.size[0]:
            raise AssetFailure("crash", f"hdri.paths: {path} is no image that Blender can read")
        turn.inputs["Rotation"].default_value[2] = float(rng.uniform(0.0, 2.0 * math.pi))
        links.new(direction.outputs["Generated"], turn.inputs["Vector"])
        links.new(turn.outputs["Vector"], picture.inputs["Vector"])
        links.new(picture.outputs["Color"], nodes["Background"].inputs["Color"])
        world = bpy.context.scene.world.cycles
        world.sampling_method, world.sample_map_resolution = "MANUAL", MAP_RESOLUTION

    def _add(self, lamp: bpy.types.Light) -> bpy.types.Object:
        thing = bpy.data.objects.new(lamp.name, lamp)
        thing.visible_camera = False  # lamps light the asset and are not part of its picture
        bpy.context.scene.collection.objects.link(thing)
        self._lamps.append(thing)
        return thing


def _new_world() -> bpy.types.NodeTree:
    """Give the scene a new world of a background of strength 1, and return its nodes."""
    world = bpy.data.worlds.new("relief_world")
    bpy.context.scene.world = world
    world.use_nodes = True
    # Gradients are smooth: rays that surfaces scatter find them without a map to sample.
    world.cycles.sampling_method = "NONE"
    world.node_tree.nodes["Background"].inputs["Strength"].default_value = 1.0
    return world.node_tree

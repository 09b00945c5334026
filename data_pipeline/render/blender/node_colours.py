"""Evaluate a rewired material at points of the surface: the nodes that importers make, in numpy.

Cycles can only tell colours at pixels; surface samples need them anywhere, also where no camera
looks. What a node here does not cover is reported by name, never guessed in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import bpy
import numpy as np
from numpy.typing import NDArray

from data_pipeline.contract import srgb_to_linear
from data_pipeline.render.blender.materials import UNLIT
from data_pipeline.render.blender.scene import MeshPart

Values = NDArray[np.float64]


@dataclass
class ImageCache:
    """Pixels of images, read once per asset."""

    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def get(self, image: bpy.types.Image) -> NDArray[np.float32]:
        """Return RGBA as stored `(h, w, 4)`, first row at the bottom; magenta if unreadable."""
        if image.name not in self.images:
            width, height = image.size
            if not width or not height:
                self.images[image.name] = np.array([[[1.0, 0.0, 1.0, 1.0]]], dtype=np.float32)
            else:
                pixels = np.empty(width * height * 4, dtype=np.float32)
                image.pixels.foreach_get(pixels)
                self.images[image.name] = pixels.reshape(height, width, 4)
        return self.images[image.name]


class SurfaceShader:
    """Colours of one mesh part at points given by triangle and barycentric coordinates.

    Args:
        part: the mesh.
        triangle: `(n,)` int, the triangle of each point.
        weights: `(n, 3)`, barycentric.
        images: shared between the calls of one asset.
    """

    def __init__(
        self,
        part: MeshPart,
        triangle: NDArray[np.int64],
        weights: NDArray[np.float64],
        images: ImageCache,
    ):
        self.part, self.triangle, self.weights, self.images = part, triangle, weights, images
        self.unsupported: set[str] = set()
        self._groups: list[bpy.types.Node] = []

    def shade(self, material: bpy.types.Material) -> tuple[Values, Values]:
        """Return linear colour `(n, 3)` and alpha `(n,)` under a rewired material."""
        output = material.node_tree.get_output_node("CYCLES")
        premultiplied, alpha = self._shader(output.inputs["Surface"])
        colour = np.divide(
            premultiplied, alpha[:, None], where=alpha[:, None] > 1e-6, out=premultiplied.copy()
        )
        return np.clip(colour, 0.0, 1.0), np.clip(alpha, 0.0, 1.0)

    def _constant(self, value: Any) -> Values:
        row = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return np.broadcast_to(row, (len(self.triangle), len(row)))

    # ------------------------------------------------------------------------------- shaders

    def _shader(self, socket: bpy.types.NodeSocket) -> tuple[Values, Values]:
        """Return premultiplied colour `(n, 3)` and alpha `(n,)` of a shader input."""
        nothing = self._constant((0.0, 0.0, 0.0)), self._constant(0.0)[:, 0]
        if not socket.is_linked:
            return nothing
        link = socket.links[0]
        node = link.from_node
        match node.type:
            case "EMISSION":
                strength = node.inputs["Strength"].default_value
                return self.value(node.inputs["Color"])[:, :3] * strength, nothing[1] + 1.0
            case "BSDF_TRANSPARENT":
                return nothing
            case "MIX_SHADER" if _is_switch(node.inputs[0]):
                return self._shader(node.inputs[2])  # the unlit side
            case "MIX_SHADER":
                share = np.clip(self.value(node.inputs[0])[:, :1], 0.0, 1.0)
                first, second = self._shader(node.inputs[1]), self._shader(node.inputs[2])
                return (
                    first[0] * (1.0 - share) + second[0] * share,
                    first[1] * (1.0 - share[:, 0]) + second[1] * share[:, 0],
                )
            case "ADD_SHADER":
                first, second = self._shader(node.inputs[0]), self._shader(node.inputs[1])
                return first[0] + second[0], np.maximum(first[1], second[1])
            case "REROUTE":
                return self._shader(node.inputs[0])
            case "GROUP" | "GROUP_INPUT":
                return self._through_group(node, link.from_socket, self._shader)
        self.unsupported.add(node.type)
        return self._constant((0.214, 0.214, 0.214)), nothing[1] + 1.0

    def _through_group(
        self, node: bpy.types.Node, socket: bpy.types.NodeSocket, evaluate: Callable[..., Any]
    ) -> Any:
        """Evaluate what lies behind a group's output, or behind an input seen from inside it."""
        if node.type == "GROUP":
            output = next(n for n in node.node_tree.nodes if n.type == "GROUP_OUTPUT")
            inner = next(s for s in output.inputs if s.identifier == socket.identifier)
            self._groups.append(node)
            result = evaluate(inner)
            self._groups.pop()
            return result
        caller = self._groups.pop()
        result = evaluate(next(s for s in caller.inputs if s.identifier == socket.identifier))
        self._groups.append(caller)
        return result

    # -------------------------------------------------------------------------------- values

    def value(self, socket: bpy.types.NodeSocket) -> Values:
        """Return what flows into an input: `(n, 1)`, `(n, 3)` or `(n, 4)`."""
        if not socket.is_linked:
            return self._constant(socket.default_value)
        link = socket.links[0]
        values = self._node(link.from_node, link.from_socket)
        if socket.type == "VALUE" and values.shape[1] > 1:  # Blender takes a colour's luminance
            return values[:, :3] @ np.array([[0.2126], [0.7152], [0.0722]])
        if socket.type in {"RGBA", "VECTOR"} and values.shape[1] == 1:
            return np.repeat(values, 3, axis=1)
        return values

    def _node(self, node: bpy.types.Node, socket: bpy.types.NodeSocket) -> Values:
        match node.type:
            case "TEX_IMAGE":
                rgba = self._image(node)
                return rgba[:, 3:] if socket.name == "Alpha" else rgba[:, :3]
            case "VERTEX_COLOR":
                rgba = self._colour_attribute(node.layer_name)
                return rgba[:, 3:] if socket.name == "Alpha" else rgba[:, :3]
            case "ATTRIBUTE":
                rgba = self._colour_attribute(node.attribute_name)
                return rgba[:, 3:] if socket.name == "Alpha" else rgba[:, :3]
            case "RGB" | "VALUE":
                return self._constant(node.outputs[0].default_value)
            case "UVMAP":
                return self._uv(node.uv_map)
            case "TEX_COORD" if socket.name == "UV":
                return self._uv("")
            case "MAPPING":
                return self._mapping(node)
            case "MIX" if node.data_type in {"RGBA", "FLOAT"}:
                chosen = [s for s in node.inputs if s.enabled]
                return self._mix(node, *chosen, getattr(node, "clamp_factor", True))
            case "MIX_RGB":
                return self._mix(node, *node.inputs, True)
            case "MATH":
                return self._math(node)
            case "LIGHT_PATH":
                return self._constant(float(socket.name == "Is Camera Ray"))
            case "REROUTE":
                return self.value(node.inputs[0])
            case "GAMMA":
                return np.maximum(self.value(node.inputs[0])[:, :3], 0) ** self.value(
                    node.inputs[1]
                )
            case "INVERT":
                share, colour = self.value(node.inputs[0]), self.value(node.inputs[1])[:, :3]
                return colour * (1 - share) + (1 - colour) * share
            case "SEPARATE_COLOR" if node.mode == "RGB":
                channel = list(node.outputs).index(socket)
                return self.value(node.inputs[0])[:, channel : channel + 1]
            case "COMBINE_COLOR" if node.mode == "RGB":
                return np.concatenate([self.value(s) for s in node.inputs], axis=1)
            case "GROUP" | "GROUP_INPUT":
                return self._through_group(node, socket, self.value)
        self.unsupported.add(node.type)
        return self._constant(getattr(socket, "default_value", 0.5))

    def _interpolate(self, corner_values: NDArray[np.floating]) -> Values:
        return (corner_values * self.weights[..., None]).sum(axis=1)

    def _uv(self, name: str) -> Values:
        layer = self.part.uvs.get(name) if name else next(iter(self.part.uvs.values()), None)
        if layer is None:
            return self._constant((0.0, 0.0, 0.0))
        uv = self._interpolate(layer[self.part.corners[self.triangle]])
        return np.concatenate([uv, np.zeros((len(uv), 1))], axis=1)

    def _colour_attribute(self, name: str) -> Values:
        found = (
            self.part.colours.get(name) if name else next(iter(self.part.colours.values()), None)
        )
        if found is None:
            return self._constant((0.0, 0.0, 0.0, 0.0))
        domain, colours = found
        index = self.part.vertices if domain == "POINT" else self.part.corners
        return self._interpolate(colours[index[self.triangle]])

    def _mapping(self, node: bpy.types.Node) -> Values:
        vector = self.value(node.inputs["Vector"])[:, :3]
        location, rotation = (
            np.array(node.inputs[k].default_value) for k in ("Location", "Rotation")
        )
        scale = np.array(node.inputs["Scale"].default_value)
        if node.vector_type not in {"POINT", "TEXTURE"} or rotation[:2].any():
            self.unsupported.add(f"MAPPING.{node.vector_type}")
        sine, cosine = np.sin(rotation[2]), np.cos(rotation[2])
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        if node.vector_type == "TEXTURE":
            return ((vector - location) @ turn) / np.where(scale == 0.0, 1.0, scale)
        return (vector * scale) @ turn.T + location

    def _image(self, node: bpy.types.Node) -> Values:
        if node.image is None:
            return self._constant((1.0, 0.0, 1.0, 1.0))
        pixels = self.images.get(node.image)
        linked = node.inputs["Vector"].is_linked
        uv = self.value(node.inputs["Vector"])[:, :2] if linked else self._uv("")[:, :2]
        if node.projection != "FLAT":
            self.unsupported.add(f"TEX_IMAGE.{node.projection}")
        rgba = _sample(pixels, uv, node.interpolation == "Closest", node.extension)
        if node.image.colorspace_settings.name == "sRGB" and not node.image.is_float:
            rgba[:, :3] = srgb_to_linear(rgba[:, :3])  # after interpolating: the order of Cycles
        if node.image.alpha_mode == "NONE":
            rgba[:, 3] = 1.0
        return rgba

    def _mix(
        self,
        node: bpy.types.Node,
        factor: bpy.types.NodeSocket,
        first: bpy.types.NodeSocket,
        second: bpy.types.NodeSocket,
        clamp: bool,
    ) -> Values:
        share = self.value(factor)[:, :1]
        share = np.clip(share, 0.0, 1.0) if clamp else share
        width = 1 if first.type == "VALUE" else 3
        a, b = self.value(first)[:, :width], self.value(second)[:, :width]
        kind = node.blend_type if width == 3 else "MIX"
        blend = {
            "MIX": b,
            "MULTIPLY": a * b,
            "ADD": a + b,
            "SUBTRACT": a - b,
            "SCREEN": 1.0 - (1.0 - a) * (1.0 - b),
            "DARKEN": np.minimum(a, b),
            "LIGHTEN": np.maximum(a, b),
        }.get(kind)
        if blend is None:
            self.unsupported.add(f"MIX.{kind}")
            blend = b
        return a * (1.0 - share) + blend * share

    def _math(self, node: bpy.types.Node) -> Values:
        a, b = (self.value(s)[:, :1] for s in node.inputs[:2])
        result = {
            "ADD": a + b,
            "SUBTRACT": a - b,
            "MULTIPLY": a * b,
            "LESS_THAN": (a < b).astype(np.float64),
            "GREATER_THAN": (a > b).astype(np.float64),
            "MINIMUM": np.minimum(a, b),
            "MAXIMUM": np.maximum(a, b),
            "ROUND": np.floor(a + 0.5),
        }.get(node.operation)
        if result is None:
            self.unsupported.add(f"MATH.{node.operation}")
            result = a
        return np.clip(result, 0.0, 1.0) if node.use_clamp else result


def _is_switch(factor: bpy.types.NodeSocket) -> bool:
    """Return whether the factor of a mix is the view layer's choice of `materials.UNLIT`."""
    node = factor.links[0].from_node if factor.is_linked else None
    return node is not None and node.type == "ATTRIBUTE" and node.attribute_name == UNLIT


def _sample(pixels: NDArray[np.float32], uv: Values, closest: bool, extension: str) -> Values:
    """Look an image up, `(h, w, 4)` with the first row at v = 0, bilinearly as Cycles does."""
    size = np.array([pixels.shape[1], pixels.shape[0]])
    place = uv * size - (0.0 if closest else 0.5)
    low = np.floor(place).astype(np.int64)
    rest = np.zeros_like(place) if closest else place - low

    def texel(offset_x: int, offset_y: int) -> Values:
        index = low + np.array((offset_x, offset_y))
        if extension == "REPEAT":
            index = index % size
        elif extension == "MIRROR":
            index = index % (2 * size)
            index = np.where(index >= size, 2 * size - 1 - index, index)
        else:
            inside = ((index >= 0) & (index < size)).all(axis=1) | (extension == "EXTEND")
            index = np.clip(index, 0, size - 1)
            return pixels[index[:, 1], index[:, 0]].astype(np.float64) * inside[:, None]
        return pixels[index[:, 1], index[:, 0]].astype(np.float64)

    x, y = rest[:, :1], rest[:, 1:]
    if closest:
        return texel(0, 0)
    bottom = texel(0, 0) * (1 - x) + texel(1, 0) * x
    top = texel(0, 1) * (1 - x) + texel(1, 1) * x
    return bottom * (1 - y) + top * y

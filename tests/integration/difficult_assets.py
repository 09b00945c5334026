"""One scene written in many difficult ways: a red box and a small blue one beside it.

Whatever the way, what comes out must be the plain scene. Lengths are glTF's (Y up).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from golden.glb import GlbBuilder
from numpy.typing import NDArray

RED, BLUE = [0.6, 0.05, 0.05, 1.0], [0.05, 0.1, 0.7, 1.0]
RED_BOX = ((0.0, 0.0, 0.0), (1.0, 0.6, 0.4))
BLUE_BOX = ((1.6, 0.3, 0.1), (0.3, 0.2, 0.25))


def box(
    centre: tuple[float, ...], half_sides: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the twelve triangles of a box `(12, 3, 3)`, outside counter-clockwise, and normals."""
    triangles, normals = [], []
    for axis in range(3):
        for side in (-1.0, 1.0):
            corners = np.zeros((4, 3))
            corners[:, axis] = side
            u, v = (axis + 1) % 3, (axis + 2) % 3
            corners[:, u], corners[:, v] = (-1, 1, 1, -1), (-1, -1, 1, 1)
            if side < 0:
                corners = corners[::-1]
            triangles += [corners[[0, 1, 2]], corners[[0, 2, 3]]]
            normals += [np.eye(3)[axis] * side] * 2
    placed = np.array(triangles) * half_sides + centre
    return placed, np.repeat(np.array(normals)[:, None], 3, axis=1)


def colour(builder: GlbBuilder, rgba: list[float], **more: Any) -> int:
    factor = {"baseColorFactor": rgba, "metallicFactor": 0.0}
    return builder.add_material(pbrMetallicRoughness=factor, **more)


def scene(
    *,
    scale: float = 1.0,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    node: dict[str, Any] | None = None,
    flipped: bool = False,
    with_normals: bool = True,
    **material: Any,
) -> GlbBuilder:
    """Return the plain scene, its vertices scaled and shifted, under nodes of the given keys."""
    builder = GlbBuilder()
    for shape, rgba in ((RED_BOX, RED), (BLUE_BOX, BLUE)):
        triangles, normals = box(*shape)
        triangles = triangles * scale + shift
        if flipped:
            triangles, normals = triangles[:, ::-1], -normals
        builder.add_mesh(
            triangles,
            normals=normals if with_normals else None,
            material=colour(builder, rgba, **material),
            node=node,
        )
    return builder


def animated() -> GlbBuilder:
    """Nodes whose animation is elsewhere than their own place, from its first key on."""
    builder = scene()
    times = builder.add_values(np.array([[0.0], [1.0]]), "SCALAR", bounds=True)
    places = builder.add_values(np.array([[0.0, 5.0, 0.0], [0.0, 9.0, 0.0]]), "VEC3")
    builder.document["animations"] = [
        {
            "samplers": [{"input": times, "output": places}],
            "channels": [{"sampler": 0, "target": {"node": 1, "path": "translation"}}],
        }
    ]
    return builder


def skinned() -> GlbBuilder:
    """A blue box bound one unit too low, lifted by the pose of its joint."""
    builder = GlbBuilder()
    triangles, normals = box(*RED_BOX)
    builder.add_mesh(triangles, normals=normals, material=colour(builder, RED))
    triangles, normals = box(*BLUE_BOX)
    builder.add_mesh(triangles - (0, 1, 0), normals=normals, material=colour(builder, BLUE))
    attributes = builder.document["meshes"][1]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = builder.add_values(np.zeros((36, 4)), "VEC4", np.uint8)
    attributes["WEIGHTS_0"] = builder.add_values(np.tile([1.0, 0, 0, 0], (36, 1)), "VEC4")
    builder.document["nodes"].append({"name": "joint", "translation": [0.0, 1.0, 0.0]})
    bind = builder.add_values(np.eye(4).reshape(1, 16), "MAT4")
    builder.document["skins"] = [{"joints": [2], "inverseBindMatrices": bind}]
    builder.document["nodes"][1]["skin"] = 0
    builder.document["scenes"][0]["nodes"].append(2)
    return builder


def morphed() -> GlbBuilder:
    """A shape key that is off and would move the blue box away."""
    builder = scene()
    away = builder.add_values(np.tile([0.0, 4.0, 0.0], (36, 1)), "VEC3", bounds=True)
    builder.document["meshes"][1]["primitives"][0]["targets"] = [{"POSITION": away}]
    builder.document["meshes"][1]["weights"] = [0.0]
    return builder


def multi_material() -> GlbBuilder:
    """Both boxes as two primitives of one mesh."""
    builder = scene()
    meshes = builder.document["meshes"]
    meshes[0]["primitives"] += meshes.pop()["primitives"]
    builder.document["nodes"].pop()
    builder.document["scenes"][0]["nodes"] = [0]
    return builder


def vertex_coloured() -> GlbBuilder:
    builder = GlbBuilder()
    white = colour(builder, [1.0, 1.0, 1.0, 1.0])
    for shape, rgba in ((RED_BOX, RED), (BLUE_BOX, BLUE)):
        triangles, normals = box(*shape)
        colours = np.tile(rgba, (12, 3, 1))
        builder.add_mesh(triangles, normals=normals, colours=colours, material=white)
    return builder


def with_clear_parts() -> GlbBuilder:
    """A fully clear pane before the boxes: masked out, and blended away."""
    builder = scene()
    for mode in ("MASK", "BLEND"):
        pane, normals = box((0.3, 0.1, 0.3), (0.4, 0.4, 0.001))
        material = colour(builder, [0.0, 1.0, 0.0, 0.0], alphaMode=mode)
        builder.add_mesh(pane, normals=normals, material=material)
    return builder


def instanced() -> GlbBuilder:
    """One mesh under two nodes, the second scaled and moved to be the blue box."""
    builder = GlbBuilder()
    unit, normals = box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for shape, rgba in ((RED_BOX, RED), (BLUE_BOX, BLUE)):
        node = {"translation": list(shape[0]), "scale": list(shape[1])}
        builder.add_mesh(unit, normals=normals, material=colour(builder, rgba), node=node)
    return builder


def gpu_instanced() -> GlbBuilder:
    """EXT_mesh_gpu_instancing: the red box as two halves of one instanced mesh."""
    builder = scene()
    (x, y, z), (a, b, c) = RED_BOX
    half, normals = box((x, y, z), (a / 2, b, c))
    places = builder.add_values(np.array([[-a / 2, 0.0, 0.0], [a / 2, 0.0, 0.0]]), "VEC3")
    builder.document["meshes"][0]["primitives"][0]["attributes"] = {
        "POSITION": builder.add_values(half, "VEC3", bounds=True),
        "NORMAL": builder.add_values(normals, "VEC3"),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    builder.document["nodes"][0]["extensions"] = extension
    builder.document["extensionsUsed"] = ["EXT_mesh_gpu_instancing"]
    builder.document["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    return builder


def nested_far() -> GlbBuilder:
    """The scene a hundred thousand units away, by a parent node."""
    builder = scene()
    nodes = builder.document["nodes"]
    nodes.append({"translation": [1e5, -1e5, 1e5], "children": [0, 1]})
    builder.document["scenes"][0]["nodes"] = [2]
    return builder


def far_child_of_near_parent() -> GlbBuilder:
    """The far place is the children's own: their parent stays at the origin."""
    builder = scene(node={"translation": [1e5, -1e5, 1e5]})
    builder.document["nodes"].append({"children": [0, 1]})
    builder.document["scenes"][0]["nodes"] = [2]
    return builder


def multi_scene() -> GlbBuilder:
    """A second scene, not the default one, with a box of its own."""
    builder = scene()
    other, normals = box((0.0, 3.0, 0.0), (0.5, 0.5, 0.5))
    builder.add_mesh(other, normals=normals, material=colour(builder, [0.0, 1.0, 0.0, 1.0]))
    builder.document["scenes"] = [{"nodes": [0, 1]}, {"nodes": [2]}]
    return builder


def with_hidden_node() -> GlbBuilder:
    """KHR_node_visibility hides a third box."""
    builder = scene()
    other, normals = box((0.0, 3.0, 0.0), (0.5, 0.5, 0.5))
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
    builder.add_mesh(other, normals=normals, material=colour(builder, BLUE), node=hidden)
    builder.document["extensionsUsed"] = ["KHR_node_visibility"]
    return builder


def non_manifold() -> GlbBuilder:
    """Faces upon faces, an edge of three faces inside, and points that belong to no face."""
    builder = scene()
    triangles, normals = box(*RED_BOX)
    inner = triangles[:2] * 0.9
    soup = np.concatenate([triangles, triangles[:4], inner])
    builder.add_mesh(soup, normals=np.concatenate([normals, normals[:4], normals[:2]]), material=0)
    points = builder.add_values(np.array([[9.0, 9.0, 9.0]]), "VEC3", bounds=True)
    builder.document["meshes"][-1]["primitives"].append(
        {"attributes": {"POSITION": points}, "mode": 0}
    )
    return builder


def optional_ktx2() -> GlbBuilder:
    """A KTX2 texture that has a PNG beside it, for readers that do not know KTX2."""
    builder = scene()
    texture = builder.add_image(np.full((4, 4, 3), 255, np.uint8))
    builder.document["images"].append({"uri": "not_there.ktx2", "mimeType": "image/ktx2"})
    builder.document["textures"][texture]["extensions"] = {"KHR_texture_basisu": {"source": 1}}
    builder.document["extensionsUsed"] = ["KHR_texture_basisu"]
    for material in builder.document["materials"]:
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": texture}
    for mesh in builder.document["meshes"]:
        primitive = mesh["primitives"][0]
        primitive["attributes"]["TEXCOORD_0"] = builder.add_values(np.zeros((36, 2)), "VEC2")
    return builder


def mirrored() -> GlbBuilder:
    """The mirror image of the scene, under nodes that mirror it back."""
    builder = GlbBuilder()
    for shape, rgba in ((RED_BOX, RED), (BLUE_BOX, BLUE)):
        triangles, normals = box(*shape)
        mirror = np.array([-1.0, 1.0, 1.0])
        builder.add_mesh(
            (triangles * mirror)[:, ::-1],
            normals=(normals * mirror)[:, ::-1],
            material=colour(builder, rgba),
            node={"scale": [-1.0, 1.0, 1.0]},
        )
    return builder


RIGHT: dict[str, Callable[[], GlbBuilder]] = {
    "plain": scene,
    "animated": animated,
    "skinned": skinned,
    "morphed": morphed,
    "multi_material": multi_material,
    "vertex_coloured": vertex_coloured,
    "clear_parts": with_clear_parts,
    "emissive": lambda: scene(emissiveFactor=[0.2, 1.0, 0.2]),
    "huge": lambda: scene(scale=1e6),
    "tiny": lambda: scene(scale=1e-6),
    "far_node": lambda: scene(node={"translation": [1e5, -1e5, 1e5]}),
    "far_parent": nested_far,
    "far_child": far_child_of_near_parent,
    "no_normals": lambda: scene(with_normals=False),
    "two_sided": lambda: scene(doubleSided=True),
    "flipped_faces": lambda: scene(flipped=True),
    "mirrored": mirrored,
    "non_manifold": non_manifold,
    "instanced": instanced,
    "gpu_instanced": gpu_instanced,
    "hidden_node": with_hidden_node,
    "multi_scene": multi_scene,
    "optional_ktx2": optional_ktx2,
}
"""Ways of writing that must come out as the plain scene."""


def requiring(extension: str) -> GlbBuilder:
    builder = scene()
    builder.document["extensionsUsed"] = builder.document["extensionsRequired"] = [extension]
    return builder


REFUSED: dict[str, Callable[[], GlbBuilder]] = {
    "meshopt": lambda: requiring("EXT_meshopt_compression"),
    "ktx2": lambda: requiring("KHR_texture_basisu"),
}
"""Ways of writing that Blender cannot read: refused as `unsupported`."""


def write_all(folder: Path) -> dict[str, Path]:
    """Write every file into `folder` and return the paths by name."""
    makers = RIGHT | REFUSED
    return {name: make().write(folder / f"{name}.glb") for name, make in makers.items()}

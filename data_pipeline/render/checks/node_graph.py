"""The nodes of a glTF: no cycles, bounded depth, and a bounded number of instanced triangles."""

from typing import Any

from data_pipeline.render.checks.gltf_document import GltfDocument
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_FACES, MAX_NODE_DEPTH, MAX_NODES

TRIANGLES = 4


def check_nodes(document: GltfDocument) -> None:
    """Raise AssetFailure for nodes that would not end, or would fill the memory.

    Raises:
        AssetFailure: `unreadable` (a cycle), `unsupported` (too deep), `too_large`, `empty`.
    """
    nodes = document.table("nodes")
    if len(nodes) > MAX_NODES:
        raise AssetFailure("too_large", f"{len(nodes)} nodes; at most {MAX_NODES} are imported")
    children = [[int(child) for child in node.get("children", ())] for node in nodes]
    parents = [0] * len(nodes)
    for family in children:
        for child in family:
            if child < 0:
                raise AssetFailure("unreadable", "a node's child has a negative index")
            parents[child] += 1
    if max(parents, default=0) > 1:
        raise AssetFailure("unreadable", "a node has several parents")
    _check_depth(children, parents)
    meshes = document.table("meshes")
    if not any(mesh.get("primitives") for mesh in meshes):
        raise AssetFailure("empty", "its meshes hold no primitive")
    faces = [_num_faces(mesh, document) for mesh in meshes]
    total = sum(
        faces[node["mesh"]] * _num_instances(node, document) for node in nodes if "mesh" in node
    )
    if total > MAX_FACES:
        raise AssetFailure("too_large", f"{total} faces; at most {MAX_FACES} are rendered")


def _check_depth(children: list[list[int]], parents: list[int]) -> None:
    """Walk down from the roots, level by level; whoever is never met is part of a cycle."""
    level, num_met, depth = [n for n, count in enumerate(parents) if not count], 0, 0
    while level:
        num_met += len(level)
        depth += 1
        level = [child for node in level for child in children[node]]
    if num_met < len(children):
        raise AssetFailure("unreadable", "its nodes form a cycle")
    if depth > MAX_NODE_DEPTH:
        raise AssetFailure("unsupported", f"its nodes are nested {depth} deep")


def _num_instances(node: dict[str, Any], document: GltfDocument) -> int:
    instancing = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
    accessors = document.table("accessors")
    return max((int(accessors[index]["count"]) for index in instancing.values()), default=1)


def _num_faces(mesh: dict[str, Any], document: GltfDocument) -> int:
    """Return the triangles of a mesh, as its accessors count them."""
    accessors, num_faces = document.table("accessors"), 0
    for primitive in mesh.get("primitives", ()):
        mode = primitive.get("mode", TRIANGLES)
        accessor = primitive.get("indices", primitive["attributes"].get("POSITION"))
        if accessor is None or mode < TRIANGLES:
            continue
        count = int(accessors[accessor]["count"])
        num_faces += count // 3 if mode == TRIANGLES else max(count - 2, 0)
    return num_faces

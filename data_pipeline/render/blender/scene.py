"""Import an asset into a fresh scene, take its triangles, and bring it into the unit cube."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix
from numpy.typing import NDArray

from data_pipeline.contract import SourceFrame, unit_cube_frame
from data_pipeline.render.blender import gltf_at_rest
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_FACES

SURFACE_TYPES = {"MESH", "CURVE", "SURFACE", "META", "FONT"}
"""Blender's types of objects that can carry a surface."""

OPAQUE_ALPHA = 0.5
"""What is less opaque is no surface to normal, coord, hit and geometry; rgb still blends it."""


def _gltf(path: str) -> set[str]:
    gltf_at_rest.install()
    # Without `disable_bone_shape` the importer adds an icosphere of its own for every armature.
    return bpy.ops.import_scene.gltf(filepath=path, disable_bone_shape=True)


def _usd(path: str) -> set[str]:
    return bpy.ops.wm.usd_import(
        filepath=path,
        import_cameras=False,
        import_lights=False,
        import_guide=False,
        import_proxy=False,
        import_subdiv=False,
        create_world_material=False,
        set_frame_range=False,
    )


def _fbx(path: str) -> set[str]:
    return bpy.ops.import_scene.fbx(filepath=path, use_anim=False)


def _blend(path: str) -> set[str]:
    """Append the objects of the file's first scene: no script, no setting comes in."""
    with bpy.data.libraries.load(path, link=False) as (held, wanted):
        wanted.scenes = held.scenes[:1]
    if not wanted.scenes:
        raise AssetFailure("empty", "the file holds no scene")
    if any(Path(library.filepath) != Path(path) for library in bpy.data.libraries):
        raise AssetFailure("unsupported", "it links to other .blend files")
    for thing in list(wanted.scenes[0].collection.all_objects):
        bpy.context.scene.collection.objects.link(thing)
    bpy.data.scenes.remove(wanted.scenes[0])
    return {"FINISHED"}


IMPORTERS: dict[str, Callable[[str], set[str]]] = {
    ".glb": _gltf,
    ".gltf": _gltf,
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path, validate_meshes=False),
    ".fbx": _fbx,
    ".ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    ".stl": lambda path: bpy.ops.wm.stl_import(filepath=path, use_mesh_validate=False),
    ".usd": _usd,
    ".usda": _usd,
    ".usdc": _usd,
    ".usdz": _usd,
    ".blend": _blend,
    ".dae": lambda path: bpy.ops.wm.collada_import(filepath=path),
}
"""Importer of each file suffix; all of them deliver Blender's frame, Z up.

None validates its meshes where it can be told so: validation turns NaN into 0, and is done here.
"""


@dataclass(frozen=True)
class MeshPart:
    """The triangles of one mesh object, as evaluated: modifiers, skins and instancing applied.

    Args:
        mesh: Blender's own copy of it.
        to_source: `(4, 4)` float64, from the mesh's frame to the source frame (Z up).
        triangles: `(f, 3, 3)` float64, source frame.
        corners: `(f, 3)` int, index of each triangle corner in the per-corner attributes.
        vertices: `(f, 3)` int, index of each triangle corner in the per-vertex attributes.
        material_index: `(f,)` int, into `materials`.
        materials: one material per slot.
        uvs: UV layers by name, `(corners, 2)`; the first is the active one.
        colours: colour attributes by name: domain (`POINT` or `CORNER`) and linear RGBA `(n, 4)`.
        num_vertices: vertices of the mesh.
    """

    mesh: bpy.types.Mesh
    to_source: NDArray[np.float64]
    triangles: NDArray[np.float64]
    corners: NDArray[np.int64]
    vertices: NDArray[np.int64]
    material_index: NDArray[np.int64]
    materials: tuple[bpy.types.Material, ...]
    uvs: dict[str, NDArray[np.float32]]
    colours: dict[str, tuple[str, NDArray[np.float32]]]
    num_vertices: int


def import_asset(path: Path) -> None:
    """Replace whatever is loaded by the asset alone, as the file stores it without any animation.

    The asset's own lights and cameras are removed, and so is what it hides.

    Raises:
        AssetFailure: `unsupported`, `unreadable` or `nonfinite`.
    """
    bpy.ops.wm.read_factory_settings(use_empty=True)
    _trust_nothing()
    importer = IMPORTERS.get(path.suffix.lower())
    if importer is None:
        raise AssetFailure("unsupported", f"no importer for files named *{path.suffix}")
    try:
        result = importer(str(path))
    except RuntimeError as error:  # how Blender's operators report what they could not do
        raise AssetFailure(_import_reason(str(error)), _last_line(str(error))) from error
    if "FINISHED" not in result:
        raise AssetFailure("unreadable", f"Blender's importer gave up on this {path.suffix} file")
    for thing in list(bpy.data.objects):
        if thing.type in {"LIGHT", "CAMERA", "LIGHT_PROBE", "SPEAKER"}:
            bpy.data.objects.remove(thing)
        elif thing.hide_viewport or thing.hide_get():
            # Final renders heed `hide_render` alone; one flag then rules geometry and images.
            thing.hide_render = True
    for mesh in bpy.data.meshes:
        if not np.isfinite(_read(mesh.vertices, "co", 3, np.float32)).all():
            raise AssetFailure("nonfinite", f"mesh {mesh.name!r} has NaN or infinite vertices")
        mesh.validate()
    _refuse_files_outside(path.resolve().parent)
    _drop_animation()
    bpy.context.scene.frame_set(0)


def _trust_nothing() -> None:
    """Set the preferences so that no script of an asset runs and nothing is fetched."""
    preferences = bpy.context.preferences
    preferences.filepaths.use_scripts_auto_execute = False
    preferences.system.use_online_access = False


def _refuse_files_outside(folder: Path) -> None:
    """Raise AssetFailure if an image would be read from outside of the asset's folder."""
    for image in bpy.data.images:
        if image.source in {"FILE", "SEQUENCE", "MOVIE", "TILED"} and not image.packed_files:
            path = Path(bpy.path.abspath(image.filepath or "//"))
            if path.is_file() and not path.resolve().is_relative_to(folder):
                raise AssetFailure("unsupported", f"names a file outside its folder: {path.name}")


def _drop_animation() -> None:
    """Leave every object, bone, shape key and material where the file puts it at rest."""
    for kind in (bpy.data.objects, bpy.data.shape_keys, bpy.data.armatures, bpy.data.materials):
        for thing in kind:
            thing.animation_data_clear()
            tree = getattr(thing, "node_tree", None)
            if tree is not None:
                tree.animation_data_clear()


def _import_reason(error: str) -> str:
    return "unsupported" if "not available on this addon" in error else "unreadable"


def _last_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Location:")]
    return lines[-1] if lines else "Blender's importer failed without a message"


def visible_objects() -> Iterator[bpy.types.Object]:
    """Yield the objects of the scene that can carry a surface and are not hidden."""
    for thing in bpy.context.scene.objects:
        if thing.type in SURFACE_TYPES and not thing.hide_render:
            yield thing


def extract_parts() -> list[MeshPart]:
    """Return every visible object's mesh, as evaluated, in the source frame.

    Raises:
        AssetFailure: `empty`, `too_large` or `nonfinite`.
    """
    depsgraph = bpy.context.evaluated_depsgraph_get()
    parts: list[MeshPart] = []
    num_faces = 0
    for instance in depsgraph.object_instances:
        thing = instance.object
        if thing.type not in SURFACE_TYPES or thing.hide_render:
            continue
        mesh = bpy.data.meshes.new_from_object(
            thing, preserve_all_data_layers=True, depsgraph=depsgraph
        )
        if not len(mesh.polygons):
            bpy.data.meshes.remove(mesh)
            continue
        mesh.calc_loop_triangles()
        num_faces += len(mesh.loop_triangles)
        if num_faces > MAX_FACES:
            raise AssetFailure("too_large", f"more than {MAX_FACES} faces")
        parts.append(_extract(mesh, instance.matrix_world, thing))
    if not parts:
        raise AssetFailure("empty", "the file holds no mesh with faces")
    return parts


def _extract(mesh: bpy.types.Mesh, matrix: Matrix, thing: bpy.types.Object) -> MeshPart:
    to_source = np.array(matrix, dtype=np.float64)
    positions = _read(mesh.vertices, "co", 3, np.float32).astype(np.float64)
    positions = positions @ to_source[:3, :3].T + to_source[:3, 3]
    if not np.isfinite(positions).all():
        raise AssetFailure("nonfinite", f"object {thing.name!r} is transformed to NaN or infinity")
    # A matrix that mirrors turns the winding over, as Blender does: outside stays outside.
    order = [0, 2, 1] if np.linalg.det(to_source[:3, :3]) < 0.0 else [0, 1, 2]
    vertices = _read(mesh.loop_triangles, "vertices", 3, np.int32).astype(np.int64)[:, order]
    corners = _read(mesh.loop_triangles, "loops", 3, np.int32).astype(np.int64)[:, order]
    materials = tuple(slot.material.original for slot in thing.material_slots)
    index = _read(mesh.loop_triangles, "material_index", 1, np.int32)[:, 0].astype(np.int64)
    layers = sorted(mesh.uv_layers, key=lambda layer: not layer.active_render)
    colours = sorted(
        mesh.color_attributes, key=lambda a: a.name != mesh.color_attributes.default_color_name
    )
    return MeshPart(
        mesh=mesh,
        to_source=to_source,
        triangles=positions[vertices],
        corners=corners,
        vertices=vertices,
        material_index=np.clip(index, 0, len(materials) - 1),
        materials=materials,
        uvs={layer.name: _read(layer.uv, "vector", 2, np.float32) for layer in layers},
        colours={a.name: (a.domain, _read(a.data, "color", 4, np.float32)) for a in colours},
        num_vertices=len(mesh.vertices),
    )


def _read(collection: Any, attribute: str, width: int, dtype: type) -> NDArray[Any]:
    flat = np.empty(len(collection) * width, dtype=dtype)
    collection.foreach_get(attribute, flat)
    return flat.reshape(-1, width)


def normalise(parts: list[MeshPart]) -> SourceFrame:
    """Replace the scene by the parts, in the unit cube, and return how they got there.

    The box is that of the triangles: loose vertices and hidden objects do not count. Blender's
    matrices are float32: far from the origin they would lose what float64 keeps here, so each mesh
    is moved to its own centre and gets one matrix of moderate numbers.

    Raises:
        AssetFailure: `empty` when the triangles have no extent.
    """
    corners = np.concatenate([part.triangles.reshape(-1, 3) for part in parts])
    try:
        frame = unit_cube_frame(corners.min(axis=0), corners.max(axis=0))
    except ValueError as error:
        raise AssetFailure("empty", "all vertices lie in one point") from error
    for thing in list(bpy.data.objects):
        bpy.data.objects.remove(thing)
    to_world = np.diag([frame.scale] * 3 + [1.0])
    to_world[:3, 3] = frame.offset
    for part in parts:
        to_own = _centre(part.mesh)
        thing = bpy.data.objects.new("relief_part", part.mesh)
        bpy.context.scene.collection.objects.link(thing)
        for slot, material in zip(thing.material_slots, part.materials, strict=True):
            slot.material = material
        thing.matrix_world = Matrix(to_world @ part.to_source @ to_own)
    return frame


def _centre(mesh: bpy.types.Mesh) -> NDArray[np.float64]:
    """Bring a mesh to its own centre and unit size; return the matrix `(4, 4)` that undoes it."""
    positions = _read(mesh.vertices, "co", 3, np.float32).astype(np.float64)
    low, high = positions.min(axis=0), positions.max(axis=0)
    centre, size = (low + high) / 2.0, max(float((high - low).max()), 1e-30)
    moved = ((positions - centre) / size).astype(np.float32)
    mesh.vertices.foreach_set("co", moved.ravel())
    mesh.update()
    undo = np.diag([size] * 3 + [1.0])
    undo[:3, 3] = centre
    return undo


def missing_textures() -> list[str]:
    """Return the names of images that materials in use show and that cannot be read."""
    missing = set()
    for material in {s.material for o in visible_objects() for s in o.material_slots if s.material}:
        for node in _nodes(material.node_tree, set()) if material.use_nodes else ():
            if node.type == "TEX_IMAGE" and any(out.is_linked for out in node.outputs):
                image = node.image
                if image is None:
                    missing.add(f"an image of {material.name!r}")
                elif not image.size[0]:
                    missing.add(Path(image.filepath.replace("\\", "/")).name or image.name)
    return sorted(missing)


def _nodes(tree: bpy.types.NodeTree | None, met: set[str]) -> Iterator[bpy.types.Node]:
    """Yield the nodes of a tree and of the groups in it, each group once."""
    for node in tree.nodes if tree else ():
        yield node
        if node.type == "GROUP" and node.node_tree and node.node_tree.name not in met:
            met.add(node.node_tree.name)
            yield from _nodes(node.node_tree, met)

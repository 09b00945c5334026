"""Meshes in the world frame (Z up): those loaded, those rebuilt, and how both look at a point."""

import pathlib
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import trimesh
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from trimesh.visual.color import to_float
from trimesh.visual.material import SimpleMaterial

from data_pipeline.contract import SourceFrame, UserError, linear_to_srgb, srgb_to_linear
from modules.geometry.mesh_file import to_glb, to_obj, to_ply, write_files

WRITTEN_SUFFIXES = (".glb", ".obj", ".ply")
"""What `save_mesh` writes."""

Y_UP_SUFFIXES = (".glb", ".gltf", ".obj")
"""Files whose up is +Y: glTF by its standard, OBJ as Blender reads and writes it."""

LINEAR_COLOUR_SUFFIXES = (".glb", ".gltf")
"""Files whose vertex colours are linear, by their standard; in others they are sRGB."""


@runtime_checkable
class Mesh(Protocol):
    """What rasterisation, sampling and metrics need of a mesh."""

    @property
    def vertices(self) -> Float[ndarray, "n 3"]:
        """Positions."""
        ...

    @property
    def faces(self) -> Int[ndarray, "f 3"]:
        """Vertex indices, counter-clockwise seen from outside."""
        ...

    @property
    def corner_uv(self) -> Float[ndarray, "f 3 2"]:
        """Texture coordinates of every face corner, v up; 0 where there are none."""
        ...

    @property
    def face_texture(self) -> Int[ndarray, " f"]:
        """Index of each face's texture, -1 where untextured."""
        ...

    def normals_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return unit shading normals at points on faces."""
        ...

    def colours_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB base colours in [0, 1] at points on faces."""
        ...


@dataclass(frozen=True)
class ColoredMesh:
    """A mesh as an artist made it: any number of textures, colours and hard edges, baked to world.

    Args:
        vertices: world positions.
        faces: vertex indices, counter-clockwise seen from outside.
        corner_normals: unit normal of every face corner (hard edges keep theirs).
        corner_uv: texture coordinates of every face corner, v up; 0 where there are none.
        corner_tint: linear colour that multiplies the texture, at every face corner.
        face_texture: index into `textures`, -1 where untextured.
        textures: sRGB images, 8 bit.
    """

    vertices: Float[ndarray, "n 3"]
    faces: Int[ndarray, "f 3"]
    corner_normals: Float[ndarray, "f 3 3"]
    corner_uv: Float[ndarray, "f 3 2"]
    corner_tint: Float[ndarray, "f 3 3"]
    face_texture: Int[ndarray, " f"]
    textures: tuple[ndarray, ...]

    def normals_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return unit shading normals at points on faces."""
        return _unit(np.einsum("pk,pkc->pc", barycentric, self.corner_normals[face]))

    def colours_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB base colours in [0, 1] at points on faces."""
        linear = np.einsum("pk,pkc->pc", barycentric, self.corner_tint[face])
        uv = np.einsum("pk,pkc->pc", barycentric, self.corner_uv[face])
        for index, texture in enumerate(self.textures):
            here = self.face_texture[face] == index
            linear[here] *= srgb_to_linear(sample_texture(texture, uv[here]))
        return np.clip(linear_to_srgb(linear), 0.0, 1.0)

    def transformed(self, frame: SourceFrame) -> "ColoredMesh":
        """Return the mesh moved into the world frame of `frame` (a uniform scale and a shift)."""
        return ColoredMesh(
            **{**self.__dict__, "vertices": frame.to_world(self.vertices)},
        )


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh with one texture: what a rebuild or the texturing of a given mesh gives.

    Args:
        vertices: world positions; vertices on a texture seam appear once per chart.
        faces: vertex indices, counter-clockwise seen from outside.
        uv: texture coordinates in [0, 1]; (0, 0) is the image's bottom left corner.
        texture: sRGB image, row 0 on top.
        normals: unit vertex normals; None for smooth ones.
    """

    vertices: Float[ndarray, "n 3"]
    faces: Int[ndarray, "f 3"]
    uv: Float[ndarray, "n 2"]
    texture: UInt8[ndarray, "th tw 3"]
    normals: Float[ndarray, "n 3"] | None = None

    @property
    def vertex_normals(self) -> Float[ndarray, "n 3"]:
        """Unit normals; smooth ones are equal on both sides of a texture seam."""
        if self.normals is not None:
            return self.normals
        return smooth_normals(self.vertices, self.faces)

    @property
    def corner_uv(self) -> Float[ndarray, "f 3 2"]:
        """Texture coordinates of every face corner, v up."""
        return self.uv[self.faces]

    @property
    def face_texture(self) -> Int[ndarray, " f"]:
        """Index of each face's texture: there is one."""
        return np.zeros(len(self.faces), dtype=np.int64)

    def normals_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return unit shading normals at points on faces."""
        corners = self.vertex_normals[self.faces[face]]
        return _unit(np.einsum("pk,pkc->pc", barycentric, corners))

    def colours_at(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB base colours in [0, 1] at points on faces."""
        uv = np.einsum("pk,pkc->pc", barycentric, self.uv[self.faces[face]])
        return sample_texture(self.texture, uv)


def smooth_normals(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]
) -> Float[ndarray, "n 3"]:
    """Return unit vertex normals, weighted by corner angle; vertices at one position share theirs.

    A vertex without any face of positive area gets +Z, so that every normal is of unit length.
    """
    _, merged = np.unique(vertices, axis=0, return_inverse=True)
    merged = merged.reshape(-1)
    corners = vertices[faces]
    normal = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    total = np.zeros((int(merged.max(initial=-1)) + 1, 3))
    for corner in range(3):
        to_next = _unit(corners[:, (corner + 1) % 3] - corners[:, corner])
        to_last = _unit(corners[:, (corner + 2) % 3] - corners[:, corner])
        angle = np.arccos(np.clip((to_next * to_last).sum(axis=1), -1.0, 1.0))
        for axis in range(3):
            index = merged[faces[:, corner]]
            total[:, axis] += np.bincount(index, angle * normal[:, axis], minlength=len(total))
    lost = np.linalg.norm(total, axis=1) < 1e-12
    total[lost] = (0.0, 0.0, 1.0)
    return _unit(total)[merged]


def sample_texture(
    texture: UInt8[ndarray, "th tw 3"], uv: Float[ndarray, "p 2"]
) -> Float[ndarray, "p 3"]:
    """Return bilinear sRGB samples in [0, 1]; the texture repeats, texel centres lie at +0.5."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1.0 - uv[:, 1]) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    row0, row1, col0, col1 = y0 % height, (y0 + 1) % height, x0 % width, (x0 + 1) % width
    top = texture[row0, col0] * (1 - fx) + texture[row0, col1] * fx
    bottom = texture[row1, col0] * (1 - fx) + texture[row1, col1] * fx
    return (top * (1 - fy) + bottom * fy) / 255.0


def save_mesh(
    mesh: TexturedMesh,
    path: pathlib.Path,
    frame: SourceFrame | None = None,
    extras: dict | None = None,
    *,
    texture_format: str = "png",
    credit: str | None = None,
) -> None:
    """Write a mesh as .glb, .obj (with .mtl and texture beside it) or .ply (colours per vertex).

    Args:
        mesh: the mesh, in world coordinates.
        path: where to; the suffix names the format. A GLB appears complete or not at all.
        frame: if given, the file is in the source frame rather than in world units. A GLB's
            vertices stay in world units and its node moves them there: float32 positions far from
            the origin would fall together.
        extras: kept in a GLB as extras of the scene, else as a comment (JSON values only).
        texture_format: `png` or `jpeg`.
        credit: who is to be named: a GLB keeps it as its copyright.

    Raises:
        UserError: the suffix is not known or the file cannot be written.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    vertices, normals, node = mesh.vertices, mesh.vertex_normals, {}
    if frame is not None and suffix == ".glb":
        origin = _z_up_to_y_up(frame.to_source(np.zeros((1, 3))))[0]
        node = {"translation": origin.tolist(), "scale": [1.0 / frame.scale] * 3}
    elif frame is not None:
        vertices = frame.to_source(vertices)
    if suffix in Y_UP_SUFFIXES:
        vertices, normals = _z_up_to_y_up(vertices), _z_up_to_y_up(normals)
    textured = vertices, normals, mesh.faces, mesh.uv, mesh.texture
    made: dict[str, Any] = {"texture_format": texture_format, "extras": extras}
    if suffix == ".glb":
        files = {path: to_glb(*textured, **made, node=node, credit=credit)}
    elif suffix == ".obj":
        files = to_obj(path, *textured, **made)
    elif suffix == ".ply":
        colours = sample_texture(mesh.texture, mesh.uv)
        files = {path: to_ply(vertices, normals, colours, mesh.faces, extras)}
    else:
        raise UserError(
            f"cannot write {path}: suffix {suffix!r} is none of {', '.join(WRITTEN_SUFFIXES)}"
        )
    write_files(files)


def load_mesh(path: pathlib.Path) -> ColoredMesh:
    """Load any mesh file that trimesh reads, as one mesh in its own frame turned Z up.

    The whole scene is baked: node transforms, base colour textures and factors, vertex colours.
    Transparency is ignored. Corners without a stored normal get the flat normal of their face.

    Raises:
        UserError: the file is missing, unreadable, or holds no faces or non-finite vertices.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        advice = "it is a folder, name a file in it" if path.is_dir() else "check the path"
        raise UserError(f"no mesh file at {path}: {advice}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: export it again")
    if path.suffix.lower().lstrip(".") not in trimesh.available_formats():
        raise UserError(f"{path} is of no known mesh format: give a GLB, OBJ, PLY, STL or the like")
    try:
        scene = trimesh.load_scene(path, process=False)
    # trimesh hands on whatever its many parsers raise; all of it means "not a readable mesh".
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"cannot read {path} as a mesh ({reason}): export it again") from error
    parts = []
    textures: list[ndarray] = []
    for node in sorted(scene.graph.nodes_geometry):
        matrix, name = scene.graph[node]
        geometry = scene.geometry[name]
        if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces):
            linear = path.suffix.lower() in LINEAR_COLOUR_SUFFIXES
            parts.append(_bake(geometry, np.asarray(matrix, dtype=np.float64), textures, linear))
    if not parts:
        raise UserError(f"{path} holds no faces: give a file with a triangle mesh")
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    mesh = ColoredMesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate(
            [part.faces + int(n) for part, n in zip(parts, offsets, strict=False)]
        ),
        corner_normals=np.concatenate([part.corner_normals for part in parts]),
        corner_uv=np.concatenate([part.corner_uv for part in parts]),
        corner_tint=np.concatenate([part.corner_tint for part in parts]),
        face_texture=np.concatenate([part.face_texture for part in parts]),
        textures=tuple(textures),
    )
    if not np.isfinite(mesh.vertices).all():
        raise UserError(f"{path} holds non-finite vertices: repair it in a modelling tool")
    if path.suffix.lower() not in Y_UP_SUFFIXES:
        return mesh
    turned = {key: _y_up_to_z_up(getattr(mesh, key)) for key in ("vertices", "corner_normals")}
    return ColoredMesh(**{**mesh.__dict__, **turned})


def _bake(
    geometry: trimesh.Trimesh,
    matrix: Float[ndarray, "4 4"],
    textures: list[ndarray],
    linear_colours: bool,
) -> ColoredMesh:
    """Return one part of a scene in the scene's frame; its texture is appended to `textures`."""
    linear = matrix[:3, :3]
    faces = np.asarray(geometry.faces, dtype=np.int64)
    vertices = np.asarray(geometry.vertices, dtype=np.float64) @ linear.T + matrix[:3, 3]
    if np.linalg.det(linear) < 0:  # a mirroring node turns faces inside out
        faces = faces[:, ::-1]
    corners = vertices[faces]
    flat = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    normals = np.repeat(flat[:, None], 3, axis=1)
    if "vertex_normals" in geometry._cache:  # stored in the file; trimesh would invent smooth ones
        stored = np.asarray(geometry.vertex_normals, dtype=np.float64)
        stored = _unit(stored @ np.linalg.inv(linear) if np.linalg.det(linear) else stored)[faces]
        normals = np.where(np.linalg.norm(stored, axis=-1, keepdims=True) > 0.5, stored, normals)
    uv, tint, texture = _appearance(geometry, faces, linear_colours)
    index = -1
    if texture is not None:
        index = len(textures)
        textures.append(texture)
    return ColoredMesh(
        vertices=vertices,
        faces=faces,
        corner_normals=normals,
        corner_uv=uv,
        corner_tint=tint,
        face_texture=np.full(len(faces), index),
        textures=(),
    )


def _appearance(
    geometry: trimesh.Trimesh, faces: Int[ndarray, "f 3"], linear_colours: bool
) -> tuple[Float[ndarray, "f 3 2"], Float[ndarray, "f 3 3"], ndarray | None]:
    """Return corner uv, linear corner tint, and the texture (or None) of one part."""
    uv, tint = np.zeros((*faces.shape, 2)), np.ones((*faces.shape, 3))
    visual: Any = geometry.visual
    if visual.kind == "texture":
        material = visual.material
        if isinstance(material, SimpleMaterial):  # OBJ
            material = material.to_pbr()
        if material.baseColorFactor is not None:
            tint = tint * np.asarray(material.baseColorFactor[:3], dtype=np.float64) / 255.0
        if "color" in visual.vertex_attributes:  # glTF's COLOR_0 is linear and multiplies
            colours = to_float(visual.vertex_attributes["color"])
            tint = tint * colours[faces][..., :3]
        if visual.uv is not None:
            uv = np.asarray(visual.uv, dtype=np.float64)[faces]
            if material.baseColorTexture is not None:
                return uv, tint, np.asarray(material.baseColorTexture.convert("RGB"))
    elif visual.kind == "vertex":
        colours = visual.vertex_colors[faces][..., :3] / 255.0
        tint = colours if linear_colours else srgb_to_linear(colours)
    elif visual.kind == "face":
        tint = np.repeat(srgb_to_linear(visual.face_colors[:, None, :3] / 255.0), 3, axis=1)
    return uv, tint, None


def merge_vertices(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "f 3"]]:
    """Return the mesh with vertices of equal position made one (undoes texture seams)."""
    unique, index = np.unique(vertices, axis=0, return_inverse=True)
    return unique, index.reshape(-1)[faces]


def _unit(vectors: Float[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    """Return vectors scaled to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def _y_up_to_z_up(vectors: Float[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    return np.stack([vectors[..., 0], -vectors[..., 2], vectors[..., 1]], axis=-1)


def _z_up_to_y_up(vectors: Float[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    return np.stack([vectors[..., 0], vectors[..., 2], -vectors[..., 1]], axis=-1)

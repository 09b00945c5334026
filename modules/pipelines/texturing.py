"""Texturing a given mesh: its own normal and coord images are held, and rgb is baked onto it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from data_pipeline.contract import Camera, SourceFrame, UserError, unit_cube_frame
from modules.geometry.atlas import Atlas, unwrap
from modules.geometry.colour_field import ColourField
from modules.geometry.lift import Observation, lift
from modules.geometry.mesh import ColoredMesh, TexturedMesh, load_mesh, merge_vertices
from modules.geometry.rasterize import render_mesh
from modules.geometry.texture import BakeSettings, bake
from modules.metrics.uv_quality import uv_quality
from modules.pipelines.reconstruction import check_images

MAX_GIVEN_FACES = 1_000_000

MOST_OVERLAP, LEAST_COVERAGE = 0.01, 0.05
"""Of texture coordinates that are kept, as shares: of what they cover, and of the texture."""

MOST_STARVED, STARVED_DENSITY = 0.01, 0.02
"""At most this share of the surface may have less than this share of the mean texels per area."""

ORIENTATION_PX = 256
"""Side of the views that tell which side of a face is seen."""


class GivenMesh:
    """A mesh to be textured, moved into the unit cube; its shape and normals stay as they are.

    Args:
        mesh: in its own frame, Z up.
        device: where the baking runs.

    Raises:
        UserError: the mesh has too many faces or no extent.
    """

    def __init__(self, mesh: ColoredMesh, device: torch.device | str = "cpu") -> None:
        self.device = device
        if len(mesh.faces) > MAX_GIVEN_FACES:
            raise UserError(
                f"the mesh has {len(mesh.faces)} faces, at most {MAX_GIVEN_FACES} can be textured: "
                "simplify it first"
            )
        used = mesh.vertices[mesh.faces].reshape(-1, 3)
        low, high = used.min(axis=0), used.max(axis=0)
        if not (high - low).max() > 0.0:
            raise UserError(
                "all vertices of the mesh lie at one point: there is nothing to texture"
            )
        self.frame: SourceFrame = unit_cube_frame(low, high)
        self.mesh = mesh.transformed(self.frame)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "GivenMesh":
        """Load any mesh file that `load_mesh` reads.

        Args:
            path: the file.
            device: where the baking runs.

        Raises:
            UserError: the file is missing, unreadable or empty, or the mesh cannot be textured.
        """
        return cls(load_mesh(path), device)

    def geometry(
        self, cameras: Sequence[Camera], resolution_px: int
    ) -> tuple[Float[Tensor, "m v 3 h w"], Bool[Tensor, "v h w"]]:
        """Return the mesh's 2.5D images in [-1, 1] as a renderer makes them, and their foreground.

        Its present colours are the rgb.
        """
        views = render_mesh(self.mesh, cameras, resolution_px)
        stack = np.stack([views.rgb * 2.0 - 1.0, views.normal, views.coord * 2.0])
        images = np.moveaxis(stack, -1, 2).astype(np.float32)
        return torch.from_numpy(images), torch.from_numpy(views.hit)

    def lift(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
    ) -> Observation:
        """Return the points of the mesh that the views show, coloured by the images' rgb.

        Args:
            images: of which only rgb is read.
            cameras: one per view.
            hit: not read: the mesh's own foreground is exact.

        Raises:
            UserError: the images are not as models make them, or no view shows the mesh.
        """
        check_images(images, cameras)
        own, foreground = self.geometry(cameras, images.shape[-1])
        both = torch.cat([images[:1].cpu(), own[1:]]).double().numpy()
        observation = lift(both, cameras, foreground.numpy())
        if not len(observation.position):
            raise UserError(
                "no view shows the mesh: it is thinner than a pixel; give a mesh with some width"
            )
        return observation

    def __call__(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
        *,
        grid: int = 0,
        texture_px: int = 512,
        refine_steps: int = 0,
    ) -> TexturedMesh:
        """Return the mesh with the images' rgb as its texture, in the world frame.

        Texture coordinates are kept if they can hold a texture: inside the unit square, without
        overlap, with room for every face. Else an atlas is made.

        Args:
            images: of which only rgb is read.
            cameras: one per view.
            hit: not read: the mesh's own foreground is exact.
            grid: not read: nothing is rebuilt.
            texture_px: side of the texture.
            refine_steps: must be 0: the shape stays.

        Raises:
            UserError: `lift` refuses the images, or refine_steps is given.
        """
        if refine_steps:
            raise UserError("refine_steps moves vertices, but a given mesh keeps its shape")
        observation = self.lift(images, cameras, hit)
        mesh = self.mesh
        vertices, faces = merge_vertices(mesh.vertices, mesh.faces)
        corner_uv = mesh.corner_uv
        if not has_usable_uv(mesh):
            atlas = unwrap(vertices, faces, texture_px)
            corner_uv = atlas.uv[atlas.faces]
        normals = _sound_normals(mesh)
        source, split, uv, vertex_normals = split_corners(faces, corner_uv, normals)
        seen_side = np.where(seen_from_behind(mesh, cameras), -1.0, 1.0)
        outwards = np.zeros_like(vertex_normals)
        outwards[split] = normals * seen_side[:, None, None]
        texture = bake(
            vertices[source],
            Atlas(source=source, faces=split, uv=uv),
            outwards,
            observation,
            0.0,
            ColourField(observation, observation.spacing),
            BakeSettings(resolution_px=texture_px),
            self.device,
        )
        return TexturedMesh(
            vertices[source], split, uv.astype(np.float32), texture, normals=vertex_normals
        )


def has_usable_uv(mesh: ColoredMesh) -> bool:
    """Return whether a mesh's texture coordinates give every face a place of its own."""
    uv = mesh.corner_uv
    if not np.isfinite(uv).all() or uv.min() < -1e-4 or uv.max() > 1.0 + 1e-4:
        return False
    one_texture = replace(mesh, face_texture=np.zeros(len(mesh.faces), dtype=np.int64))
    quality = uv_quality(one_texture)
    if not (quality["uv_coverage"] >= LEAST_COVERAGE and quality["uv_overlap"] <= MOST_OVERLAP):
        return False
    (ux, uy), (vx, vy) = ((uv[:, k] - uv[:, 0]).T for k in (1, 2))
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    area, texels = np.linalg.norm(np.cross(b - a, c - a), axis=1), np.abs(ux * vy - uy * vx)
    starved = texels * area.sum() < STARVED_DENSITY * texels.sum() * area
    return bool(area[starved].sum() <= MOST_STARVED * area.sum())


def split_corners(
    faces: Int[ndarray, "f 3"],
    corner_uv: Float[ndarray, "f 3 2"],
    corner_normals: Float[ndarray, "f 3 3"],
) -> tuple[Int[ndarray, " n"], Int[ndarray, "f 3"], Float[ndarray, "n 2"], Float[ndarray, "n 3"]]:
    """Return a vertex for every different corner: its source, the faces, its uv and its normal.

    Args:
        faces: vertex indices.
        corner_uv: texture coordinates of every corner.
        corner_normals: unit normals of every corner.
    """
    rows = np.concatenate(
        [faces.reshape(-1, 1), corner_uv.reshape(-1, 2), corner_normals.reshape(-1, 3)], axis=1
    )
    _, first, index = np.unique(rows.round(6), axis=0, return_index=True, return_inverse=True)
    kept = rows[first]
    return kept[:, 0].astype(np.int64), index.reshape(faces.shape), kept[:, 1:3], kept[:, 3:]


def seen_from_behind(mesh: ColoredMesh, cameras: Sequence[Camera]) -> Bool[ndarray, " f"]:
    """Return which faces the views show from behind more than from the front."""
    face = render_mesh(mesh, cameras, ORIENTATION_PX).face
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    balance = np.zeros(len(mesh.faces))
    for view, camera in enumerate(cameras):
        seen = face[view] >= 0
        direction = camera.rays(ORIENTATION_PX)[1][seen]
        facing = -(normal[face[view][seen]] * direction).sum(axis=1)
        balance += np.bincount(face[view][seen], np.sign(facing), minlength=len(balance))
    return balance < 0


def _sound_normals(mesh: ColoredMesh) -> Float[ndarray, "f 3 3"]:
    """Return the corners' normals, with +Z for those that a face without area lacks."""
    length = np.linalg.norm(mesh.corner_normals, axis=-1, keepdims=True)
    return np.where(length > 0.5, mesh.corner_normals, [0.0, 0.0, 1.0])

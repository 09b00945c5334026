"""Meshes and 2.5D images of simple bodies, for the tests of geometry."""

import numpy as np
import trimesh
from scipy import ndimage

from data_pipeline.contract import view_layout
from modules.geometry.mesh import ColoredMesh
from modules.geometry.rasterize import Views, render_mesh

ORTHO6 = view_layout("ortho6")


def colored(body: trimesh.Trimesh, colours: np.ndarray | None = None) -> ColoredMesh:
    """Return a body as a mesh with smooth normals and linear colours per vertex (else grey)."""
    faces = np.asarray(body.faces, np.int64)
    tint = np.full((len(body.vertices), 3), 0.5) if colours is None else colours
    return ColoredMesh(
        vertices=np.asarray(body.vertices, np.float64),
        faces=faces,
        corner_normals=np.asarray(body.vertex_normals)[faces],
        corner_uv=np.zeros((len(faces), 3, 2)),
        corner_tint=tint[faces],
        face_texture=np.full(len(faces), -1),
        textures=(),
    )


def flat_colored(body: trimesh.Trimesh, colours: np.ndarray | None = None) -> ColoredMesh:
    """Return a body with hard edges and linear colours per face (else grey)."""
    body = body.copy()
    body.unmerge_vertices()
    return colored(body, None if colours is None else np.repeat(colours, 3, axis=0))


def sphere(radius: float = 0.4) -> ColoredMesh:
    return colored(trimesh.creation.icosphere(subdivisions=5, radius=radius))


def bowl() -> ColoredMesh:
    """A bowl that is open upwards: outer radius 0.45, wall 0.06."""
    outer = np.linspace(-np.pi / 2, 0, 24)
    profile = np.concatenate(
        [
            0.45 * np.stack([np.cos(outer), np.sin(outer)], axis=1),
            0.39 * np.stack([np.cos(outer), np.sin(outer)], axis=1)[::-1],
        ]
    )
    profile[0, 0] = profile[-1, 0] = 0.0
    body = trimesh.creation.revolve(profile, sections=64)
    body.fix_normals()
    return flat_colored(body)


def to_images(views: Views) -> np.ndarray:
    """Return rgb, normal and coord as networks take them: (m, v, 3, h, w) in [-1, 1]."""
    stack = np.stack([views.rgb * 2.0 - 1.0, views.normal, views.coord * 2.0])
    return np.moveaxis(stack, -1, 2).astype(np.float32)


def observe(mesh: ColoredMesh, resolution_px: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return images and foreground of a mesh seen by ortho6."""
    views = render_mesh(mesh, ORTHO6, resolution_px)
    return to_images(views), views.hit


def blurred(images: np.ndarray, pixels: float = 0.7) -> np.ndarray:
    """Return images whose normals and coords are blurred over outlines, as decoders leave them."""
    spread = images.copy()
    spread[1:] = ndimage.gaussian_filter(images[1:], (0, 0, 0, pixels, pixels))
    return spread

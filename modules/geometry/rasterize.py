"""Views of a mesh by casting one ray through every pixel centre, with Embree on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32, Int, Int32
from numpy import ndarray

from data_pipeline.contract import Camera
from modules.geometry.mesh import Mesh


@dataclass(frozen=True)
class Views:
    """What the pixel centres of some views see.

    Args:
        hit: whether the ray through the pixel centre meets the surface.
        coord: world position; 0 where nothing is hit.
        normal: unit world shading normal turned towards the camera; 0 where nothing is hit.
        rgb: sRGB base colour in [0, 1]; white where nothing is hit.
        face: index of the face, -1 where nothing is hit.
    """

    hit: Bool[ndarray, "v h w"]
    coord: Float[ndarray, "v h w 3"]
    normal: Float[ndarray, "v h w 3"]
    rgb: Float[ndarray, "v h w 3"]
    face: Int[ndarray, "v h w"]


class RayScene:
    """A triangle soup that answers ray queries; reusable, unlike a one-off `render_mesh`."""

    def __init__(self, vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]) -> None:
        self.corners = vertices[faces]
        self._scene = EmbreeScene()
        # Keep the geometry alive: the scene holds no reference to it.
        self._geometry = TriangleMesh(
            self._scene, vertices.astype(np.float32), faces.astype(np.int32)
        )

    def first_face(
        self, origins: Float[ndarray, "p 3"], directions: Float[ndarray, "p 3"]
    ) -> Int[ndarray, " p"]:
        """Return the first face along each ray; -1 where there is none."""
        return self._scene.run(
            np.ascontiguousarray(origins, dtype=np.float32),
            np.ascontiguousarray(directions, dtype=np.float32),
        ).astype(np.int64)

    def intersect(
        self, origins: Float32[ndarray, "p 3"], directions: Float32[ndarray, "p 3"]
    ) -> tuple[Int32[ndarray, " p"], Float32[ndarray, " p"], Float32[ndarray, " p"]]:
        """Return the first face (-1: none) and the weights of its corners 1 and 2 (0 without face).

        Embree's own float32 figures, nothing copied: the quickest query. The weights place the hit
        to about 1e-7 of its distance from the ray's origin; `first_hit` is exact.
        """
        found = self._scene.run(origins, directions, output=1)
        return found["primID"], found["u"], found["v"]

    def escapes(
        self, origins: Float[ndarray, "p 3"], directions: Float[ndarray, "p 3"]
    ) -> Bool[ndarray, " p"]:
        """Return which rays meet no face: half the work of `first_face`, for any hit ends a ray."""
        occluded = self._scene.run(
            np.ascontiguousarray(origins, dtype=np.float32),
            np.ascontiguousarray(directions, dtype=np.float32),
            query="OCCLUDED",
        )
        return occluded < 0

    def first_hit(
        self, origins: Float[ndarray, "p 3"], directions: Float[ndarray, "p 3"]
    ) -> tuple[Int[ndarray, " p"], Float[ndarray, "p 3"]]:
        """Return the first face along each ray (-1: none) and the hit's barycentric coordinates.

        Embree finds the face in float32; the point is then computed in float64 on its plane.
        """
        face = self.first_face(origins, directions)
        a, b, c = (self.corners[face, corner] for corner in range(3))
        ab, ac = b - a, c - a
        p = np.cross(directions, ac)
        determinant = (ab * p).sum(axis=1)
        determinant = np.where(np.abs(determinant) > 1e-300, determinant, 1e-300)
        s = origins - a
        u = (s * p).sum(axis=1) / determinant
        v = (directions * np.cross(s, ab)).sum(axis=1) / determinant
        barycentric = np.clip(np.stack([1.0 - u - v, u, v], axis=1), 0.0, 1.0)
        barycentric /= np.maximum(barycentric.sum(axis=1, keepdims=True), 1e-12)
        return face, barycentric

    def positions(
        self, face: Int[ndarray, " p"], barycentric: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return the world points with these barycentric coordinates."""
        return np.einsum("pk,pkc->pc", barycentric, self.corners[face])


def render_mesh(mesh: Mesh, cameras: Sequence[Camera], resolution_px: int) -> Views:
    """Return the views of a mesh, unlit: one exact sample at every pixel centre.

    Args:
        mesh: the mesh, in world coordinates.
        cameras: the views, orthographic or perspective.
        resolution_px: side of the square images.
    """
    scene = RayScene(mesh.vertices, mesh.faces)
    rays = [camera.rays(resolution_px) for camera in cameras]
    origins = np.concatenate([ray[0].reshape(-1, 3) for ray in rays])
    directions = np.concatenate([ray[1].reshape(-1, 3) for ray in rays])
    face, barycentric = scene.first_hit(origins, directions)
    hit = face >= 0
    coord, normal = np.zeros_like(origins), np.zeros_like(origins)
    rgb = np.ones_like(origins)
    seen, where = face[hit], barycentric[hit]
    coord[hit] = scene.positions(seen, where)
    shading = mesh.normals_at(seen, where)
    # Where smooth normals cancel out, the face's own normal stands in: every hit has a unit normal.
    corners = scene.corners[seen]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    shading = np.where(np.linalg.norm(shading, axis=1, keepdims=True) > 0.5, shading, flat)
    away = (shading * directions[hit]).sum(axis=1, keepdims=True) > 0
    normal[hit] = np.where(away, -shading, shading)
    rgb[hit] = mesh.colours_at(seen, where)
    image = (len(cameras), resolution_px, resolution_px)
    return Views(
        hit=hit.reshape(image),
        coord=coord.reshape(*image, 3),
        normal=normal.reshape(*image, 3),
        rgb=rgb.reshape(*image, 3),
        face=face.reshape(image),
    )

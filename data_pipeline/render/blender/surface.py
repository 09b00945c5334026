"""The asset as one triangle soup, and points sampled on it by area."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mathutils.bvhtree import BVHTree
from numpy.typing import NDArray

from data_pipeline.contract import SourceFrame, linear_to_srgb
from data_pipeline.render.blender.node_colours import ImageCache, SurfaceShader
from data_pipeline.render.blender.scene import OPAQUE_ALPHA, MeshPart
from data_pipeline.render.failures import AssetFailure

MAX_ROUNDS = 16
"""Draws before a surface that is nearly all transparent is given up as such."""


@dataclass(frozen=True)
class SurfaceSamples:
    """Points on the opaque surface.

    Args:
        position: `(n, 3)` float32, world.
        normal: `(n, 3)` float32, unit, the triangle's geometric normal (as wound in the file).
        albedo: `(n, 3)` uint8, sRGB.
        unsupported: kinds of shader nodes that `node_colours` does not know.
    """

    position: NDArray[np.float32]
    normal: NDArray[np.float32]
    albedo: NDArray[np.uint8]
    unsupported: tuple[str, ...]


class Surface:
    """Triangles of all parts in world coordinates, with colour look-up.

    Args:
        parts: as `extract_parts` gives them, after `show_base_colours`.
        frame: brings their source frame into the unit cube.
    """

    def __init__(self, parts: list[MeshPart], frame: SourceFrame):
        self._parts, self._images = parts, ImageCache()
        soup = frame.to_world(np.concatenate([part.triangles for part in parts]))
        cross = np.cross(soup[:, 1] - soup[:, 0], soup[:, 2] - soup[:, 0])
        double_area = np.linalg.norm(cross, axis=1)
        solid = double_area > 1e-14
        if not solid.any():
            raise AssetFailure("empty", "no face has any area")
        self.triangles: NDArray[np.float64] = soup[solid]
        self.areas: NDArray[np.float64] = double_area[solid] / 2.0
        self._normals = cross[solid] / double_area[solid, None]
        counts = [len(part.triangles) for part in parts]
        self._part = np.repeat(np.arange(len(parts)), counts)[solid]
        self._local = np.concatenate([np.arange(count) for count in counts])[solid]

    @property
    def box(self) -> NDArray[np.float64]:
        """Lowest and highest corner, `(2, 3)`, world."""
        corners = self.triangles.reshape(-1, 3)
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    def face_normals(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the geometric normals `(n, 3)` of the faces nearest to `points` `(n, 3)`."""
        find = self._tree.find_nearest
        return self._normals[[find(point)[2] for point in points.tolist()]]

    @cached_property
    def _tree(self) -> BVHTree:
        return build_tree(self.triangles)

    def sample(self, count: int, rng: np.random.Generator) -> SurfaceSamples:
        """Draw `count` points by area; texels less opaque than `OPAQUE_ALPHA` are no surface.

        Raises:
            AssetFailure: `blank` when (nearly) the whole surface is transparent.
        """
        chosen: list[tuple[NDArray, ...]] = []
        unsupported: set[str] = set()
        found = 0
        for _ in range(MAX_ROUNDS):
            triangle, weights = self._draw(count, rng)
            colour, alpha, unknown = self.shade(triangle, weights)
            keep = alpha >= OPAQUE_ALPHA
            unsupported |= unknown
            chosen.append((triangle[keep], weights[keep], colour[keep]))
            found += int(keep.sum())
            if found >= count:
                break
        else:
            raise AssetFailure("blank", "its materials are transparent")
        triangle, weights, colour = (
            np.concatenate(rows)[:count] for rows in zip(*chosen, strict=True)
        )
        position = (self.triangles[triangle] * weights[..., None]).sum(axis=1)
        return SurfaceSamples(
            position=position.astype(np.float32),
            normal=self._normals[triangle].astype(np.float32),
            albedo=np.rint(np.clip(linear_to_srgb(colour), 0.0, 1.0) * 255.0).astype(np.uint8),
            unsupported=tuple(sorted(unsupported)),
        )

    def _draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return triangles and barycentric weights, uniform over the area.

        Stratified along the list of triangles: the share of each is exact to one point. Shuffled,
        so that a part of the samples is as good a sampling as the whole.
        """
        total = np.cumsum(self.areas)
        place = (np.arange(count) + rng.random(count)) / count * total[-1]
        triangle = np.minimum(np.searchsorted(total, place, side="right"), len(total) - 1)
        rng.shuffle(triangle)
        root, other = np.sqrt(rng.random(count)), rng.random(count)
        weights = np.stack([1.0 - root, root * (1.0 - other), root * other], axis=1)
        return triangle, weights

    def shade(
        self, triangle: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], set[str]]:
        """Return linear colours `(n, 3)`, alphas `(n,)`, and the node kinds that are not known."""
        colour, alpha = np.zeros((len(triangle), 3)), np.ones(len(triangle))
        unsupported: set[str] = set()
        part_of, local = self._part[triangle], self._local[triangle]
        for index in np.unique(part_of):
            part = self._parts[index]
            of_part = np.flatnonzero(part_of == index)
            slots = part.material_index[local[of_part]]
            for slot in np.unique(slots):
                rows = of_part[slots == slot]
                shader = SurfaceShader(part, local[rows], weights[rows], self._images)
                colour[rows], alpha[rows] = shader.shade(part.materials[slot])
                unsupported |= shader.unsupported
        return colour, alpha, unsupported


def build_tree(triangles: NDArray[np.float64]) -> BVHTree:
    """Return Blender's search tree over triangles `(f, 3, 3)`."""
    corners = np.arange(3 * len(triangles)).reshape(-1, 3)
    return BVHTree.FromPolygons(
        triangles.reshape(-1, 3).tolist(), corners.tolist(), all_triangles=True
    )

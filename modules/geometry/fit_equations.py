"""The equations of the fit: what 2.5D images ask of a mesh's vertices, linear in their moves."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import coo_array, csr_array

from modules.geometry.cameras import project_inside, ray_per_depth
from modules.geometry.lift import Observation
from modules.geometry.nearest_pixel import nearest_pixel
from modules.geometry.rasterizer_embree import EmbreeRasterizer
from modules.geometry.view_noise import LARGEST_RADIUS

LEAST_ALIKE = 0.7
"""Cosine between normals of what may be one surface in two views."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What counts how much. Lengths are in pixel spacings, weights per pixel or per vertex.

    How noisy the images are is told by how far surfaces that two views show lie apart: by
    `disagreement`.

    Args:
        depth_sigma: how far exact depths may be off.
        noise_weight: so many times the squared disagreement is added to it: noisy depths are wrong
            by views, which the start has averaged, and to be believed less than the start.
        normal_sigma: how far normals may be off, in radians.
        noisy: normals count in full from this disagreement, by its square below. Exact depths tell
            more than normals do: those are of smooth shading, up to 10 degrees from the surface.
        cut: a point so many sigmas from its pixel's depth counts a quarter, twice as many nothing.
        outline: weight of a pixel on the wrong side of an outline.
        outline_reach: an outline that is farther off is another surface's.
        stiffness: weight of the shape of the start, per vertex.
        anchor: weight of the place of the start, per vertex.
        unseen_anchor: the same of vertices that no view tells of.
        longest_move: of a vertex in one step, as a share of its edges' mean length.
        kept_thickness: walls are not brought closer together than this.
    """

    depth_sigma: float = 0.25
    noise_weight: float = 10.0
    normal_sigma: float = 0.3
    noisy: float = 1.0
    cut: float = 3.0
    outline: float = 1.0
    outline_reach: float = 2.5
    stiffness: float = 10.0
    anchor: float = 1.0
    unseen_anchor: float = 10.0
    longest_move: float = 0.3
    kept_thickness: float = 0.3


Rows = tuple[ndarray, ndarray, ndarray]
"""Columns and values `(r, k)` of r equations with k terms each, and their right sides `(r,)`."""


class FitViews:
    """What the images ask of a mesh.

    Args:
        observation: the images, lifted.
    """

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self.noise = disagreement(observation)
        self.normal = np.zeros((*observation.hit.shape, 3))
        self.normal[observation.hit] = observation.normal
        self.inside = [_nearest(hit) for hit in observation.hit]
        side = observation.hit.shape[-1]
        self.ray = np.stack([ray_per_depth(camera, side) for camera in observation.cameras])
        self.rasterizer = EmbreeRasterizer()

    def equations(
        self, vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"], settings: FitSettings
    ) -> tuple[csr_array, Float[ndarray, " r"]]:
        """Return the matrix and right side of: matrix @ move = missing, in least squares."""
        observation, spacing = self.observation, self.observation.spacing
        side = observation.hit.shape[-1]
        fragments = self.rasterizer.rasterize(
            torch.from_numpy(vertices.astype(np.float32)),
            torch.from_numpy(faces),
            observation.cameras,
            side,
        )
        face, barycentric = fragments.face.numpy(), fragments.barycentric.double().numpy()
        both = (face >= 0) & observation.hit
        found: ndarray = face[both]
        weights, normal, ray = (a[both] for a in (barycentric, self.normal, self.ray))
        point = np.einsum("pk,pkc->pc", weights, vertices[faces[found]])
        depth = np.empty(len(point))
        view = np.nonzero(both)[0]
        for index, camera in enumerate(observation.cameras):
            depth[view == index] = camera.project(point[view == index], side)[1]
        cosine = (ray * normal).sum(axis=1)
        missing = (observation.depth[both] - depth) * cosine
        noise = self.noise / spacing
        sigma = float(np.hypot(settings.depth_sigma, settings.noise_weight * noise**2))
        # Geman and McClure's robust weights.
        off = np.abs(missing) / (settings.cut * sigma * spacing)
        trust = np.where(off < 2.0, (1.0 + off**2) ** -2, 0.0) * np.clip(-cosine, 0.05, 1.0)
        own = area_vectors(vertices, faces)
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
        alike = np.clip((own[found] * normal).sum(axis=1), 0.0, 1.0) ** 2
        normals_count = min(1.0, noise / settings.noisy) / settings.normal_sigma
        parts = [
            _point_rows(faces[found], weights, normal, missing, np.sqrt(trust) / (sigma * spacing)),
            _face_rows(vertices, faces, found, normal, alike * trust * normals_count**2),
        ]
        pull = np.sqrt(settings.outline) / (max(sigma, 1.0) * spacing)
        for index in range(len(face)):
            parts += self._outline_rows(
                index, faces, face[index], barycentric[index], pull, settings
            )
        return _stack(parts, 3 * len(vertices))

    def _outline_rows(
        self,
        view: int,
        faces: Int[ndarray, "f 3"],
        face: Int[ndarray, "h w"],
        barycentric: Float[ndarray, "h w 3"],
        weight: float,
        settings: FitSettings,
    ) -> Iterator[Rows]:
        """Yield rows that draw in what sticks out over an outline and draw out what lacks to it."""
        observation, matrix = self.observation, self.observation.cameras[view].matrix
        seen, hit = face >= 0, observation.hit[view]
        for wrong, nearest, sign in (
            (seen & np.isposinf(observation.depth[view]), self.inside[view], 1.0),
            (hit & ~seen, _nearest(seen), -1.0),
        ):
            pixel, goal = np.argwhere(wrong), nearest[:, wrong].T
            down, right = (goal - pixel).T.astype(np.float64)
            distance = np.hypot(down, right)
            near = distance <= settings.outline_reach
            at = tuple((pixel if sign > 0 else goal)[near].T)
            way = right[near, None] * matrix[:3, 0] - down[near, None] * matrix[:3, 1]
            way *= sign / np.maximum(distance[near, None], 1.0)
            missing = (distance[near] - 0.5) * observation.spacing
            weights = np.full(len(missing), weight)
            yield _point_rows(faces[face[at]], barycentric[at], way, missing, weights)


def disagreement(observation: Observation) -> float:
    """Return the median distance between two views' surfaces where they face alike: world units.

    Every lifted point is held against the planes of those pixels of other views that it falls on,
    if these lie near; 0 where no two views show the same surface.
    """
    position, normal, spacing = observation.position, observation.normal, observation.spacing
    side = observation.hit.shape[-1]
    index, apart = observation.point_of_pixel, []
    for view, camera in enumerate(observation.cameras):
        own = np.flatnonzero(observation.view != view)
        inside, pixels, _ = project_inside(camera, position[own], side)
        column, row = pixels.astype(np.int64).T
        own, other = own[inside], index[view, row, column]
        own, other = own[other >= 0], other[other >= 0]
        offset = position[own] - position[other]
        alike = (normal[own] * normal[other]).sum(axis=1) > LEAST_ALIKE
        alike &= np.linalg.norm(offset, axis=1) < max(LARGEST_RADIUS, 6.0 * spacing)
        apart.append(np.abs((offset * normal[other]).sum(axis=1))[alike])
    found = np.concatenate(apart)
    return float(np.median(found)) if len(found) else 0.0


def _nearest(mask: Bool[ndarray, "h w"]) -> Int[ndarray, "2 h w"]:
    """Return row and column of the nearest pixel of a mask, far away where it is empty."""
    if not mask.any():
        return np.full((2, *mask.shape), 10**6)
    return np.stack(nearest_pixel(mask))


def _point_rows(
    corners: Int[ndarray, "p 3"],
    barycentric: Float[ndarray, "p 3"],
    direction: Float[ndarray, "p 3"],
    missing: Float[ndarray, " p"],
    weight: Float[ndarray, " p"],
) -> Rows:
    """Return rows that ask surface points to move so far along a direction."""
    values = (barycentric[:, :, None] * direction[:, None, :]).reshape(len(corners), 9)
    return _columns(corners), values * weight[:, None], missing * weight


def _face_rows(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    found: Int[ndarray, " p"],
    normal: Float[ndarray, "p 3"],
    weight: Float[ndarray, " p"],
) -> Rows:
    """Return rows that ask the edges of every seen face to be square to the normals seen on it."""
    total = np.bincount(found, weight, len(faces))
    mean = np.stack([np.bincount(found, weight * c, len(faces)) for c in normal.T], axis=1)
    length = np.linalg.norm(mean, axis=1)
    kept = length > 1e-9
    mean, total, corners = mean[kept] / length[kept, None], total[kept], faces[kept]
    rows: list[Rows] = []
    for ends in (corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]):
        edge = vertices[ends[:, 1]] - vertices[ends[:, 0]]
        scale = np.sqrt(total / 1.5) / np.maximum(np.linalg.norm(edge, axis=1), 1e-9)
        values = np.concatenate([-mean, mean], axis=1) * scale[:, None]
        rows.append((_columns(ends), values, -(edge * mean).sum(axis=1) * scale))
    columns, values, missing = (np.concatenate(part) for part in zip(*rows, strict=True))
    return columns, values, missing


def _columns(vertices: Int[ndarray, "r k"]) -> Int[ndarray, "r k3"]:
    """Return the unknowns of each row's vertices: three to a vertex."""
    return (3 * vertices[:, :, None] + np.arange(3)).reshape(len(vertices), 3 * vertices.shape[1])


def _stack(parts: list[Rows], width: int) -> tuple[csr_array, Float[ndarray, " r"]]:
    """Return all rows as one system."""
    row, column, value, first = [], [], [], 0
    for columns, values, _ in parts:
        row.append(np.repeat(np.arange(first, first + len(columns)), columns.shape[1]))
        column.append(columns.ravel())
        value.append(values.ravel())
        first += len(columns)
    entries = np.concatenate(value), (np.concatenate(row), np.concatenate(column))
    matrix = coo_array(entries, shape=(first, width)).tocsr()
    return matrix, np.concatenate([missing for _, _, missing in parts])


def area_vectors(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]
) -> Float[ndarray, "f 3"]:
    """Return normals as long as twice the faces' areas."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)

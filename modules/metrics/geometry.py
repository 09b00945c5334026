"""How far two surfaces lie apart: exact point-to-surface distances from area-weighted samples.

Every sample is measured to the other *surface*, not to the other's samples, so the figures hold
no sampling noise of the kind that makes a mesh differ from itself. Both surfaces are in the frame
where the reference fills the unit cube: figures are in units of its longest side.
"""

from dataclasses import dataclass

import igl
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.spatial import KDTree

from data_pipeline.contract import UserError
from modules.geometry.mesh import merge_vertices
from modules.geometry.rasterize import RayScene
from modules.metrics.mesh_quality import face_components

F_SCORE_THRESHOLDS = (0.005, 0.01, 0.02, 0.05)
NUM_SAMPLES = 100_000

OUTER_DIRECTIONS = 64
"""From how many directions the reference is looked at to find its outer visible surface."""

SPECK_SHARE = 0.01
"""A component with no more than this share of the area is a speck, and not counted as spurious."""

SPURIOUS_DISTANCE = 0.05
"""A component is spurious when more than half of it lies further than this from the reference."""


@dataclass(frozen=True)
class SurfaceSamples:
    """Points on a surface, spread evenly by area.

    Args:
        points: positions.
        normals: unit geometric normals.
        face: index of the surface's face that each lies on; None where there are no faces.
    """

    points: Float[ndarray, "n 3"]
    normals: Float[ndarray, "n 3"]
    face: Int[ndarray, " n"] | None = None


class MeshSurface:
    """A triangle surface that is sampled by area and measured to exactly.

    Faces without area are left out: they hold no samples and only blur normals.

    Raises:
        UserError: no face has an area, or a vertex is not finite.
    """

    def __init__(self, vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"]) -> None:
        if not np.isfinite(vertices).all():
            raise UserError("the mesh has vertices that are not finite")
        corners = vertices[faces]
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            area = np.linalg.norm(cross, axis=1) / 2.0
        if not np.isfinite(area.sum()):
            raise UserError("the mesh is so large that areas overflow: scale it down")
        solid = area > 1e-14
        if not solid.any():
            raise UserError("the mesh has no surface: no face of positive area")
        self.vertices = np.ascontiguousarray(vertices, dtype=np.float64)
        self.faces = np.ascontiguousarray(faces[solid], dtype=np.int64)
        self.area = area[solid]
        self.normals = cross[solid] / (2.0 * self.area[:, None])

    def sample(self, count: int, seed: int) -> SurfaceSamples:
        """Return `count` samples by area, a function of the surface and the seed."""
        generator = np.random.default_rng(seed)
        upper = np.cumsum(self.area)
        # Sorted draws keep neighbours together, which makes the distance queries twice as fast.
        face = np.searchsorted(upper, np.sort(generator.uniform(0.0, upper[-1], count)))
        face = np.minimum(face, len(upper) - 1)
        root, v = np.sqrt(generator.random((count, 1))), generator.random((count, 1))
        a, b, c = (self.vertices[self.faces[face, corner]] for corner in range(3))
        points = (1.0 - root) * a + root * (1.0 - v) * b + root * v * c
        return SurfaceSamples(points, self.normals[face], face)

    def nearest(
        self, points: Float[ndarray, "p 3"]
    ) -> tuple[Float[ndarray, " p"], Float[ndarray, "p 3"]]:
        """Return the distance of each point to the surface, and the normal there."""
        squared, face, _ = igl.point_mesh_squared_distance(points, self.vertices, self.faces)
        return np.sqrt(np.maximum(squared, 0.0)), self.normals[face]

    def visible_from_outside(self, samples: SurfaceSamples) -> Bool[ndarray, " n"]:
        """Return which samples of this surface can be seen from outside.

        A sample counts when a ray from it escapes in one of `OUTER_DIRECTIONS` directions, on
        either side of the surface: sheets have two. Directions within 6 degrees of the tangent
        plane are skipped, because there a ray meets the sample's own face.
        """
        scene = RayScene(self.vertices, self.faces)
        visible = np.zeros(len(samples.points), dtype=bool)
        for direction in sphere_directions(OUTER_DIRECTIONS):
            facing = np.abs(samples.normals @ direction) > 0.1
            todo = np.flatnonzero(~visible & facing)
            origins = samples.points[todo] + 1e-4 * direction
            directions = np.broadcast_to(direction, origins.shape)
            visible[todo[scene.escapes(origins, directions)]] = True
        return visible

    def components(self) -> Int[ndarray, " f"]:
        """Return the connected part of each face, vertices of equal position welded."""
        _, welded = merge_vertices(self.vertices, self.faces)
        return face_components(welded)


class SampledSurface:
    """A surface known only by samples: each stands for a disc in its tangent plane.

    Used for the surface points stored in shards, when the original asset is not at hand. The discs'
    radius is such that a surface sampled at random by area is covered but for one point in a
    thousand, so gaps between samples are not counted as distance; beyond an open border the
    surface grows by that radius.
    """

    def __init__(self, samples: SurfaceSamples) -> None:
        if len(samples.points) < 16:
            raise UserError(f"{len(samples.points)} stored samples are no surface")
        self.samples = samples
        self._tree = KDTree(samples.points)
        neighbour, _ = self._tree.query(samples.points, k=2)
        # Poisson points: P(no other within r) = exp(-density pi r^2): from median to 1 in 1000.
        self.radius = float(np.median(neighbour[:, 1]) * np.sqrt(np.log(1000.0) / np.log(2.0)))

    def sample(self, count: int, seed: int) -> SurfaceSamples:
        """Return the stored samples, at most `count` of them, drawn by the seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.samples.points))[:count]
        return SurfaceSamples(self.samples.points[chosen], self.samples.normals[chosen])

    def nearest(
        self, points: Float[ndarray, "p 3"]
    ) -> tuple[Float[ndarray, " p"], Float[ndarray, "p 3"]]:
        """Return the distance of each point to the nearest disc, and that disc's normal."""
        _, near = self._tree.query(points, k=8)
        away = points[:, None] - self.samples.points[near]
        normals = self.samples.normals[near]
        height = (away * normals).sum(axis=2)
        aside = np.linalg.norm(away - height[..., None] * normals, axis=2)
        distance = np.hypot(height, np.maximum(aside - self.radius, 0.0))
        best = distance.argmin(axis=1)
        row = np.arange(len(points))
        return distance[row, best], normals[row, best]


Surface = MeshSurface | SampledSurface


def sphere_directions(count: int) -> Float[ndarray, "n 3"]:
    """Return unit vectors spread evenly over the sphere (Fibonacci spiral)."""
    height = 1.0 - 2.0 * (np.arange(count) + 0.5) / count
    angle = np.arange(count) * np.pi * (3.0 - np.sqrt(5.0))
    ring = np.sqrt(1.0 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)


def compare_surfaces(
    predicted: Surface, reference: Surface, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> dict[str, float]:
    """Return the geometric figures of a predicted surface against its reference.

    Keys: `chamfer_l1`, `chamfer_l2` (mean of the two directions' mean distance, or mean squared
    distance); for every threshold T `precision_T` (share of the prediction within T of the
    reference), `recall_T`, their harmonic mean `f_score_T`, and `outer_recall_T` (recall on what
    can be seen from outside; NaN when the reference is known only by samples, or hidden wholly);
    `normal_consistency` (mean |cos| of a sample's normal with that at the nearest point, over
    both ways: open and two-sided surfaces have no outside to prefer), `flipped_normals`
    (share of samples with cos < -0.5: inside out) and `spurious_components` (NaN when the
    prediction is known only by samples).

    Args:
        predicted: the surface that is judged.
        reference: the truth.
        num_samples: samples on each surface.
        seed: of the samples.
    """
    on_predicted = predicted.sample(num_samples, seed)
    on_reference = reference.sample(num_samples, seed + 1)
    to_reference, reference_normals = reference.nearest(on_predicted.points)
    to_predicted, predicted_normals = predicted.nearest(on_reference.points)
    cosines = (
        (on_predicted.normals * reference_normals).sum(axis=1),
        (on_reference.normals * predicted_normals).sum(axis=1),
    )
    figures = {
        "chamfer_l1": (to_reference.mean() + to_predicted.mean()) / 2.0,
        "chamfer_l2": ((to_reference**2).mean() + (to_predicted**2).mean()) / 2.0,
        "normal_consistency": sum(np.abs(cosine).mean() for cosine in cosines) / 2.0,
        "flipped_normals": sum((cosine < -0.5).mean() for cosine in cosines) / 2.0,
        "spurious_components": float("nan"),
    }
    if isinstance(predicted, MeshSurface) and on_predicted.face is not None:
        part = predicted.components()[on_predicted.face]
        figures["spurious_components"] = count_spurious(part, to_reference)
    outer = np.zeros(len(to_predicted), dtype=bool)
    if isinstance(reference, MeshSurface):
        outer = reference.visible_from_outside(on_reference)
    for threshold in F_SCORE_THRESHOLDS:
        precision = (to_reference <= threshold).mean()
        recall = (to_predicted <= threshold).mean()
        found = to_predicted[outer] <= threshold
        figures[f"precision_{threshold:g}"] = precision
        figures[f"recall_{threshold:g}"] = recall
        figures[f"f_score_{threshold:g}"] = 2.0 * precision * recall / max(precision + recall, 1e-9)
        figures[f"outer_recall_{threshold:g}"] = found.mean() if outer.any() else float("nan")
    return {key: float(value) for key, value in figures.items()}


def count_spurious(component: Int[ndarray, " n"], to_reference: Float[ndarray, " n"]) -> int:
    """Return how many components are larger than a speck and mostly far from the reference.

    Args:
        component: of each area-weighted sample of the prediction.
        to_reference: distance of each sample to the reference.
    """
    size = np.bincount(component)
    far = np.bincount(component, weights=to_reference > SPURIOUS_DISTANCE)
    return int(((size > SPECK_SHARE * len(component)) & (far > 0.5 * size)).sum())


def floor_figures(
    reference: Surface, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> dict[str, float]:
    """Return the figures of the reference against another sampling of itself: the best there is.

    Of a surface known by samples, one half is measured to the other half.
    """
    if isinstance(reference, MeshSurface):
        return compare_surfaces(reference, reference, num_samples=num_samples, seed=seed + 2)
    points, normals = reference.samples.points, reference.samples.normals
    order = np.random.default_rng(seed).permutation(len(points))
    first, second = (
        SampledSurface(SurfaceSamples(points[half], normals[half]))
        for half in np.array_split(order, 2)
    )
    return compare_surfaces(first, second, num_samples=num_samples, seed=seed)

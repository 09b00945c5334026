"""A signed distance and a colour anywhere in space, from lifted points alone: nothing is learned.

Two sources are joined. *Implicit moving least squares* (IMLS) over the oriented points gives the
surface to a fraction of a pixel where it was seen. *Free space* decides everywhere else: what lies
in front of the surface that any view observed, or on any view's background, is outside; what lies
behind it in all views is inside. Free space also bounds IMLS to within a small margin, so that a
surface ends where the views say so and walls that no view sees (a mug's inner side) still exist.
"""

import copy
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.spatial import cKDTree

from modules.geometry.colour_field import ColourField
from modules.geometry.lift import Observation
from modules.geometry.neighbours import in_chunks, query
from modules.geometry.point_fusion import FusedPoints, fuse
from modules.geometry.point_smoothing import smooth_points
from modules.geometry.unseen_space import find_empty_space
from modules.geometry.view_alignment import align_views
from modules.geometry.view_noise import LARGEST_NOISE, errs_at_random, estimate_noise

LEAST_ALIGNED = 0.25
"""Pixels of noise: views that agree better are left as they are, since outlines and normals, by
which others are moved, tell no more than that."""

ABOVE, BESIDE = 0.75, 1.0
"""Spacings by which the nearest point lies aside of what is above a sheet, and beside its rim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicalSettings:
    """How points become a field. Lengths are in units of the pixel spacing unless said otherwise.

    Args:
        neighbours: nearest points that IMLS weighs.
        bandwidth: standard deviation of the Gaussian weights.
        reach: IMLS has its full say up to this distance from the points and none at twice it.
        carve_band: free space is known to within this distance of an observed depth.
        margin: how far IMLS may depart from free space where points are near.
        sheet: sheets are thickened to at least this many spacings.
        thickness: and to at least this, in world units: a grid with wider steps tears them.
        kept_thickness: what is left of a sheet's thickness once it is a mesh: its two sides must
            not be confused.
        smoothing: share of the views' disagreement that is smoothed over; all of it would melt thin
            parts, and disagreement is mostly shifts of whole views, which no smoothing mends.
        truncation: distances are cut off here, in world units.
    """

    neighbours: int = 10
    bandwidth: float = 0.75
    reach: float = 1.5
    carve_band: float = 1.5
    margin: float = 0.75
    sheet: float = 1.0
    thickness: float = 0.0
    kept_thickness: float = 0.3
    smoothing: float = 0.2
    truncation: float = 0.05


@dataclass(frozen=True)
class FieldSample:
    """The classical field at some points.

    Args:
        distance: signed distance, positive outside, cut off at the truncation; world units.
        free: how far the point lies in free space (`ClassicalField.free_space`).
        thickened: how far the surface was moved out there, as it is a thin sheet's; world units.
        outwards: unit normal of the surface beside the point; 0 where none was seen.
    """

    distance: Float[ndarray, " p"]
    free: Float[ndarray, " p"]
    thickened: Float[ndarray, " p"]
    outwards: Float[ndarray, "p 3"]

    def at(self, chosen: Int[ndarray, " q"]) -> "FieldSample":
        """Return the field at some of the points, by their indices."""
        return FieldSample(
            *(each[chosen] for each in (self.distance, self.free, self.thickened, self.outwards))
        )


class ClassicalField:
    """Signed distance and colour from an observation.

    Args:
        observation: lifted points and the depth images that they came from.
        settings: how points become a field.
    """

    def __init__(self, observation: Observation, settings: ClassicalSettings | None = None) -> None:
        if not len(observation.position):
            raise ValueError("an observation without any point has no field")
        self.settings = settings or ClassicalSettings()
        self.noise = min(estimate_noise(observation), LARGEST_NOISE)
        """How far the views disagree, world units; 0 for exact images. Networks are told it."""
        if errs_at_random(observation):
            observation = smooth_points(observation)
        elif self.noise > LEAST_ALIGNED * observation.spacing:
            observation = align_views(observation, self.noise)
        self._build(observation)

    def of(self, observation: Observation) -> "ClassicalField":
        """Return the field of the same views with other depths and normals, taken as they are."""
        field = copy.copy(self)
        field._build(observation)
        return field

    def _build(self, observation: Observation) -> None:
        self.observation = observation
        """What the field is made of: depths that disagreed are corrected."""
        smoothed = self.settings.smoothing * self.noise
        self._points = fuse(observation, self.noise, cell=smoothed)
        self._tree = cKDTree(self._points.position)
        self._spacing = float(np.hypot(observation.spacing, smoothed))
        wanted = max(self.settings.sheet * observation.spacing, self.settings.thickness)
        self._thickness = np.maximum(sheet_thickness(self._points, 3.0 * self._spacing), 0.0)
        self._lacking = np.maximum(wanted - self._thickness, 0.0) / 2.0
        self._empty = find_empty_space(self._seen_free, self._nearest)
        self.colour = ColourField(
            observation,
            self._spacing,
            neighbours=self.settings.neighbours,
            bandwidth=self.settings.bandwidth,
        )
        """Gives sRGB in [0, 1] at world points, of those seen that face like given normals."""

    @property
    def carve_band(self) -> float:
        """How far from an observed depth free space is told apart, world units."""
        return self.settings.carve_band * self.observation.spacing

    def sample(self, points: Float[ndarray, "p 3"]) -> FieldSample:
        """Return the field at world points."""
        return FieldSample(*in_chunks(self._sample, points))

    def _sample(self, points: Float[ndarray, "p 3"]) -> tuple[ndarray, ...]:
        """Return the arrays of a `FieldSample`."""
        settings, spacing = self.settings, self._spacing
        free = self.free_space(points)
        truncation = settings.truncation
        reach = 2.0 * settings.reach * spacing
        # As a list, k gives a row of neighbours even where it is 1.
        ranks = list(range(1, settings.neighbours + 1))
        distance, index = query(self._tree, points, k=ranks, distance_upper_bound=reach)
        nearest = distance[:, 0].copy()
        near = np.isfinite(nearest)
        nearest[~near] = self._nearest(points[~near], truncation)
        value = np.sign(free) * np.minimum(nearest, truncation)
        band = self.carve_band
        # Where free space changes sign away from any point, it alone says where the surface is.
        value *= np.minimum(np.abs(free) / band, 1.0)
        thickened, outwards = np.zeros(len(points)), np.zeros((len(points), 3))
        if near.any():
            plane, sheet, outwards[near] = self._imls(
                points[near], distance[near], index[near], free[near]
            )
            trust = np.clip(2.0 - nearest[near] / (settings.reach * spacing), 0.0, 1.0)
            alone, margin = value[near], trust * settings.margin * spacing
            thin = np.clip(plane, alone - margin, alone + margin)
            # Sheets grow along their normals, not beyond the outlines that views see of them.
            aside = np.sqrt(np.maximum(nearest[near] ** 2 - plane**2, 0.0)) / spacing
            above = np.clip((BESIDE - aside) / (BESIDE - ABOVE), 0.0, 1.0)
            thick = np.clip(plane - sheet, alone - margin - trust * above * sheet, alone + margin)
            value[near], thickened[near] = thick, thin - thick
        return np.clip(value, -truncation, truncation), free, thickened, outwards

    def thinned(self, vertices: Float[ndarray, "v 3"]) -> Float[ndarray, "v 3"]:
        """Return a mesh's vertices moved back in where a sheet was thickened for the grid's sake.

        Along the normals that were seen: those of a mesh turn on its slivers, which would fold.

        Args:
            vertices: positions on the zero set.
        """
        kept = self.settings.kept_thickness * self.observation.spacing / 2.0
        found = self.sample(vertices)
        return vertices - np.maximum(found.thickened - kept, 0.0)[:, None] * found.outwards

    def free_space(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, " p"]:
        """Return how far points lie in front of what the views saw, at most the carving band.

        Positive: some view looks through the point, or none sees it and it is taken to be empty.
        Negative: every view that has the point in its image sees a surface before it. Zero
        crossings lie midway between pixels at a step in depth.
        """
        free = self._seen_free(points)
        if self._empty is not None:
            hidden = free <= 0
            depth = np.minimum(self._empty.depth(points[hidden]), self.carve_band)
            free[hidden] = np.maximum(free[hidden], depth)
        return free

    def _seen_free(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, " p"]:
        """Return `free_space` as the views alone tell of it."""
        free = np.full(len(points), -self.carve_band)
        for view in range(len(self.observation.cameras)):
            seen_past, inside = self._seen_past(points, view)
            free[inside] = np.maximum(free[inside], seen_past)
        return free

    def _nearest(self, points: Float[ndarray, "p 3"], limit: float) -> Float[ndarray, " p"]:
        """Return the distance to the nearest lifted point, infinite beyond the limit."""
        return query(self._tree, points, distance_upper_bound=limit)[0]

    def _seen_past(
        self, points: Float[ndarray, "p 3"], view: int
    ) -> tuple[Float[ndarray, " q"], Bool[ndarray, " p"]]:
        """Return how far before what a view saw those points lie that are in its image, and which.

        Cut off at the carving band, either way.
        """
        band, camera, depth = (
            self.carve_band,
            self.observation.cameras[view],
            self.observation.depth[view],
        )
        pixels, own = camera.project(points, depth.shape[-1])
        padded = np.pad(depth, 1, constant_values=np.inf)
        x, y = (pixels + 0.5).T
        inside = (x >= 0.5) & (y >= 0.5) & (x <= padded.shape[1] - 1.5)
        inside &= (y <= padded.shape[0] - 1.5) & (own > 0)
        x, y, own = x[inside], y[inside], own[inside]
        column, row = x.astype(np.int64), y.astype(np.int64)
        fx, fy = x - column, y - row
        total = np.zeros(len(x))
        for dx, dy, weight in (
            (0, 0, (1 - fx) * (1 - fy)),
            (1, 0, fx * (1 - fy)),
            (0, 1, (1 - fx) * fy),
            (1, 1, fx * fy),
        ):
            before = np.clip(padded[row + dy, column + dx] - own, -band, band)
            total += weight * before
        return total, inside

    def _imls(
        self,
        points: Float[ndarray, "p 3"],
        distance: Float[ndarray, "p k"],
        index: Int[ndarray, "p k"],
        free: Float[ndarray, " p"],
    ) -> tuple[Float[ndarray, " p"], Float[ndarray, " p"], Float[ndarray, "p 3"]]:
        """Return the distance to the locally fitted surface, half of what a sheet lacks, a normal.

        Only neighbours that face like the leading one count, so that a sharp edge's sides do not
        mix. In free space the leading neighbour is one seen from there. Behind a sheet's other side
        a neighbour tells the distance to that side, which few points may show.
        """
        settings, spacing = self.settings, self._spacing
        missing = index == len(self._points.position)
        index = np.where(missing, 0, index)
        normal = self._points.normal[index]
        plane = np.einsum("pkc,pkc->pk", normal, points[:, None] - self._points.position[index])
        squared = np.where(missing, np.inf, distance**2)
        hidden = (free > 0)[:, None] & (plane < -0.25 * spacing)
        leading = np.argmin(np.where(hidden, squared + spacing**2, squared), axis=1)
        rows = np.arange(len(points))
        facing = np.einsum("pkc,pc->pk", normal, normal[rows, leading])
        nearest = squared[rows, leading][:, None]
        exponent = np.clip(
            (nearest - squared) / (2.0 * (settings.bandwidth * spacing) ** 2), None, 8
        )
        weight = np.exp(exponent) * np.maximum(facing, 0.0) ** 2 * self._points.weight[index]
        slab = np.maximum(plane, -plane - self._thickness[index])
        value = (weight * slab).sum(axis=1) / weight.sum(axis=1)
        sheet = (weight * self._lacking[index]).sum(axis=1) / weight.sum(axis=1)
        sided = weight * np.where(slab > plane, -1.0, 1.0)
        outwards = np.einsum("pk,pkc->pc", sided, normal)
        outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-9)
        return value, sheet, outwards


def sheet_thickness(points: FusedPoints, reach: float) -> Float[ndarray, " n"]:
    """Return how far behind each point the other side of a thin sheet lies; infinite if none does.

    The other side is the nearest point that faces the other way, sought by position and normal at
    once: beside a side that many views saw it may be seen at a slant, by few points far between.

    Args:
        points: both sides of a surface.
        reach: world units within which the other side is sought.
    """
    scaled = points.position / reach
    tree = cKDTree(np.concatenate([scaled, points.normal], axis=1))
    turned = np.concatenate([scaled, -points.normal], axis=1)
    distance, other = query(tree, turned, distance_upper_bound=1.0)
    found = np.isfinite(distance)
    other = other[found]
    apart = points.position[found] - points.position[other]
    across = 0.5 * (points.normal[found] - points.normal[other])
    thickness = np.full(len(points.position), np.inf)
    thickness[found] = (apart * across).sum(axis=1)
    return thickness

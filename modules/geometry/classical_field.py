"""A signed distance and a colour anywhere in space, from lifted points alone: nothing is learned.

Two sources are joined. *Implicit moving least squares* (IMLS) over the oriented points gives the
surface to a fraction of a pixel where it was seen. *Free space* decides everywhere else: what lies
in front of the surface that any view observed, or on any view's background, is outside; what lies
behind it in all views is inside. Free space also bounds IMLS to within a small margin, so that a
surface ends where the views say so and walls that no view sees (a mug's inner side) still exist.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import embedding

from modules.geometry.colour_field import ColourField
from modules.geometry.free_space import FreeSpace
from modules.geometry.lift import Observation
from modules.geometry.neighbours import PointIndex, in_chunks
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
        device: where it is evaluated; what is made once is made on the CPU.
    """

    def __init__(
        self,
        observation: Observation,
        settings: ClassicalSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(observation.position):
            raise ValueError("an observation without any point has no field")
        self.settings = settings or ClassicalSettings()
        self.device = torch.device(device)
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
        settings = self.settings
        smoothed = settings.smoothing * self.noise
        self._spacing = float(np.hypot(observation.spacing, smoothed))
        points = fuse(observation, self.noise, cell=smoothed)
        wanted = max(settings.sheet * observation.spacing, settings.thickness)
        thickness = np.maximum(sheet_thickness(points, 3.0 * self._spacing), 0.0)
        self._nearby = PointIndex(self._tensor(points.position))
        self._normal, self._weight = self._tensor(points.normal), self._tensor(points.weight)
        self._thickness = self._tensor(thickness)
        self._lacking = (wanted - self._thickness).clamp_min(0.0) / 2.0
        self._seen_free = FreeSpace(observation, self.carve_band, self.device)
        self._empty = find_empty_space(
            lambda points: self._asked(self._seen_free, points),
            lambda points, limit: self._asked(self._nearest, points, limit),
            self.device,
        )
        self.colour = ColourField(
            observation,
            self._spacing,
            neighbours=settings.neighbours,
            bandwidth=settings.bandwidth,
            device=self.device,
        )
        """Gives sRGB in [0, 1] at world points, of those seen that face like given normals."""

    @property
    def carve_band(self) -> float:
        """How far from an observed depth free space is told apart, world units."""
        return self.settings.carve_band * self.observation.spacing

    def sample(self, points: Float[ndarray, "p 3"]) -> FieldSample:
        """Return the field at world points."""
        return FieldSample(*in_chunks(self._sample, self.device, points))

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
        return self._asked(self._free_space, points)

    def _asked(
        self, function: Callable[..., Tensor], points: Float[ndarray, "p 3"], *options: float
    ) -> Float[ndarray, " p"]:
        """Return what a function of tensors says at world points."""
        return in_chunks(lambda some: (function(some, *options),), self.device, points)[0]

    def _tensor(self, array: Float[ndarray, "..."]) -> Float[Tensor, "..."]:
        """Return an array where the field is evaluated."""
        return torch.from_numpy(array).to(self.device)

    def _nearest(self, points: Float[Tensor, "p 3"], limit: float) -> Float[Tensor, " p"]:
        """Return the distance to the nearest lifted point, infinite beyond the limit."""
        return self._nearby.query(points, 1, limit)[0][:, 0]

    def _free_space(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Return what `free_space` does."""
        free = self._seen_free(points)
        if self._empty is None:
            return free
        hidden = (free <= 0).nonzero()[:, 0]
        depth = self._empty.depth(points[hidden]).clamp_max(self.carve_band)
        free[hidden] = torch.maximum(free[hidden], depth)
        return free

    def _sample(self, points: Float[Tensor, "p 3"]) -> tuple[Tensor, ...]:
        """Return the tensors of a `FieldSample`."""
        settings, spacing = self.settings, self._spacing
        free = self._free_space(points)
        truncation = settings.truncation
        reach = 2.0 * settings.reach * spacing
        distance, index = self._nearby.query(points, settings.neighbours, reach)
        nearest = distance[:, 0].clone()
        near = nearest.isfinite()
        nearest[~near] = self._nearest(points[~near], truncation)
        value = free.sign() * nearest.clamp_max(truncation)
        # Where free space changes sign away from any point, it alone says where the surface is.
        value *= (free.abs() / self.carve_band).clamp_max(1.0)
        thickened, outwards = torch.zeros_like(value), torch.zeros_like(points)
        chosen = near.nonzero()[:, 0]
        if len(chosen):
            plane, sheet, outwards[chosen] = self._imls(
                points[chosen], distance[chosen], index[chosen], free[chosen]
            )
            alone, nearest = value[chosen], nearest[chosen]
            trust = (2.0 - nearest / (settings.reach * spacing)).clamp(0.0, 1.0)
            margin = trust * settings.margin * spacing
            thin = plane.clamp(alone - margin, alone + margin)
            # Sheets grow along their normals, not beyond the outlines that views see of them.
            aside = (nearest**2 - plane**2).clamp_min(0.0).sqrt() / spacing
            above = ((BESIDE - aside) / (BESIDE - ABOVE)).clamp(0.0, 1.0)
            lowest = alone - margin - trust * above * sheet
            thick = (plane - sheet).clamp(lowest, alone + margin)
            value[chosen], thickened[chosen] = thick, thin - thick
        return value.clamp(-truncation, truncation), free, thickened, outwards

    def _imls(
        self,
        points: Float[Tensor, "p 3"],
        distance: Float[Tensor, "p k"],
        index: Int[Tensor, "p k"],
        free: Float[Tensor, " p"],
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """Return the distance to the locally fitted surface, half of what a sheet lacks, a normal.

        Only neighbours that face like the leading one count, so that a sharp edge's sides do not
        mix. In free space the leading neighbour is one seen from there. Behind a sheet's other side
        a neighbour tells the distance to that side, which few points may show.
        """
        settings, spacing = self.settings, self._spacing
        normal = embedding(index, self._normal)
        offset = points[:, None] - embedding(index, self._nearby.position)
        plane = torch.einsum("pkc,pkc->pk", normal, offset)
        squared = distance**2  # infinite where there is no neighbour
        hidden = (free > 0)[:, None] & (plane < -0.25 * spacing)
        leading = torch.where(hidden, squared + spacing**2, squared).argmin(dim=1, keepdim=True)
        ahead = embedding(index.gather(1, leading)[:, 0], self._normal)
        facing = torch.einsum("pkc,pc->pk", normal, ahead)
        exponent = squared.gather(1, leading) - squared
        exponent = (exponent / (2.0 * (settings.bandwidth * spacing) ** 2)).clamp_max(8.0)
        weight = exponent.exp() * facing.clamp_min(0.0) ** 2 * self._weight[index]
        weight = weight / weight.sum(dim=1, keepdim=True)
        slab = torch.maximum(plane, -plane - self._thickness[index])
        sided = torch.where(slab > plane, -weight, weight)
        outwards = torch.einsum("pk,pkc->pc", sided, normal)
        outwards = outwards / outwards.norm(dim=1, keepdim=True).clamp_min(1e-9)
        sheet = (weight * self._lacking[index]).sum(dim=1)
        return (weight * slab).sum(dim=1), sheet, outwards


def sheet_thickness(points: FusedPoints, reach: float) -> Float[ndarray, " n"]:
    """Return how far behind each point the other side of a thin sheet lies; infinite if none does.

    The other side is the nearest point that faces the other way, sought by position and normal at
    once: beside a side that many views saw it may be seen at a slant, by few points far between.

    Args:
        points: both sides of a surface.
        reach: world units within which the other side is sought.
    """
    scaled = points.position / reach
    sides = PointIndex(torch.from_numpy(np.concatenate([scaled, points.normal], axis=1)))
    turned = torch.from_numpy(np.concatenate([scaled, -points.normal], axis=1))
    distance, other = (found[:, 0].numpy() for found in sides.query(turned, 1, 1.0))
    found = np.isfinite(distance)
    other = other[found]
    apart = points.position[found] - points.position[other]
    across = 0.5 * (points.normal[found] - points.normal[other])
    thickness = np.full(len(points.position), np.inf)
    thickness[found] = (apart * across).sum(axis=1)
    return thickness

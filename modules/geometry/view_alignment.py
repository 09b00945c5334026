"""Views that disagree are moved along their rays until they show one surface; nothing is learned.

Decoders and generators keep normals and outlines and get depths wrong, smoothly and in each view in
another way. Robust least squares over the depth of every foreground pixel of all views at once:
neighbours in a view differ as their normals say, points of other views that face alike lie in one
plane, and surfaces seen from their edge reach the outline that the other view shows there.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import ndimage
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import cg

from modules.geometry.cameras import project_inside
from modules.geometry.lift import Observation
from modules.geometry.nearest_pixel import nearest_pixel
from modules.geometry.view_noise import LARGEST_RADIUS, matches, mean_normal

MATCHED_POINTS = 4000
"""At most so many points are matched with each view: more would say the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSettings:
    """How much each observation counts. Lengths are in pixel spacings unless said otherwise.

    Args:
        rounds: of matching and solving.
        normal_error: error of normals, in radians, correlated between neighbours.
        jump: a step between neighbours that their normals do not explain is an outline from here.
        match_error: of points of two views on one surface, per match.
        outline_error: of an outline, per point; 0.3 of a pixel is not told apart at all.
        edge_on: a surface is seen from its edge where the cosine is below this.
        recess: of what one view sees from its edge, that makes the outline which lies farthest out,
            or by at most this share of the noise (or of the spacing, if that is more) further in.
        smoothness: standard deviation of the change of the correction between neighbours, as a
            share of the noise.
        locality: standard deviation of a pixel's own correction, as a share of the noise.
    """

    rounds: int = 6
    normal_error: float = 0.3
    jump: float = 0.7
    match_error: float = 0.15
    outline_error: float = 0.7
    edge_on: float = 0.2
    recess: float = 0.5
    smoothness: float = 1.3
    locality: float = 3.2


def align_views(
    observation: Observation, noise: float, settings: AlignmentSettings | None = None
) -> Observation:
    """Return the observation with depths that agree.

    Args:
        observation: of views that disagree.
        noise: by how much, world units; positive, and at most LARGEST_NOISE makes sense.
        settings: what counts how much.
    """
    problem = _Problem(observation, noise, settings or AlignmentSettings())
    correction = problem.solve()
    depth = observation.depth.copy()
    depth[observation.hit] += correction
    position = observation.position + problem.along * correction[:, None]
    return replace(observation, depth=depth, position=position)


@dataclass(frozen=True)
class _Rows:
    """Residuals: offset + the sum of coefficients times the corrections of the pixels named."""

    pixels: Int[ndarray, "r k"]
    coefficients: Float[ndarray, "r k"]
    offset: Float[ndarray, " r"]
    weight: Float[ndarray, " r"]


@dataclass(frozen=True)
class _Outline:
    """A view's silhouette.

    Args:
        distance: signed distance of pixel centres to it, positive outside, world units.
        outwards: unit direction in the image (right, down) in which that grows.
        rim: index of the lifted point that shows the surface inside of the nearest outline.
        place: number of the place on the outline that is nearest.
    """

    distance: Float[ndarray, "h w"]
    outwards: Float[ndarray, "2 h w"]
    rim: Int[ndarray, "h w"]
    place: Int[ndarray, "h w"]


class _Problem:
    def __init__(self, observation: Observation, noise: float, settings: AlignmentSettings) -> None:
        self.observation, self.settings = observation, settings
        self.noise = noise
        self.index = observation.point_of_pixel
        self.axes = -np.stack([camera.matrix[:3, 2] for camera in observation.cameras])
        self.along = observation.along
        """How a lifted point moves when its depth grows by one."""
        neighbours = [
            np.stack([one, other], axis=-1)[(one >= 0) & (other >= 0)]
            for one, other in (
                (self.index[:, :, :-1], self.index[:, :, 1:]),
                (self.index[:, :-1], self.index[:, 1:]),
            )
        ]
        self.neighbours = np.concatenate(neighbours)
        self.outlines = [
            _outline(silhouette, index, observation.spacing)
            for silhouette, index in zip(observation.silhouette, self.index, strict=True)
        ]

    def solve(self) -> Float[ndarray, " n"]:
        """Return the correction of every foreground pixel's depth."""
        spacing = self.observation.spacing
        num_points, view = len(self.observation.position), self.observation.view
        solution = np.zeros(num_points + len(self.axes))
        for turn in range(self.settings.rounds):
            reach = self.noise * 0.75**turn
            radius = float(np.clip(3.0 * reach, 2.0 * spacing, LARGEST_RADIUS))
            scale = max(1.5 * reach, spacing)
            correction = solution[:num_points] + solution[num_points + view]
            moved = self.observation.position + self.along * correction[:, None]
            rows = [self._within_views(moved), self._across_views(moved, radius, scale)]
            rows += [
                self._at_outline(number, outline, moved, correction, radius, scale)
                for number, outline in enumerate(self.outlines)
                if outline is not None
            ]
            solution = self._least_squares(rows, solution)
        return solution[:num_points] + solution[num_points + view]

    def _within_views(self, moved: Float[ndarray, "n 3"]) -> _Rows:
        """Neighbours lie in the plane of their mean normal, unless there is a step."""
        settings, spacing = self.settings, self.observation.spacing
        jump = settings.jump * spacing
        return self._coplanar(self.neighbours, moved, settings.normal_error * spacing, jump)

    def _across_views(self, moved: Float[ndarray, "n 3"], radius: float, scale: float) -> _Rows:
        """Points of two views that face alike and are near lie in one plane."""
        pairs = matches(self.observation, moved, radius, MATCHED_POINTS)
        # Of all points, some were matched: they stand for the rest.
        share = np.sqrt(len(moved) / (len(self.axes) * MATCHED_POINTS))
        error = self.settings.match_error * self.observation.spacing / share
        return self._coplanar(pairs, moved, error, scale)

    def _coplanar(
        self, pairs: Int[ndarray, "r 2"], moved: Float[ndarray, "n 3"], error: float, scale: float
    ) -> _Rows:
        """Pairs of points lie in the plane of their mean normal; farther off, they count less."""
        one, other = pairs.T
        position = self.observation.position
        normal = mean_normal(self.observation.normal, pairs)
        now = (normal * (moved[one] - moved[other])).sum(axis=1)
        coefficients = np.stack(
            [(normal * self.along[one]).sum(axis=1), -(normal * self.along[other]).sum(axis=1)],
            axis=1,
        )
        offset = (normal * (position[one] - position[other])).sum(axis=1)
        return _Rows(pairs, coefficients, offset, _robust(now, scale) / error**2)

    def _at_outline(
        self,
        number: int,
        outline: _Outline,
        moved: Float[ndarray, "n 3"],
        correction: Float[ndarray, " n"],
        radius: float,
        scale: float,
    ) -> _Rows:
        """Other views' points lie inside of a view's outline; those seen from the edge, on it."""
        observation, spacing, settings = self.observation, self.observation.spacing, self.settings
        camera, axis = observation.cameras[number], self.axes[number]
        movable = np.linalg.norm(np.cross(self.along, axis), axis=1) > 0.4
        chosen = np.flatnonzero((observation.view != number) & movable)
        inside, pixels, _ = project_inside(camera, moved[chosen], observation.hit.shape[-1])
        chosen = chosen[inside]
        place = (pixels - 0.5).T[::-1]
        distance, right, down = (
            ndimage.map_coordinates(image, place, order=1, mode="nearest")
            for image in (outline.distance, *outline.outwards)
        )
        outwards = right[:, None] * camera.matrix[:3, 0] - down[:, None] * camera.matrix[:3, 1]
        outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-6)
        column, row = pixels.astype(np.int64).T
        rim = observation.position[outline.rim[row, column]] @ axis
        rim += correction[outline.rim[row, column]]
        beside = np.abs(moved[chosen] @ axis - rim) < 6.0 * self.noise + 3.0 * spacing
        normal = observation.normal[chosen]
        on_edge = (np.abs(normal @ axis) < settings.edge_on) & beside
        on_edge &= (outwards * normal).sum(axis=1) > 0.8
        recess = settings.recess * max(self.noise, spacing)
        group = observation.view[chosen] * outline.place.size + outline.place[row, column]
        on_edge[on_edge] = _outermost(distance[on_edge], group[on_edge], recess)
        valid = (np.abs(distance) < radius) & (on_edge | (distance > 0))
        chosen, distance, outwards = chosen[valid], distance[valid], outwards[valid]
        # Pixels tell outlines only so well: where they are met, a tenth of the weight holds them.
        beyond = np.copysign(np.maximum(np.abs(distance) - 0.3 * spacing, 0.0), distance)
        weight = np.where(beyond == 0.0, 0.1, 1.0) * _robust(distance, scale)
        slope = (outwards * self.along[chosen]).sum(axis=1)
        return _Rows(
            chosen[:, None],
            slope[:, None],
            beyond - slope * correction[chosen],
            weight / (settings.outline_error * spacing) ** 2,
        )

    def _least_squares(
        self, rows: list[_Rows], start: Float[ndarray, " u"]
    ) -> Float[ndarray, " u"]:
        """Return corrections of all pixels, then of all views, by conjugate gradients."""
        num_points, num_views = len(self.observation.position), len(self.axes)
        size = num_points + num_views
        columns, values, row_of, count, target = [], [], [], 0, []
        for each in rows:
            number = np.arange(count, count + len(each.offset))
            root = np.sqrt(each.weight)
            for k in range(each.pixels.shape[1]):
                pixel, value = each.pixels[:, k], each.coefficients[:, k] * root
                columns += [pixel, num_points + self.observation.view[pixel]]
                values += [value, value]
                row_of += [number, number]
            target.append(-each.offset * root)
            count += len(each.offset)
        settings, noise = self.settings, self.noise
        one, other = self.neighbours.T
        number = np.arange(count, count + len(one))
        smooth = np.full(len(one), 1.0 / (settings.smoothness * noise))
        columns += [one, other]
        values += [smooth, -smooth]
        row_of += [number, number]
        shape = (count + len(one), size)
        matrix = coo_matrix(
            (np.concatenate(values), (np.concatenate(row_of), np.concatenate(columns))), shape
        ).tocsr()
        target = np.concatenate([*target, np.zeros(len(one))])
        prior = np.full(size, 1.0 / noise**2)
        prior[:num_points] /= settings.locality**2
        squared = (matrix.T @ matrix + diags(prior)).tocsr()
        precondition = diags(1.0 / squared.diagonal())
        solution, _ = cg(
            squared, matrix.T @ target, x0=start, rtol=1e-3, maxiter=80, M=precondition
        )
        return solution


def _outline(
    silhouette: Bool[ndarray, "h w"], index: Int[ndarray, "h w"], spacing: float
) -> _Outline | None:
    """Return a view's silhouette; None if it has none: it sees nothing, or nothing else.

    Args:
        silhouette: pixels that show the object. Of made images more than lifted points: beside
            outlines their depths are not sound, but outlines are those of their normals.
        index: number of each foreground pixel's point, -1 where there is none.
        spacing: world units between pixels.
    """
    hit = index >= 0
    closed = ndimage.binary_closing(np.pad(silhouette, 1), np.ones((3, 3)))[1:-1, 1:-1]
    if not hit.any() or closed.all():
        return None
    place = np.ravel_multi_index(nearest_pixel(~closed), hit.shape)[nearest_pixel(closed)]
    inside = ndimage.distance_transform_edt(closed)
    distance = ndimage.distance_transform_edt(~closed) - inside
    distance -= np.copysign(0.5, distance)
    down, right = np.gradient(ndimage.gaussian_filter(distance, 0.7))
    outwards = np.stack([right, down]) / np.maximum(np.hypot(right, down), 1e-6)
    # Pixels on an outline blend what is behind it; where there are others, those speak.
    inner = ndimage.binary_erosion(hit, np.ones((3, 3)))
    inner |= hit & ~ndimage.binary_dilation(inner, np.ones((5, 5)))
    row, column = nearest_pixel(inner)
    return _Outline(distance * spacing, outwards, index[row, column], place)


def _outermost(
    distance: Float[ndarray, " q"], group: Int[ndarray, " q"], recess: float
) -> Bool[ndarray, " q"]:
    """Return which points lie as far out as any of their group, or by at most `recess` less.

    A window pane faces like its frame, but lies behind it: the outline is the frame's alone.
    """
    farthest = np.full(group.max(initial=0) + 1, -np.inf)
    np.maximum.at(farthest, group, distance)
    return distance >= farthest[group] - recess


def _robust(residual: Float[ndarray, " r"], scale: float) -> Float[ndarray, " r"]:
    """Return weights after Geman and McClure: 1 at 0, a quarter at the scale."""
    return (1.0 + (residual / scale) ** 2) ** -2

"""What was observed, as a learned residual reads it: at points, and as low-resolution volumes.

All of it follows from the lifted points and the field's value: lengths in units of the truncation
say where a point lies in the world, the same lengths in pixel spacings how finely it was seen.
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from modules.geometry.cameras import project_inside
from modules.geometry.classical_field import ClassicalField, FieldSample
from modules.geometry.neighbours import PointIndex

POINT_CHANNELS = 27
"""Features of a point: see `Evidence.features`."""

DOUBT_CHANNEL, UNSEEN_CHANNEL = 0, 1
"""Which of them are the doubt, and that part of it which is want of sight."""

GEOMETRY_CHANNELS = 11
"""Presence, mean offset (3), mean normal (3), free space, noise, roughness, spacing; never rgb."""

COLOUR_CHANNELS = 4
"""Presence and mean colour (3), around 0."""

VOLUME_HALF_SIDE = 0.55
"""Volumes span [-VOLUME_HALF_SIDE, VOLUME_HALF_SIDE]^3: the unit cube and a margin."""

NEIGHBOURS = 16
VIEWS = 4
"""Of the views, those that look farthest past a point say most about it."""

ROOM = 0.025
"""World units below a seen surface within which nothing is doubted: a cell of the default grid and
its diagonal, so that no grid value next to a seen surface is touched."""

FINEST_SPACING = 1.1 / 128
"""World units between pixels: finer images are measured in these, as those that one trains on."""

EXACT_ROUGHNESS, FULL_ROUGHNESS = 0.11, 0.31
"""In spacings: of exact images (.105 at most on 24 assets at three sizes, as shading normals are
smooth) and of those about which everything may be doubted (depth noise of .015 gives .26 and more).
"""


class Evidence:
    """What an observation says about points and voxels.

    Args:
        field: the classical field of the observation.
    """

    def __init__(self, field: ClassicalField) -> None:
        self.field = field
        observation = field.observation
        self._spacing = max(observation.spacing, FINEST_SPACING)
        self._nearby = PointIndex(torch.from_numpy(observation.position))
        self._point_of_pixel = observation.point_of_pixel
        self.roughness = self._roughness()
        """How far lifted points lie from the planes of their neighbours, in spacings."""

    def doubt(
        self, points: Float[ndarray, "p 3"], free: Float[ndarray, " p"]
    ) -> tuple[Float[ndarray, " p"], Float[ndarray, " p"]]:
        """Return the doubt at world points, and that part of it which is want of sight; in [0, 1].

        Doubt is how much a learned residual may say, as a share of the truncation: 0 where exact
        views saw the surface nearest to the point, or through the point, up to 1 where none did or
        where the views contradict each other. The nearest lifted point lies straight below a point
        whose nearest surface was seen, and aside, by more than the pixels are apart, where that
        surface ends for the views. So doubt does not grow with the distance from a seen surface,
        which grids evaluate a cell away from it, many spacings of a fine image.

        Args:
            points: world positions.
            free: the field's free space there.
        """
        distance, plane, _ = (each[:, 0] for each in self._nearest(points, 1))
        far = np.isinf(distance)
        distance, plane = np.where(far, 0.0, distance), np.where(far, 0.0, plane)
        aside = np.sqrt(np.maximum(distance**2 - plane**2, 0.0)) / self._spacing
        room = max(ROOM, 2.0 * self._spacing)
        below = (-plane - room) / room
        unseen = np.clip(np.maximum(0.5 * aside - 0.75, below), 0.0, 1.0)
        unseen[far] = 1.0
        unseen[free >= 0.99 * self.field.carve_band] = 0.0
        return unseen + (1.0 - unseen) * self.contradiction, unseen

    @property
    def contradiction(self) -> float:
        """How far the views contradict each other, in [0, 1]: 0 for exact images."""
        rough = (self.roughness - EXACT_ROUGHNESS) / (FULL_ROUGHNESS - EXACT_ROUGHNESS)
        return min(max(rough, 4.0 * self.field.noise / self.field.settings.truncation, 0.0), 1.0)

    def features(
        self, points: Float[ndarray, "p 3"], sample: FieldSample
    ) -> Float[ndarray, "p 27"]:
        """Return what networks read of world points, in [-1, 1].

        Doubt and want of sight; the field's distance, that to the nearest lifted point and the free
        space; the distance to the planes of the four and of the sixteen nearest points, the spread
        of the latter and how well their normals agree; the noise, the roughness and the spacing of
        pixels; and of each of the four views that look farthest past the point how far it does, the
        distance to the plane seen there and how squarely it was seen.

        Args:
            points: world positions.
            sample: the field there.
        """
        truncation, distance = self.field.settings.truncation, sample.distance
        near, plane, normal = self._nearest(points, NEIGHBOURS)
        nearest, found = np.minimum(near[:, 0], truncation), np.isfinite(near)
        plane = np.where(found, plane, distance[:, None])
        spread, number = plane.std(axis=1), np.maximum(found.sum(axis=1), 1)

        def in_spacings(length: Float[ndarray, " p"]) -> Float[ndarray, " p"]:
            return np.tanh(length / (4.0 * self._spacing))

        columns = [
            *self.doubt(points, sample.free),
            distance / truncation,
            in_spacings(distance),
            nearest / truncation,
            in_spacings(nearest),
            sample.free / self.field.carve_band,
            plane[:, :4].mean(axis=1) / truncation,
            plane.mean(axis=1) / truncation,
            spread / truncation,
            in_spacings(spread),
            np.linalg.norm(normal.sum(axis=1), axis=1) / number,
            np.full(len(points), self.field.noise / truncation),
            np.full(len(points), self.roughness),
            np.full(len(points), self._spacing / truncation),
            *self._views(points).T,
        ]
        return np.clip(np.stack(columns, axis=1), -1.0, 1.0)

    def volumes(self, side: int) -> tuple[Float[ndarray, "g s s s"], Float[ndarray, "4 s s s"]]:
        """Return the geometry volume and the colour volume. Axis order is x, y, z.

        Args:
            side: voxels along a side.
        """
        field, observation = self.field, self.field.observation
        size = 2.0 * VOLUME_HALF_SIDE / side
        place = (observation.position + VOLUME_HALF_SIDE) / size
        index = np.clip(place.astype(np.int64), 0, side - 1)
        flat = np.ravel_multi_index(tuple(index.T), (side, side, side))
        count = np.bincount(flat, minlength=side**3)

        def mean(values: Float[ndarray, "n 3"]) -> Float[ndarray, "3 s3"]:
            sums = [np.bincount(flat, column, minlength=side**3) for column in values.T]
            return np.stack(sums) / np.maximum(count, 1)

        centre = (np.arange(side) + 0.5) * size - VOLUME_HALF_SIDE
        centres = np.stack(np.meshgrid(centre, centre, centre, indexing="ij"), axis=-1)
        # Points per voxel, in layers that cross it: the same at every resolution of the images.
        presence = np.log1p(count * (observation.spacing / size) ** 2)[None]
        free = field.free_space(centres.reshape(-1, 3))[None] / field.carve_band
        truncation, everywhere = field.settings.truncation, np.ones((1, side**3))
        geometry = [presence, mean(place - index - 0.5), mean(observation.normal), free]
        for each in (field.noise / truncation, self.roughness, self._spacing / truncation):
            geometry.append(each * everywhere)
        colour = [presence, mean(2.0 * observation.colour - 1.0) * (count > 0)]
        shape = (-1, side, side, side)
        return (
            np.concatenate(geometry).astype(np.float32).reshape(shape),
            np.concatenate(colour).astype(np.float32).reshape(shape),
        )

    def _roughness(self) -> float:
        """Return how far lifted points lie before or behind their neighbours: median, in spacings.

        Along the mean of both normals, along which a chord of a circle does not rise: so curvature
        does not count, and steps between views and noise do.
        """
        observation = self.field.observation
        chosen = np.arange(0, len(observation.position), max(len(observation.position) // 4096, 1))
        position, normal = observation.position[chosen], observation.normal[chosen]
        count = min(9, len(observation.position))
        if count == 1:
            return 0.0
        found = self._nearby.query(torch.from_numpy(position), count)
        distance, index = (each[:, 1:].numpy() for each in found)
        both = 0.5 * (normal[:, None] + observation.normal[index])
        rise = np.abs((both * (position[:, None] - observation.position[index])).sum(axis=-1))
        alike = (normal[:, None] * observation.normal[index]).sum(axis=-1) > 0.8
        alike &= distance < 2.0 * observation.spacing
        return float(np.median(rise[alike])) / observation.spacing if alike.any() else 0.0

    def _nearest(
        self, points: Float[ndarray, "p 3"], count: int
    ) -> tuple[Float[ndarray, "p k"], Float[ndarray, "p k"], Float[ndarray, "p k 3"]]:
        """Return distances to the nearest lifted points and to their planes, and their normals.

        Of points within the truncation; infinity, 0 and 0 where there are fewer.
        """
        count = min(count, len(self.field.observation.position))
        reach = self.field.settings.truncation
        near = self._nearby.query(torch.from_numpy(points), count, reach)
        distance, index = (each.numpy() for each in near)
        found = np.isfinite(distance)
        normal = np.where(found[..., None], self.field.observation.normal[index], 0.0)
        offset = points[:, None] - self.field.observation.position[index]
        return distance, (normal * offset).sum(axis=-1), normal

    def _views(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, "p 12"]:
        """Return what the four views that look farthest past each point say, in [-1, 1].

        How far each looks past it, its distance to the plane seen at its pixel (both over the
        truncation) and the cosine between that plane's normal and the view; 1, 1, 1 where a view
        sees only background, -1, -1, 0 where it cannot tell.
        """
        observation, truncation = self.field.observation, self.field.settings.truncation
        side = observation.hit.shape[-1]
        count = max(len(observation.cameras), VIEWS)
        said = np.tile([-1.0, -1.0, 0.0], (count, len(points), 1))
        for view, camera in enumerate(observation.cameras):
            inside, pixels, own = project_inside(camera, points, side)
            column, row = pixels.astype(np.int64).T
            depth = observation.depth[view][row, column]
            found = self._point_of_pixel[view][row, column]
            said[view, inside[np.isposinf(depth)]] = 1.0
            hit = found >= 0
            chosen, found = inside[hit], found[hit]
            past = np.clip((depth[hit] - own[hit]) / truncation, -1.0, 1.0)
            offset = points[chosen] - observation.position[found]
            plane = (observation.normal[found] * offset).sum(axis=1)
            plane = np.clip(plane / truncation, -1.0, 1.0)
            squarely = np.abs(observation.normal[found] @ camera.matrix[:3, 2])
            said[view, chosen] = np.stack([past, plane, squarely], axis=1)
        order = np.argsort(-said[..., 0], axis=0)[:VIEWS]
        return np.take_along_axis(said, order[..., None], axis=0).transpose(1, 0, 2).reshape(-1, 12)

"""From 2.5D images to oriented, coloured points: every foreground pixel already has a position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import ndimage

from data_pipeline.contract import Camera
from modules.geometry.cameras import ray_per_depth
from modules.geometry.nearest_pixel import nearest_pixel

AROUND = np.ones((1, 3, 3))
"""A pixel of a view and its eight neighbours."""

DRIFT_WINDOW = 1.5
"""Pixels, a standard deviation: errors that neighbours share are of their view, others random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRule:
    """Which pixels of decoded or generated images count as surface (real renders bring `hit`).

    Args:
        normal_length: a foreground normal is longer than this; the background's is 0.
        background_length: a pixel is background, and seen through, if its normal is shorter than
            this. What lies between is blur, and background too, beside a foreground's if it is
            shorter than `normal_length` times the longest normal around it (a thin leg's are all
            short) and beside background or `blurred`; else it is left undecided, like foreground
            without a sound depth.
        blurred: a coord that projects farther than this share of the image's side from its own
            pixel is mixed with the background's, as in a gap too narrow to show any.
        reprojection: a foreground coord projects to within this share of the image's side from
            its own pixel.
        depth_jump: pixels half way up a step in depth of more than this, in world units, are
            dropped where no normal explains the step: decoders blur it into points in mid-air.
    """

    normal_length: float = 0.5
    background_length: float = 0.25
    blurred: float = 0.03
    reprojection: float = 0.08
    depth_jump: float = 0.1


@dataclass(frozen=True)
class Observation:
    """What some 2.5D images say about a surface.

    Args:
        cameras: the views.
        hit: foreground pixels.
        silhouette: pixels that show the object, those at an unknown depth with them.
        depth: distance along the viewing axis, world units; +inf on the background, -inf where a
            made image shows something at an unknown depth, so that nothing can be seen through it.
        rgb: sRGB image in [0, 1], its background filled with the nearest foreground colour.
        position: the foreground pixels' world points, in order of view and pixel.
        normal: their unit world normals.
        colour: their sRGB colours in [0, 1].
        view: index of the view that each comes from.
        spacing: world units between neighbouring pixels' rays where the object is.
        misplaced: distance of each point's coord from its pixel's ray, world units: 0 where a
            renderer made it, and as large as the error of depth where a network did.
        drift: by how much, in the median, coords miss their rays as those around them do: what is
            left of `misplaced` once random errors are averaged out.
    """

    cameras: tuple[Camera, ...]
    hit: Bool[ndarray, "v h w"]
    silhouette: Bool[ndarray, "v h w"]
    depth: Float[ndarray, "v h w"]
    rgb: Float[ndarray, "v h w 3"]
    position: Float[ndarray, "n 3"]
    normal: Float[ndarray, "n 3"]
    colour: Float[ndarray, "n 3"]
    view: Int[ndarray, " n"]
    spacing: float
    misplaced: Float[ndarray, " n"]
    drift: float

    @property
    def point_of_pixel(self) -> Int[ndarray, "v h w"]:
        """Index of every foreground pixel's point, -1 on the background."""
        index = np.full(self.hit.shape, -1)
        index[self.hit] = np.arange(len(self.position))
        return index

    @property
    def along(self) -> Float[ndarray, "n 3"]:
        """How each point moves when its depth grows by one."""
        side = self.hit.shape[-1]
        return np.stack([ray_per_depth(camera, side) for camera in self.cameras])[self.hit]


def lift(
    images: Float[ndarray, "m v 3 h w"],
    cameras: Sequence[Camera],
    hit: Bool[ndarray, "v h w"] | None = None,
    rule: HitRule | None = None,
) -> Observation:
    """Lift the foreground of rgb, normal and coord images to oriented, coloured points.

    Only the depth of a coord is used: the two other components are known from the pixel's ray.

    Args:
        images: rgb, normal and coord in [-1, 1] (coord holds 2p), background white, 0 and 0.
        cameras: one per view.
        hit: exact foreground; without it `rule` finds the foreground in the images.
        rule: thresholds for images that a network made.
    """
    resolution_px = images.shape[-1]
    rgb, normal, coord = (np.moveaxis(image, 1, -1).astype(np.float64) for image in images)
    rgb, coord = np.clip(rgb / 2.0 + 0.5, 0.0, 1.0), coord / 2.0
    projected = [camera.project(c, resolution_px) for camera, c in zip(cameras, coord, strict=True)]
    depth = np.stack([depth for _, depth in projected])
    length = np.linalg.norm(normal, axis=-1)
    rays = [camera.rays(resolution_px) for camera in cameras]
    origins, directions = np.stack([ray[0] for ray in rays]), np.stack([ray[1] for ray in rays])
    axes = -np.stack([camera.matrix[:3, 2] for camera in cameras])
    along = np.einsum("vhwc,vc->vhw", directions, axes)
    position = origins + directions * (depth / along)[..., None]
    facing = np.einsum("vhwc,vhwc->vhw", normal, directions) / np.maximum(length, 1e-9)
    normal = normal * (-np.copysign(1.0, facing) / np.maximum(length, 1e-9))[..., None]
    rule = rule or HitRule()
    solid = length > (rule.normal_length if hit is None else 1e-3)
    spacing = np.array(
        [
            _spacing(camera, view[inside], resolution_px)
            for camera, view, inside in zip(cameras, depth, solid, strict=True)
        ]
    )
    pixels = np.stack([pixels for pixels, _ in projected])
    if hit is None:
        steepness = np.sqrt(np.maximum(1.0 - facing**2, 0.0)) / np.maximum(np.abs(facing), 0.02)
        found = find_hit(length, pixels, depth, steepness * spacing[:, None, None], rule)
        enclosed = ndimage.binary_closing(found, AROUND)
        seen_through = find_background(length, pixels, rule) & ~enclosed
        # What is undecided beside the object is blur of its outline, most of which lies outside.
        beside = ndimage.binary_dilation(solid, AROUND)
        silhouette = ~seen_through & (solid | enclosed | ~beside)
    else:
        found = silhouette = hit & solid
        seen_through = ~found
    rgb = fill_background(rgb, found)
    missed = (pixels - _pixel_centres(resolution_px)) * spacing[:, None, None, None]
    return Observation(
        cameras=tuple(cameras),
        hit=found,
        silhouette=silhouette,
        depth=np.where(found, depth, np.where(seen_through, np.inf, -np.inf)),
        rgb=rgb,
        position=position[found],
        normal=normal[found],
        colour=rgb[found],
        view=np.nonzero(found)[0],
        spacing=float(spacing.mean()),
        misplaced=np.linalg.norm(missed, axis=-1)[found],
        drift=_drift(missed, found),
    )


def find_hit(
    normal_length: Float[ndarray, "v h w"],
    pixels: Float[ndarray, "v h w 2"],
    depth: Float[ndarray, "v h w"],
    slope: Float[ndarray, "v h w"],
    rule: HitRule,
) -> Bool[ndarray, "v h w"]:
    """Return the foreground of images that a network made.

    Args:
        normal_length: length of the normals.
        pixels: where each pixel's coord projects to, as (x, y).
        depth: depth of each pixel's coord.
        slope: change of depth from a pixel to the next that the normals tell of.
        rule: the thresholds.
    """
    side = depth.shape[-1]
    near = np.linalg.norm(pixels - _pixel_centres(side), axis=-1) <= rule.reprojection * side
    hit = (normal_length > rule.normal_length) & near
    low = ndimage.minimum_filter(np.where(hit, depth, np.inf), size=(1, 3, 3))
    high = ndimage.maximum_filter(np.where(hit, depth, -np.inf), size=(1, 3, 3))
    jump = rule.depth_jump
    between = (depth - low > jump / 4) & (high - depth > jump / 4)
    return hit & ~(between & (high - low > jump + 3.0 * slope))


def _drift(missed: Float[ndarray, "v h w 2"], hit: Bool[ndarray, "v h w"]) -> float:
    """Return the median length of what foreground coords miss their rays by on a local mean.

    Args:
        missed: by which (x, y) they do.
        hit: the foreground.
    """
    if not hit.any():
        return 0.0
    window = (0.0, DRIFT_WINDOW, DRIFT_WINDOW)
    share = ndimage.gaussian_filter(hit.astype(np.float64), window)[hit]
    inside = np.where(hit[..., None], missed, 0.0)
    total = ndimage.gaussian_filter(inside, (*window, 0.0))[hit]
    return float(np.median(np.linalg.norm(total, axis=1) / share))


def _pixel_centres(side: int) -> Float[ndarray, "h w 2"]:
    """Return the (x, y) of every pixel's centre."""
    centre = np.arange(side) + 0.5
    return np.stack(np.meshgrid(centre, centre), axis=-1)


def fill_background(
    image: Float[ndarray, "v h w 3"], hit: Bool[ndarray, "v h w"]
) -> Float[ndarray, "v h w 3"]:
    """Return images whose outline and background take the nearest inner foreground colour.

    Outline pixels of an anti-aliased image hold some background; where pixels that touch no
    background lie within two pixels, their colour is taken instead.
    """
    filled = image.copy()
    for view, (rgb, foreground) in enumerate(zip(image, hit, strict=True)):
        if not foreground.any():
            continue
        inner = ndimage.binary_erosion(foreground, np.ones((3, 3)), border_value=0)
        if inner.any():
            distance, nearest = ndimage.distance_transform_edt(~inner, return_indices=True)
            replaced = foreground & (distance <= 2.0)
            filled[view][replaced] = rgb[nearest[0], nearest[1]][replaced]
        filled[view] = filled[view][nearest_pixel(foreground)]
    return filled


def find_background(
    normal_length: Float[ndarray, "v h w"], pixels: Float[ndarray, "v h w 2"], rule: HitRule
) -> Bool[ndarray, "v h w"]:
    """Return the background of images that a network made, what it left undecided not among it.

    Args:
        normal_length: lengths of the normals.
        pixels: where each pixel's coord projects to, as (x, y).
        rule: thresholds.
    """
    background = normal_length < rule.background_length
    longest = np.minimum(ndimage.maximum_filter(normal_length, (1, 3, 3)), 1.0)
    outside = normal_length <= rule.normal_length * longest
    solid = normal_length > rule.normal_length
    side = pixels.shape[1]
    missed = np.linalg.norm(pixels - _pixel_centres(side), axis=-1) > rule.blurred * side
    blur = ndimage.binary_dilation(background, AROUND) | missed
    return background | (outside & ndimage.binary_dilation(solid, AROUND) & blur)


def _spacing(camera: Camera, depth: Float[ndarray, " n"], resolution_px: int) -> float:
    """Return the distance between the rays of neighbouring pixels at the depth of the object."""
    if camera.projection == "orthographic":
        assert camera.ortho_scale is not None
        return camera.ortho_scale / resolution_px
    assert camera.fov_deg is not None
    middle = float(np.mean(depth)) if len(depth) else float(np.linalg.norm(camera.matrix[:3, 3]))
    return 2.0 * np.tan(np.radians(camera.fov_deg) / 2.0) * middle / resolution_px

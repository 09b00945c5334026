"""Baking: every view's pixels are carried to the texels that it sees, blended by angle."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import ndimage
from torch import Tensor

from data_pipeline.contract import Camera, linear_to_srgb, srgb_to_linear
from modules.geometry.atlas import Atlas
from modules.geometry.cameras import project_points
from modules.geometry.lift import Observation
from modules.geometry.nearest_pixel import nearest_pixel
from modules.geometry.rasterizer import rasterizer_or_embree
from modules.geometry.threads import by_one_thread

ColourFunction = Callable[[ndarray, ndarray], ndarray]
"""Maps world points and unit normals, `(p, 3)` each, to sRGB colours `(p, 3)` in [0, 1]."""

TEXTURE_PLANE = Camera(
    name="texture",
    camera_to_world=[[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 1], [0, 0, 0, 1]],
    ortho_scale=1.0,
)
"""Sees a mesh that lies in its texture, at (u, v, 0), as the texture's texels."""

SRGB_LEVELS = np.rint(255.0 * linear_to_srgb(np.linspace(0.0, 1.0, 2**16))).astype(np.uint8)
"""sRGB of 8 bits by linear light, in steps so fine that at most the rounding of a level differs."""

LEAST_COSINE = 0.05
"""Of the angle at which a view looks at a texel: at a greater slant it does not count."""

SHADOW_PX = 2
"""Pixels of a mesh's depth image to one of a view's: it tells what the view sees of the mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeSettings:
    """How views are blended into a texture.

    Args:
        resolution_px: side of the texture.
        angle_power: a view counts by cos(angle to the normal) to this power.
        depth_tolerance: a texel is the surface that a pixel saw if their depths differ by less
            than so many pixel spacings (seen head-on; more at a slant).
        edge_weight: how much pixels beside a step in depth count: they blend two surfaces.
        fallback_weight: how much the colour field counts where no view does.
        enough_weight: views that together count so much need no colour field; below, it fades in.
    """

    resolution_px: int = 512
    angle_power: float = 4.0
    depth_tolerance: float = 2.0
    edge_weight: float = 0.02
    fallback_weight: float = 1e-3
    enough_weight: float = 0.1


def bake(
    vertices: Float[ndarray, "n 3"],
    atlas: Atlas,
    normals: Float[ndarray, "n 3"],
    observation: Observation,
    noise: float,
    colour_field: ColourFunction,
    settings: BakeSettings,
    device: torch.device | str = "cpu",
) -> UInt8[ndarray, "th tw 3"]:
    """Return the texture of a mesh: sRGB, row 0 on top, filled to the last texel.

    Args:
        vertices: positions of the atlas's vertices, world.
        atlas: faces and texture coordinates.
        normals: unit normals of the atlas's vertices.
        observation: the views.
        noise: how far the views' depths may be off, world units.
        colour_field: gives colours where no view sees the surface.
        settings: how views are blended.
        device: where texels are computed; on CUDA by nvdiffrast if that is installed.
    """
    device = torch.device(device)

    def blend() -> tuple[_Baking, Tensor, Tensor]:
        baking = _Baking(vertices, atlas, normals, settings.resolution_px, device)
        total = torch.zeros_like(baking.position[:, 0])
        linear = torch.zeros_like(baking.position)
        for view in range(len(observation.cameras)):
            baking.add_view(observation, view, noise, settings, total, linear)
        return baking, total, linear

    baking, total, linear = by_one_thread(blend) if device.type == "cpu" else blend()
    if not len(total):  # so many faces that they slip between the texels' centres
        mean = np.rint(255.0 * colour_field(vertices, normals).mean(axis=0)).astype(np.uint8)
        return np.tile(mean, (settings.resolution_px, settings.resolution_px, 1))
    lacking = (total < settings.enough_weight).nonzero().flatten()
    if len(lacking):
        asked = (each[lacking].cpu().double().numpy() for each in (baking.position, baking.normal))
        colour = torch.from_numpy(srgb_to_linear(colour_field(*asked))).to(linear)
        weight = settings.fallback_weight * (1.0 - total[lacking] / settings.enough_weight)
        total[lacking] += weight
        linear[lacking] += weight[:, None] * colour
    level = (linear / total[:, None]).clamp(0.0, 1.0) * (len(SRGB_LEVELS) - 1)
    colour = torch.from_numpy(SRGB_LEVELS).to(level.device)[level.round().long()]
    covered = baking.covered.cpu().numpy()
    texel = np.zeros(covered.shape, dtype=np.int64)
    texel[covered] = np.arange(len(colour))
    # Texels outside the charts repeat the nearest covered one, so filtering blends no background.
    return colour.cpu().numpy()[texel[nearest_pixel(covered)]]


class _Baking:
    """The texels that lie on a mesh, and what the views' images show there.

    Args:
        vertices: positions, world.
        atlas: faces and texture coordinates.
        normals: unit normals of the vertices.
        resolution_px: side of the texture.
        device: of all tensors.
    """

    def __init__(
        self,
        vertices: Float[ndarray, "n 3"],
        atlas: Atlas,
        normals: Float[ndarray, "n 3"],
        resolution_px: int,
        device: torch.device,
    ) -> None:
        self._rasterizer = rasterizer_or_embree(device)
        flat = np.concatenate([atlas.uv, np.zeros((len(atlas.uv), 1))], axis=1)
        flat, self._vertices, corner_normals = (
            torch.from_numpy(np.asarray(each, dtype=np.float32)).to(device)
            for each in (flat, vertices, normals)
        )
        self._faces = torch.from_numpy(atlas.faces.astype(np.int32)).to(device)
        seen = self._rasterizer.rasterize(flat, self._faces, (TEXTURE_PLANE,), resolution_px)
        attributes = torch.cat([self._vertices, corner_normals], dim=1)
        texels = self._rasterizer.interpolate(attributes, self._faces, seen)[0]
        self.covered: Bool[Tensor, "th tw"] = seen.hit[0]
        """Which texel centres lie on the mesh."""
        self.position, normal = texels[self.covered].split(3, dim=1)
        self.normal = torch.nn.functional.normalize(normal, dim=1)

    def add_view(
        self,
        observation: Observation,
        view: int,
        noise: float,
        settings: BakeSettings,
        total: Float[Tensor, " p"],
        linear: Float[Tensor, "p 3"],
    ) -> None:
        """Add how much one view counts for each texel, and its linear colour times that.

        Args:
            observation: the views.
            view: which.
            noise: how far the views' depths may be off, world units.
            settings: how views are blended.
            total: grows by the weights.
            linear: grows by the weighted colours.
        """
        camera, spacing = observation.cameras[view], observation.spacing
        side = observation.depth.shape[-1]
        towards = self._towards(camera)
        cosine = (self.normal * towards).sum(dim=1)
        facing = (cosine > LEAST_COSINE).nonzero().flatten()
        normal, toward = self.normal[facing], towards.expand_as(self.normal)[facing]
        start = self.position[facing] + 0.5 * spacing * (normal + toward)
        facing = facing[~self._hidden(start, camera, SHADOW_PX * side)]
        position, cosine = self.position[facing], cosine[facing]
        x, y, depth = project_points(position, camera)
        tolerance = settings.depth_tolerance * (spacing / cosine.clamp_min(0.2) + noise)
        # Beyond the image lies one pixel before its first and two after its last: nothing is seen.
        x, y = ((each * side - 0.5).clamp(-1.0, float(side)) for each in (x, y))
        column, row = x.floor(), y.floor()
        fx, fy = x - column, y - row
        first = (row.long() + 1) * (side + 3) + column.long() + 1
        pixels = torch.from_numpy(_pixels(observation, view, noise, settings)).to(position)
        found = torch.zeros_like(position[:, :1]).expand(-1, 4).clone()
        for step, share in (
            (0, (1 - fx) * (1 - fy)),
            (1, fx * (1 - fy)),
            (side + 3, (1 - fx) * fy),
            (side + 4, fx * fy),
        ):
            taken = pixels[first + step]
            same = (taken[:, 4] - depth).abs() < tolerance
            found += (share * same)[:, None] * taken[:, :4]
        found *= (cosine**settings.angle_power)[:, None]
        total.index_add_(0, facing, found[:, 3])
        linear.index_add_(0, facing, found[:, :3])

    def _towards(self, camera: Camera) -> Float[Tensor, "#p 3"]:
        """Return the unit vectors from the texels to a camera: one where all are the same."""
        matrix = torch.tensor(camera.camera_to_world).to(self.position)
        if camera.projection == "orthographic":
            return matrix[None, :3, 2]
        return torch.nn.functional.normalize(matrix[:3, 3] - self.position, dim=1)

    def _hidden(
        self, points: Float[Tensor, "p 3"], camera: Camera, resolution_px: int
    ) -> Bool[Tensor, " p"]:
        """Return before which points a depth image of the mesh shows something."""
        seen = self._rasterizer.rasterize(self._vertices, self._faces, (camera,), resolution_px)
        depth = project_points(self._vertices, camera)[2]
        image = self._rasterizer.interpolate(depth[:, None], self._faces, seen)[0, ..., 0]
        image = torch.where(seen.hit[0], image, torch.inf)
        x, y, depth = project_points(points, camera)
        column, row = ((each * resolution_px).long().clamp(0, resolution_px - 1) for each in (x, y))
        return image[row, column] < depth


def _pixels(
    observation: Observation, view: int, noise: float, settings: BakeSettings
) -> Float[ndarray, "k 5"]:
    """Return linear colour, each times how far it is trusted; that trust; and depth.

    Of one pixel before the image's first, its own and two after its last, row by row.
    """
    depth, hit = observation.depth[view], observation.hit[view]
    far = np.where(np.isfinite(depth), depth, 1e6)  # the background is one more step in depth
    step = ndimage.maximum_filter(far, 3) - ndimage.minimum_filter(far, 3)
    edge = step > 6.0 * observation.spacing + 2.0 * noise
    trust = (np.where(edge, settings.edge_weight, 1.0) * hit)[..., None]
    image = np.concatenate(
        [trust * srgb_to_linear(observation.rgb[view]), trust, far[..., None]], axis=-1
    )
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    return padded.reshape(-1, 5)

"""Which space is empty since a view looks through it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modules.geometry.lift import Observation
from modules.geometry.rasterizer import half_width


class FreeSpace:
    """How far points lie in front of what views saw.

    Args:
        observation: the views.
        band: it is told up to this distance of an observed depth, world units.
        device: where points will be asked for.
    """

    def __init__(self, observation: Observation, band: float, device: torch.device) -> None:
        self.band = band
        cameras = observation.cameras
        options = {"dtype": torch.float64, "device": device}
        # A pixel of background on all sides: beyond the image nothing is told.
        padded = np.pad(observation.depth, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
        self._depth = torch.tensor(padded.reshape(len(cameras), -1), **options)
        self._side = observation.depth.shape[-1]
        matrix = torch.tensor(np.stack([camera.matrix for camera in cameras]), **options)
        self._rotation, self._eye = matrix[:, :3, :3], matrix[:, None, :3, 3]
        half = torch.tensor([half_width(camera) for camera in cameras], **options)
        self._pixels_per_unit = (self._side / 2.0 / half)[:, None]
        orthographic = [camera.projection == "orthographic" for camera in cameras]
        self._orthographic = torch.tensor(orthographic, device=device)[:, None]

    def __call__(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Return how far world points lie in space that a view looks through, within the band.

        Negative where every view that has the point in its image sees a surface before it; the
        band's lower end where none has it. Between pixel centres the images are interpolated.
        """
        x, y, back = ((points - self._eye) @ self._rotation).unbind(dim=-1)
        own = -back
        scale = self._pixels_per_unit / torch.where(self._orthographic, 1.0, own)
        # In the padded image, with pixel centres at whole numbers.
        x, y = 0.5 * self._side + 0.5 + x * scale, 0.5 * self._side + 0.5 - y * scale
        last = self._side + 0.5
        inside = (x >= 0.5) & (y >= 0.5) & (x <= last) & (y <= last) & (own > 0)
        column = torch.where(inside, x, 0.0).long().clamp_(max=self._side)
        row = torch.where(inside, y, 0.0).long().clamp_(max=self._side)
        right, down = x - column, y - row
        first, width = row * (self._side + 2) + column, self._side + 2
        total = torch.zeros_like(own)
        for step, weight in (
            (0, (1 - right) * (1 - down)),
            (1, right * (1 - down)),
            (width, (1 - right) * down),
            (width + 1, right * down),
        ):
            past = self._depth.gather(1, first + step) - own
            total += weight * past.clamp_(-self.band, self.band)
        return total.where(inside, -self.band).amax(dim=0)

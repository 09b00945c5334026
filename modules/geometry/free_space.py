"""Which space is empty since a view looks through it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.cameras import project_points
from modules.geometry.lift import Observation


class FreeSpace:
    """How far points lie in front of what views saw.

    Args:
        observation: the views.
        band: it is told up to this distance of an observed depth, world units.
        device: where points will be asked for.
    """

    def __init__(self, observation: Observation, band: float, device: torch.device) -> None:
        self._band, self._cameras = band, observation.cameras
        # One pixel of background around the image, so that its outermost pixels have neighbours.
        padded = np.pad(observation.depth, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
        self._depth = torch.from_numpy(padded).to(device)

    def __call__(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Return how far world points lie in space that a view looks through, within the band.

        Negative where every view that has the point in its image sees a surface before it; the
        band's lower end where none has it. Between pixel centres the images are interpolated.
        """
        free = points.new_full((len(points),), -self._band)
        for camera, depth in zip(self._cameras, self._depth, strict=True):
            free = torch.maximum(free, self._seen_past(points, camera, depth))
        return free

    def _seen_past(
        self, points: Float[Tensor, "p 3"], camera: Camera, depth: Float[Tensor, "h w"]
    ) -> Float[Tensor, " p"]:
        """Return how far points lie before what a view saw, within the band."""
        width = len(depth)
        x, y, own = project_points(points, camera)
        # Pixel centres of the padded image lie at whole numbers.
        x, y = ((width - 2) * each + 0.5 for each in (x, y))
        last = width - 1.5
        inside = (x >= 0.5) & (y >= 0.5) & (x <= last) & (y <= last) & (own > 0)
        column, row = (torch.where(inside, each, 0.0).long() for each in (x, y))
        right, down = x - column, y - row
        total = torch.zeros_like(own)
        for dx, dy, weight in (
            (0, 0, (1 - right) * (1 - down)),
            (1, 0, right * (1 - down)),
            (0, 1, (1 - right) * down),
            (1, 1, right * down),
        ):
            past = depth[row + dy, column + dx] - own
            total += weight * past.clamp_(-self._band, self._band)
        return total.where(inside, -self._band)

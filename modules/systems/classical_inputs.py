"""What the refiner-decoder reads of one sample: the classical field of its spoilt images.

Made by the loader's processes, not by the training step: it is the slow part, and NumPy's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.corruption import Corruption, corrupt, subsample
from modules.geometry.evidence import VOLUME_HALF_SIDE, Evidence
from modules.geometry.isosurface import GRID_HALF_SIDE
from modules.geometry.lift import Observation, lift
from modules.geometry.made_images import load_made_images, made_images_of


class ClassicalInputs:
    """Spoils a sample's images, lifts them and asks the classical field.

    Adds to a sample, all float32: `geometry` (g s s s) and `colour` (4 s s s), the volumes;
    `points` (n 3), the sample's distance points and three neighbours of each of the first
    `eikonal_points`, with `distance` (n) and `features` (n c) there; `surface_features` (k c) and
    `base` (k 3), the classical colour, at its surface points; and `grid`, for every
    `rendering_every`-th sample (else None): `values` (r r r), the field on a grid, `index` (q), the
    flat indices of the grid points near the surface, and `features` (q c) and `base` (q 3) there.

    Args:
        side: of the volumes, in voxels.
        truncation: of the field, world units.
        corruption: how images are spoilt.
        halved_share: share of the samples of which every other pixel is taken; orthographic views.
        made: folders of images that a model made of known assets (`made_images`).
        made_share: share of the samples that take theirs instead of spoilt ones, if there are any.
        eikonal_points: points at whose neighbours the field is wanted, too.
        eikonal_step: how far away they are, world units.
        rendering_every: 0: no grids.
        rendering_cells: along a side of the grid; even.
        seed: with a sample's position, decides what is drawn.
    """

    def __init__(
        self,
        *,
        side: int,
        truncation: float,
        corruption: Corruption,
        halved_share: float = 0.0,
        made: Sequence[str] = (),
        made_share: float = 0.0,
        eikonal_points: int = 128,
        eikonal_step: float = 0.01,
        rendering_every: int = 0,
        rendering_cells: int = 32,
        seed: int = 0,
    ) -> None:
        self.side, self.truncation, self.corruption = side, truncation, corruption
        self.halved_share, self.made_share = halved_share, made_share
        self.made = [Path(folder) for folder in made]
        self.eikonal_points, self.eikonal_step = eikonal_points, eikonal_step
        self.rendering_every, self.rendering_cells = rendering_every, rendering_cells
        self.seed = seed

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return the sample with what is described at the class.

        Args:
            sample: of SampleDataset.
            position: in the endless stream: what is drawn depends on it alone.
        """
        rng = np.random.default_rng([self.seed, 2, position])
        settings = ClassicalSettings(truncation=self.truncation)
        field = ClassicalField(self._observation(sample, rng), settings)
        evidence = Evidence(field)
        centres = sample["sdf_position"].numpy().astype(np.float64)
        neighbours = centres[: self.eikonal_points, None] + self.eikonal_step * np.eye(3)
        points = np.concatenate([centres, neighbours.reshape(-1, 3)])
        points = np.clip(points, -VOLUME_HALF_SIDE, VOLUME_HALF_SIDE)
        surface = sample["surface_position"].numpy().astype(np.float64)
        distance = field.sample(points).distance
        geometry, colour = evidence.volumes(self.side)
        arrays = {
            "points": points,
            "distance": distance,
            "features": evidence.features(points, distance),
            "surface_features": evidence.features(surface, field.sample(surface).distance),
            "base": field.colour(surface, sample["surface_normal"].numpy().astype(np.float64)),
            "geometry": geometry,
            "colour": colour,
        }
        rendered = self.rendering_every and position % self.rendering_every == 0
        grid = self._grid(field, evidence) if rendered else None
        return sample | {key: _tensor(array) for key, array in arrays.items()} | {"grid": grid}

    def _observation(self, sample: dict[str, Any], rng: np.random.Generator) -> Observation:
        """Return the lifted points of a sample's images: spoilt, made by a model, or exact."""
        if self.made and rng.random() < self.made_share:
            files = made_images_of(sample["uid"], self.made)
            if files:
                images, cameras = load_made_images(files[int(rng.integers(len(files)))])
                observation = lift(images, cameras)
                if len(observation.position):
                    return observation
        images, hit, cameras = _views(sample)
        if rng.random() < self.halved_share and cameras[0].projection == "orthographic":
            row, column = rng.integers(2, size=2).tolist()
            images, hit, cameras = subsample(images, hit, cameras, (row, column))
        spoilt, mask, kept = corrupt(images, hit, cameras, self.corruption, rng)
        observation = lift(spoilt, kept, mask)
        if len(observation.position):
            return observation
        return lift(images, cameras, hit)  # the views that are left show nothing

    def _grid(self, field: ClassicalField, evidence: Evidence) -> dict[str, Tensor]:
        """Return the field on a grid, and what the network reads near its surface."""
        axis = np.linspace(-GRID_HALF_SIDE, GRID_HALF_SIDE, self.rendering_cells + 1)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        values = field.sample(points).distance
        index = np.flatnonzero(np.abs(values) < 0.99 * self.truncation)
        near = points[index]
        return {
            "values": _tensor(values.reshape([len(axis)] * 3)),
            "index": torch.from_numpy(index),
            "features": _tensor(evidence.features(near, values[index])),
            "base": _tensor(field.colour(near)),
        }


def _views(
    sample: dict[str, Any],
) -> tuple[Float[ndarray, "m v 3 h w"], Bool[ndarray, "v h w"], tuple[Camera, ...]]:
    """Return a sample's true images, foreground and cameras."""
    cameras = cameras_from_arrays(
        *(sample[key].numpy() for key in ("camera_to_world", "ortho_scale", "fov_deg"))
    )
    return sample["images"].numpy(), sample["hit"].numpy(), cameras


def _tensor(array: Float[ndarray, "..."]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))

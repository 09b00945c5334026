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
from modules.geometry.cameras import cameras_from_arrays, project_inside
from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.corruption import Corruption, corrupt, subsample
from modules.geometry.evidence import VOLUME_HALF_SIDE, Evidence
from modules.geometry.isosurface import GRID_HALF_SIDE, least_thickness
from modules.geometry.lift import Observation, lift
from modules.geometry.made_images import load_made_images, made_images_of

SAME_VIEW = 0.2
"""By which the axes of two cameras of one view may differ."""


class ClassicalInputs:
    """Spoils a sample's images, lifts them and asks the classical field.

    Adds to a sample, all float32: `geometry` (g s s s) and `colour` (4 s s s), the volumes;
    `points` (n 3), the sample's distance points and three neighbours of each of the first
    `eikonal_points`, with `distance` (n) and `features` (n c) there; `surface_features` (k c) and
    `base` (k 3), the classical colour, at its surface points; `seen_position`, `seen_normal` and
    `seen_along` (l 3), some of the lifted points, their normals and how they move when their depth
    grows by one, with `seen_features` (l c) there, `seen_depth` (l), what their depths lack,
    `seen_truth` (l 3), their true normals, and `seen_known` (l), 0 where there is no truth; and
    `grid`, for some samples (else None): `values` (r r r), the field on a grid, `index` (q), the
    flat indices of the grid points near the surface, and `features` (q c), `base` (q 3) and
    `thickened` (q) there.

    As in the Reconstructor, the field has thin sheets thickened for the sake of a grid; features
    show that, and grids. `distance` is without it, as meshes are in the end: what is learned must
    not be to undo it.

    Args:
        side: of the volumes, in voxels.
        truncation: of the field, world units.
        corruption: how images are spoilt.
        halved_share: share of the samples of which every other pixel is taken; orthographic views.
        made: folders of images that a model made of known assets (`made_images`).
        made_share: share of the samples that take theirs instead of spoilt ones, if there are any.
        seen_points: lifted points that are taken of a sample.
        eikonal_points: points at whose neighbours the field is wanted, too.
        eikonal_step: how far away they are, world units.
        rendering_share: share of the samples that bring a grid.
        rendering_cells: along a side of the grid; even.
        thickened_for: least and greatest number of cells along a side of the grid that other
            samples are thickened for; drawn log-uniformly.
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
        seen_points: int = 1024,
        eikonal_points: int = 128,
        eikonal_step: float = 0.01,
        rendering_share: float = 0.0,
        rendering_cells: int = 32,
        thickened_for: Sequence[int] = (64, 192),
        seed: int = 0,
    ) -> None:
        self.side, self.truncation, self.corruption = side, truncation, corruption
        self.halved_share, self.made_share = halved_share, made_share
        self.made = [Path(folder) for folder in made]
        self.seen_points = seen_points
        self.eikonal_points, self.eikonal_step = eikonal_points, eikonal_step
        self.rendering_share, self.rendering_cells = rendering_share, rendering_cells
        self.thickened_for = thickened_for
        self.seed = seed

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return the sample with what is described at the class.

        Args:
            sample: of SampleDataset.
            position: in the endless stream: what is drawn depends on it alone.
        """
        rng = np.random.default_rng([self.seed, 2, position])
        rendered = rng.random() < self.rendering_share
        cells = round(float(np.exp(rng.uniform(*np.log([*self.thickened_for])))))
        settings = ClassicalSettings(
            truncation=self.truncation,
            thickness=least_thickness(self.rendering_cells if rendered else cells),
        )
        field = ClassicalField(self._observation(sample, rng), settings)
        evidence = Evidence(field)
        centres = sample["sdf_position"].numpy().astype(np.float64)
        neighbours = centres[: self.eikonal_points, None] + self.eikonal_step * np.eye(3)
        points = np.concatenate([centres, neighbours.reshape(-1, 3)])
        points = np.clip(points, -VOLUME_HALF_SIDE, VOLUME_HALF_SIDE)
        surface = sample["surface_position"].numpy().astype(np.float64)
        found = field.sample(points)
        thin = np.clip(found.distance + found.thickened, -self.truncation, self.truncation)
        geometry, colour = evidence.volumes(self.side)
        arrays = {
            "points": points,
            "distance": thin,
            "features": evidence.features(points, found),
            "surface_features": evidence.features(surface, field.sample(surface)),
            "base": field.colour(surface, sample["surface_normal"].numpy().astype(np.float64)),
            "geometry": geometry,
            "colour": colour,
        }
        arrays |= self._seen(sample, field, evidence, rng)
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

    def _seen(
        self,
        sample: dict[str, Any],
        field: ClassicalField,
        evidence: Evidence,
        rng: np.random.Generator,
    ) -> dict[str, Float[ndarray, "..."]]:
        """Return lifted points, what the network reads there, and what their views truly show."""
        seen = field.observation
        chosen = rng.integers(len(seen.position), size=self.seen_points)
        position, along = seen.position[chosen], seen.along[chosen]
        depth, normal, known = np.zeros(len(chosen)), seen.normal[chosen].copy(), chosen < 0
        images, hit, cameras = _views(sample)
        for view, camera in enumerate(seen.cameras):
            own = np.flatnonzero(seen.view[chosen] == view)
            shown = next((i for i, true in enumerate(cameras) if _same_view(camera, true)), None)
            if shown is None or not len(own):
                continue
            inside, pixels, _ = project_inside(cameras[shown], position[own], hit.shape[-1])
            column, row = pixels.astype(np.int64).T
            found = hit[shown, row, column]
            own, row, column = own[inside][found], row[found], column[found]
            truth, missing = (images[m, shown][:, row, column].T for m in (1, 2))
            missing = missing / 2.0 - position[own]
            # Where the ray meets the plane that the pixel truly shows; not where it grazes it.
            slope = (along[own] * truth).sum(axis=1)
            steep = np.abs(slope) > 0.3
            ahead = (missing * along[own]).sum(axis=1) / (along[own] ** 2).sum(axis=1)
            on_plane = (missing * truth).sum(axis=1) / np.where(steep, slope, 1.0)
            depth[own], normal[own], known[own] = np.where(steep, on_plane, ahead), truth, True
        return {
            "seen_position": position,
            "seen_normal": seen.normal[chosen],
            "seen_along": along,
            "seen_features": evidence.features(position, field.sample(position)),
            "seen_depth": depth,
            "seen_truth": normal,
            "seen_known": known.astype(np.float64),
        }

    def _grid(self, field: ClassicalField, evidence: Evidence) -> dict[str, Tensor]:
        """Return the field on a grid, and what the network reads near its surface."""
        axis = np.linspace(-GRID_HALF_SIDE, GRID_HALF_SIDE, self.rendering_cells + 1)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        found = field.sample(points)
        values = found.distance.reshape([len(axis)] * 3)
        index = np.flatnonzero(np.abs(found.distance) < 0.99 * self.truncation)
        near = points[index]
        gradient = np.stack(np.gradient(values), axis=-1).reshape(-1, 3)[index]
        normals = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)
        return {
            "values": _tensor(values),
            "index": torch.from_numpy(index),
            "features": _tensor(evidence.features(near, found.at(index))),
            "base": _tensor(field.colour(near, normals)),
            "thickened": _tensor(found.thickened[index]),
        }


def _same_view(one: Camera, other: Camera) -> bool:
    """Return whether two cameras look along the same axis; spoilt views lie beside their places."""
    turned = float(np.abs(one.matrix - other.matrix)[:3, :3].max())
    return one.projection == other.projection and turned < SAME_VIEW


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

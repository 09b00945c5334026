"""2.5D images to a textured mesh."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from data_pipeline.contract import MODALITIES, Camera, UserError
from modules.geometry.atlas import AtlasWorkers, unwrap
from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.decimation import decimate
from modules.geometry.fit import check_steps, fit_vertices
from modules.geometry.isosurface import (
    GRID_HALF_SIDE,
    drop_small_components,
    extract_isosurface,
    least_thickness,
    round_apart,
)
from modules.geometry.lift import HitRule, Observation, lift
from modules.geometry.mesh import TexturedMesh, smooth_normals
from modules.geometry.texture import BakeSettings, bake
from modules.networks.pipeline_folder import stage_folder
from modules.networks.refined_field import RefinedField
from modules.networks.refiner import Refiner
from modules.networks.refiner_files import load_refiner

MAX_GRID, MAX_TEXTURE_PX = 1024, 8192
"""More would take over 20 GB of memory."""

MIN_FACES, MAX_FACES = 100, 1_000_000

LARGEST_VALUE = 4.0
"""Images lie in [-1, 1]; noisy ones overshoot."""

MAX_FACES_PER_SQUARE = 64
"""Of a surface before it is simplified, over the square of the grid: a ball has 4, noise
that fills the cube 30 to 60. Beyond, nothing was seen, and simplifying takes minutes."""

LOOK = "look at them (views=FILE.png), then try another prompt, seed or checkpoint"

NO_SURFACE = f"the images show no surface: nothing can be rebuilt from them; {LOOK}"


def check_mesh_size(grid: int, texture_px: int, num_faces: int = MIN_FACES) -> None:
    """Raise UserError unless all can be made."""
    if grid % 2 or not 8 <= grid <= MAX_GRID:
        raise UserError(f"grid={grid} must be even, at least 8 and at most {MAX_GRID}")
    if not 16 <= texture_px <= MAX_TEXTURE_PX:
        raise UserError(f"texture_px={texture_px} must be at least 16 and at most {MAX_TEXTURE_PX}")
    if not MIN_FACES <= num_faces <= MAX_FACES:
        raise UserError(f"faces={num_faces} must be at least {MIN_FACES} and at most {MAX_FACES}")


def check_images(
    images: Float[Tensor, "m v 3 h w"],
    cameras: Sequence[Camera],
    hit: Bool[Tensor, "v h w"] | None = None,
) -> None:
    """Raise UserError unless images are rgb, normal and coord of these cameras, finite and sound.

    Args:
        images: in [-1, 1].
        cameras: one per view.
        hit: their foreground, if it is known.
    """
    views = (len(cameras), *images.shape[-1:] * 2)
    if images.shape != (len(MODALITIES), len(cameras), 3, *views[1:]) or not len(cameras):
        raise UserError(
            f"images of shape {tuple(images.shape)} do not fit {len(cameras)} cameras: give "
            "rgb, normal and coord as (3, views, 3, side, side)"
        )
    if hit is not None and hit.shape != views:
        raise UserError(f"hit is of shape {tuple(hit.shape)}: these images need {views}")
    values = images.detach().cpu().numpy()  # torch's threads would take longer than the work
    bad = ~np.isfinite(values)
    if bad.any():
        raise UserError(
            f"{int(bad.any(axis=2).sum())} pixels of the images are NaN or infinite: the model "
            "that made them overflowed or is damaged; try float32, another seed or checkpoint"
        )
    largest = float(np.abs(values).max())
    if largest > LARGEST_VALUE:
        raise UserError(
            f"the images reach {largest:.3g}, but rgb, normal and coord lie in [-1, 1]: the "
            "model that made them overflowed or is damaged; try another seed or checkpoint"
        )


def shows_edges(field: ClassicalField, grid: int) -> bool:
    """Return whether edges of a field are the object's, on a grid of so many cells along a side.

    They are mostly noise where images disagree, and steps from pixel to pixel on finer grids.
    """
    return field.noise == 0 and 2.0 * GRID_HALF_SIDE / grid >= field.observation.spacing


class Reconstructor:
    """Rebuilds the surface that 2.5D images show: lift, distance field, isosurface, UV, bake.

    Args:
        refiner: what was learned; None is the classical method, which needs no training.
        num_faces: face budget.
        smallest_component: pieces with a smaller share of the largest one's area are dropped.
        rule: finds the foreground of images without an exact one; None for the default.
        device: where the field, the network and the baking run; the rest runs on the CPU.
    """

    stage = "refiner_decoder"

    def __init__(
        self,
        refiner: Refiner | None = None,
        *,
        num_faces: int = 10_000,
        smallest_component: float = 0.01,
        rule: HitRule | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.refiner = None if refiner is None else refiner.to(device)
        self.rule, self.device = rule, device
        self.num_faces, self.smallest_component = num_faces, smallest_component

    @classmethod
    def classical(cls, **settings: Any) -> "Reconstructor":
        """Return the method that needs no training, with keyword arguments of the class."""
        return cls(None, **settings)

    @classmethod
    def from_pretrained(cls, pipeline_dir: Path, **settings: Any) -> "Reconstructor":
        """Return the refiner-decoder that was exported into a pipeline folder.

        Args:
            pipeline_dir: the folder.
            settings: keyword arguments of the class.

        Raises:
            UserError: the folder holds none, or a damaged one.
        """
        return cls(load_refiner(stage_folder(Path(pipeline_dir), cls.stage)), **settings)

    def lift(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
    ) -> Observation:
        """Return the points that the images show, at least one.

        Args:
            images: rgb, normal and coord in [-1, 1].
            cameras: one per view.
            hit: exact foreground; without it the hit rule finds it in the images.

        Raises:
            UserError: shapes disagree, a value is not finite or far out of range, or there is no
                surface.
        """
        check_images(images, cameras, hit)
        mask = None if hit is None else hit.cpu().numpy()
        observation = lift(images.cpu().numpy().astype(np.float64), cameras, mask, self.rule)
        if not len(observation.position):
            raise UserError(NO_SURFACE)
        return observation

    def __call__(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
        *,
        grid: int = 96,
        texture_px: int = 512,
        refine_steps: int = 0,
    ) -> TexturedMesh:
        """Return the mesh in the world frame.

        Args:
            images: rgb, normal and coord in [-1, 1].
            cameras: one per view.
            hit: exact foreground; without it the hit rule finds it in the images.
            grid: cells along the side of the cube that holds the surface; even.
            texture_px: side of the texture.
            refine_steps: of a fit of the mesh to the images (`modules.geometry.fit`); 0 is none.

        Raises:
            UserError: nothing can be lifted from the images, they show no surface, or a setting is
                out of range.
        """
        check_mesh_size(grid, texture_px)
        check_steps(refine_steps)
        with AtlasWorkers() as workers:
            observation = self.lift(images, cameras, hit)
            vertices, faces, field = self._surface(observation, grid, refine_steps)
            atlas = unwrap(vertices, faces, texture_px, workers=workers)
        texture = bake(
            vertices[atlas.source],
            atlas,
            smooth_normals(vertices, faces)[atlas.source],
            field.classical.observation,
            field.classical.noise,
            field.colour,
            BakeSettings(resolution_px=texture_px),
            self.device,
        )
        return TexturedMesh(
            vertices[atlas.source], atlas.faces, atlas.uv.astype(np.float32), texture
        )

    def _surface(
        self, observation: Observation, grid: int, refine_steps: int
    ) -> tuple[Float[ndarray, "v 3"], Int[ndarray, "f 3"], RefinedField]:
        """Return the mesh within the face budget, and the field that it comes from.

        Args:
            observation: what was lifted.
            grid: cells along the side of the cube that holds the surface.
            refine_steps: of a fit of the mesh to the images.

        Raises:
            UserError: there is no surface, or nothing but noise.
        """
        settings = ClassicalSettings(thickness=least_thickness(grid))
        if self.refiner is not None:
            settings = replace(settings, truncation=self.refiner.truncation)
        classical = ClassicalField(observation, settings, self.device)
        field = RefinedField(classical, self.refiner)
        classical = field.classical
        vertices, faces = extract_isosurface(
            field.distance,
            grid,
            classical.observation.position,
            sharp=shows_edges(classical, grid),
            device=self.device,
        )
        vertices, faces = drop_small_components(vertices, faces, self.smallest_component)
        if not len(faces):
            raise UserError(NO_SURFACE)
        if len(faces) > MAX_FACES_PER_SQUARE * grid**2:
            raise UserError(
                f"the images contradict each other everywhere: their surface is a foam of "
                f"{len(faces)} faces; {LOOK}"
            )
        vertices = classical.thinned(vertices)
        vertices, faces = decimate(vertices, faces, self.num_faces)
        if refine_steps:
            with tqdm(total=refine_steps, desc="fit", unit="step", leave=False) as bar:
                vertices = fit_vertices(
                    vertices, faces, classical.observation, refine_steps, progress=bar.update
                )
        return round_apart(vertices, faces), faces, field

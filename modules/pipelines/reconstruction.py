"""2.5D images to a textured mesh."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from data_pipeline.contract import Camera, UserError
from modules.geometry.atlas import unwrap
from modules.geometry.classical_field import ClassicalField
from modules.geometry.isosurface import decimate, drop_small_components, extract_isosurface
from modules.geometry.lift import lift
from modules.geometry.mesh import TexturedMesh, smooth_normals
from modules.geometry.texture import BakeSettings, bake


class Reconstructor:
    """Rebuilds the surface that 2.5D images show: lift, distance field, isosurface, UV, bake.

    Nothing in it is learned.

    Args:
        num_faces: face budget.
        smallest_component: pieces with a smaller share of the largest one's area are dropped.
    """

    def __init__(self, *, num_faces: int = 20_000, smallest_component: float = 0.01) -> None:
        self.num_faces, self.smallest_component = num_faces, smallest_component

    @classmethod
    def classical(cls) -> "Reconstructor":
        """Return the method that needs no training."""
        return cls()

    def __call__(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
        *,
        grid: int = 96,
        texture_px: int = 512,
    ) -> TexturedMesh:
        """Return the mesh in the world frame.

        Args:
            images: rgb, normal and coord in [-1, 1].
            cameras: one per view.
            hit: exact foreground; without it the hit rule finds it in the images.
            grid: cells along the side of the cube that holds the surface; even.
            texture_px: side of the texture.

        Raises:
            UserError: the images show no surface, or a setting is out of range.
        """
        if grid < 8 or grid % 2:
            raise UserError(f"grid={grid} must be even and at least 8")
        if texture_px < 16:
            raise UserError(f"texture_px={texture_px} must be at least 16")
        mask = None if hit is None else hit.cpu().numpy()
        observation = lift(images.cpu().numpy().astype(np.float64), cameras, mask)
        field = ClassicalField(observation)
        vertices, faces = extract_isosurface(
            lambda points: field.sample(points).distance, grid, observation.position
        )
        vertices, faces = drop_small_components(vertices, faces, self.smallest_component)
        vertices, faces = decimate(vertices, faces, self.num_faces)
        if len(faces) == 0:
            raise UserError("the images show no surface: nothing can be rebuilt from them")
        atlas = unwrap(vertices, faces, texture_px)
        texture = bake(
            vertices[atlas.source],
            atlas,
            smooth_normals(vertices, faces)[atlas.source],
            observation,
            field.noise,
            field.colour,
            BakeSettings(resolution_px=texture_px),
        )
        return TexturedMesh(
            vertices[atlas.source], atlas.faces, atlas.uv.astype(np.float32), texture
        )

"""Losses between images of a predicted surface and true images: what the views would show."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.rasterizer import Rasterizer

RENDERING_LOSSES = ("mask", "depth", "normal", "colour")

LARGEST_GRADIENT = 0.05
"""Of a loss by a vertex: what a pixel sees of a face almost edge-on moves without bound."""


def rendering_losses(
    rasterizer: Rasterizer,
    vertices: Float[Tensor, "n 3"],
    faces: Int[Tensor, "f 3"],
    colours: Float[Tensor, "n 3"],
    images: Float[Tensor, "3 v 3 h w"],
    hit: Bool[Tensor, "v h w"],
    cameras: tuple[Camera, ...],
    reach: float,
) -> dict[str, Float[Tensor, ""]]:
    """Return the errors of a mesh's images, each 0 for the true surface.

    `mask`: mean absolute error of the antialiased silhouettes. Where both show the asset, `depth`:
    mean distance between the positions seen, over `reach` and cut off there, as behind the edge of
    something nearer; `normal`: mean of 1 - cosine; `colour`: mean Huber error of sRGB, on pixels
    whose depths agree within `reach`.

    Args:
        rasterizer: makes the images.
        vertices: of the predicted surface, world units.
        faces: counter-clockwise seen from outside.
        colours: sRGB in [0, 1] at the vertices.
        images: true rgb, normal and coord in [-1, 1].
        hit: where they show the asset.
        cameras: one per view.
        reach: world units.
    """
    if vertices.requires_grad:
        vertices = vertices.clone()
        vertices.register_hook(_bounded)
    seen = rasterizer.rasterize(vertices, faces, cameras, hit.shape[-1])
    attributes = torch.cat([vertices, vertex_normals(vertices, faces), colours], dim=1)
    drawn = rasterizer.interpolate(attributes, faces, seen)
    mask = rasterizer.antialias(seen.hit[..., None].to(vertices.dtype), seen)[..., 0]
    rgb, normal, coord = images.movedim(2, -1)
    both = seen.hit & hit
    position, direction, colour = drawn[both].split(3, dim=1)
    distance = (position - 0.5 * coord[both] + 1e-9).norm(dim=1) / reach
    cosine = torch.nn.functional.cosine_similarity(direction, normal[both], dim=1)
    same = distance < 1.0
    error = torch.nn.functional.smooth_l1_loss(
        colour, 0.5 * rgb[both] + 0.5, beta=0.1, reduction="none"
    )
    return {
        "mask": (mask - hit.to(mask.dtype)).abs().mean(),
        "depth": _mean(distance.clamp_max(1.0), torch.ones_like(same)),
        "normal": _mean(1.0 - cosine, same),
        "colour": _mean(error.mean(dim=1), same),
    }


def vertex_normals(
    vertices: Float[Tensor, "n 3"], faces: Int[Tensor, "f 3"]
) -> Float[Tensor, "n 3"]:
    """Return unit normals of the vertices: means of their faces', weighted by area."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normals = torch.linalg.cross(b - a, c - a)
    sums = torch.zeros_like(vertices)
    for corner in range(3):
        sums = sums.index_add(0, faces[:, corner], normals)
    return torch.nn.functional.normalize(sums, dim=1, eps=1e-12)


def _bounded(gradient: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    gradient = gradient.nan_to_num(nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
    return gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)


def _mean(values: Float[Tensor, " p"], chosen: Bool[Tensor, " p"]) -> Float[Tensor, ""]:
    """Return the mean of the chosen values, 0 where there are none."""
    weight = chosen.to(values.dtype)
    return (weight * values).sum() / weight.sum().clamp_min(1.0)

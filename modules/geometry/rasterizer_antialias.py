"""Blending across silhouettes (`Rasterizer.antialias`), in torch, on any device."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modules.geometry.rasterizer import Fragments, clip_positions

CROSSING_SLACK = 1.0 / 16.0
"""How far beyond the two pixel centres a crossing may lie, in pixels: coverage is decided in lower
precision than the crossing."""


def antialias(image: Float[Tensor, "v h w c"], fragments: Fragments) -> Float[Tensor, "v h w c"]:
    """Return the image blended across the silhouette edges that cross between pixel centres."""
    clip = clip_positions(fragments.vertices, fragments.cameras)
    opposite = opposite_vertices(fragments.faces)
    blended = image.flatten(0, 2)
    pixels = blended
    for axis in (0, 1):
        here, there, crossing = _crossings(fragments, clip, opposite, axis)
        # The crossing cuts the nearer pixel before the middle, the other one after it.
        cut_is_here = crossing.detach() < 0.5
        target = torch.where(cut_is_here, here, there)
        source = torch.where(cut_is_here, there, here)
        amount = (0.5 - crossing).abs()[:, None].to(image.dtype)
        change = amount * (pixels.index_select(0, source) - pixels.index_select(0, target))
        blended = blended.index_add(0, target, change)
    return blended.unflatten(0, image.shape[:3])


def opposite_vertices(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "f 3"]:
    """Return, for the edge opposite to each corner, the third vertex of the face across it.

    It is -1 where no face or more than one lies across: such an edge is always a silhouette.
    """
    faces = faces.long()
    start, end = faces.roll(-1, dims=1).flatten(), faces.roll(-2, dims=1).flatten()
    if not len(start):
        return faces
    key = torch.minimum(start, end) * (faces.max() + 1) + torch.maximum(start, end)
    collapsed = ((faces == faces.roll(-1, dims=1)).any(dim=1)).repeat_interleave(3)
    key = torch.where(collapsed, -1 - torch.arange(len(key), device=key.device), key)  # no edges
    key, order = key.sort()
    same = torch.zeros(len(key) + 1, dtype=torch.bool, device=faces.device)
    same[1:-1] = key[1:] == key[:-1]  # same[i]: edge i equals edge i - 1
    pair = same[1:-1] & ~same[:-2] & ~same[2:]
    first, second = order[:-1][pair], order[1:][pair]
    opposite = torch.full_like(start, -1)
    opposite[first], opposite[second] = faces.flatten()[second], faces.flatten()[first]
    return opposite.unflatten(0, faces.shape)


def _crossings(
    fragments: Fragments,
    clip: Float[Tensor, "v n 4"],
    opposite: Int[Tensor, "f 3"],
    axis: int,
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, " e"]]:
    """Return where silhouettes cross between neighbours in a row (axis 0) or column (axis 1).

    Returns:
        Flat index of the pixel that sees the nearer face, that of its neighbour, and how far from
        the former's centre to the latter's the edge lies, in [0, 1].
    """
    face, size = fragments.face, fragments.face.shape[-1]
    index = torch.arange(face.numel(), device=face.device).view_as(face)
    cut = (index[:, :, :-1], index[:, :, 1:]) if axis == 0 else (index[:, :-1], index[:, 1:])
    face = face.flatten().long()
    differ = face[cut[0]] != face[cut[1]]
    first, second = cut[0][differ], cut[1][differ]
    depths = _depth(fragments, clip, first), _depth(fragments, clip, second)
    swap = depths[1] <= depths[0]
    here, there = torch.where(swap, second, first), torch.where(swap, first, second)

    # Corners relative to the near pixel's centre, in pixels; x runs towards the neighbour.
    nearer = face[here]
    corners, in_front = _on_screen(fragments.faces[nearer].long(), clip, here, size)
    across = opposite[nearer]
    wings, wing_in_front = _on_screen(across.clamp(min=0), clip, here, size)
    order = (0, 1) if axis == 0 else (1, 0)
    direction = (there - here).sign()[:, None].to(clip.dtype)
    x, y = corners[..., order[0]] * direction, corners[..., order[1]]
    wing_x, wing_y = wings[..., order[0]].detach() * direction, wings[..., order[1]].detach()

    start_x, start_y = x.roll(-1, dims=1), y.roll(-1, dims=1)  # edge k lies opposite to corner k
    end_x, end_y = x.roll(-2, dims=1), y.roll(-2, dims=1)
    run, rise = end_x - start_x, end_y - start_y
    straddles = (start_y >= 0) != (end_y >= 0)
    at = start_x - start_y * run / torch.where(straddles, rise, 1.0)
    # The row leaves the triangle by the furthest of the edges that it meets.
    best = at.detach().where(straddles, -torch.inf).argmax(dim=1, keepdim=True)

    side = run * (y - start_y) - rise * (x - start_x)
    wing_side = run * (wing_y - start_y) - rise * (wing_x - start_x)
    silhouette = (across < 0) | ~wing_in_front | (side.sign() * wing_side.sign() > 0)
    usable = straddles & silhouette & (rise.abs() >= run.abs())
    at, usable = at.gather(1, best).squeeze(1), usable.gather(1, best).squeeze(1)
    usable &= (at > -CROSSING_SLACK) & (at < 1.0 + CROSSING_SLACK) & in_front.all(dim=1)
    return here[usable], there[usable], at[usable].clamp(0.0, 1.0)


def _depth(
    fragments: Fragments, clip: Float[Tensor, "v n 4"], pixels: Int[Tensor, " e"]
) -> Float[Tensor, " e"]:
    """Return z / w of the face at each pixel, infinity where there is none."""
    face = fragments.face.flatten()[pixels].long()
    view = pixels // fragments.face[0].numel()
    corners = clip.detach()[view[:, None], fragments.faces[face.clamp(min=0)].long(), 2:]
    weights = fragments.barycentric.detach().flatten(0, 2)[pixels]
    z, w = (weights[..., None] * corners).sum(dim=1).unbind(dim=1)
    return (z / w).where(face >= 0, torch.inf)


def _on_screen(
    vertex: Int[Tensor, "e 3"], clip: Float[Tensor, "v n 4"], pixels: Int[Tensor, " e"], size: int
) -> tuple[Float[Tensor, "e 3 2"], Bool[Tensor, "e 3"]]:
    """Return vertices in pixels from the centre of each pixel, and which are before the camera."""
    view, row, column = pixels // size**2, pixels // size % size, pixels % size
    flat = (view[:, None] * clip.shape[1] + vertex).flatten()
    position = clip.flatten(0, 1).index_select(0, flat).unflatten(0, vertex.shape)
    w = position[..., 3:]
    in_front = w > 0
    projected = (position[..., :2] / torch.where(in_front, w, 1.0) + 1.0) * (size / 2.0)
    centre = torch.stack([column, row], dim=1).to(clip.dtype) + 0.5
    return projected - centre[:, None], in_front.squeeze(-1)

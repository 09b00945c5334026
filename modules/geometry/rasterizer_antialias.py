"""Blending across silhouettes (`Rasterizer.antialias`), in torch, on any device."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modules.geometry.rasterizer import Fragments, clip_positions

CROSSING_SLACK = 1.0 / 16.0
"""How far beyond the two pixel centres a crossing may lie, in pixels: coverage is decided in lower
precision than the crossing."""

ROW, COLUMN = 0, 1


def antialias(image: Float[Tensor, "v h w c"], fragments: Fragments) -> Float[Tensor, "v h w c"]:
    """Return the image blended across the silhouette edges that cross between pixel centres."""
    clip = clip_positions(fragments.vertices, fragments.cameras)
    silhouette = _silhouettes(fragments.faces.long(), clip.detach())
    pixels = image.flatten(0, 2)
    blended = pixels
    for axis in (ROW, COLUMN):
        near, far, edge = _cut_pairs(fragments, clip.detach(), silhouette, axis)
        at, _ = _meets_line(_on_screen(edge, clip, near, far, image.shape[1])[0])
        at = at.clamp(0.0, 1.0)
        # Before the middle the edge lies in the near pixel, after it in the other one.
        cuts_near = at.detach() < 0.5
        target, source = torch.where(cuts_near, near, far), torch.where(cuts_near, far, near)
        colours = pixels.index_select(0, source) - pixels.index_select(0, target)
        blended = blended.index_add(0, target, (0.5 - at).abs()[:, None].to(image) * colours)
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
    collapsed = (faces == faces.roll(-1, dims=1)).any(dim=1).repeat_interleave(3)
    key = torch.where(collapsed, -1 - torch.arange(len(key), device=key.device), key)  # no edges
    key, order = key.sort()
    same = torch.zeros(len(key) + 1, dtype=torch.bool, device=faces.device)
    same[1:-1] = key[1:] == key[:-1]  # same[i]: edge i equals edge i - 1
    pair = same[1:-1] & ~same[:-2] & ~same[2:]
    first, second = order[:-1][pair], order[1:][pair]
    opposite = torch.full_like(start, -1)
    opposite[first], opposite[second] = faces.flatten()[second], faces.flatten()[first]
    return opposite.unflatten(0, faces.shape)


def _silhouettes(faces: Int[Tensor, "f 3"], clip: Float[Tensor, "v n 4"]) -> Bool[Tensor, "v f 3"]:
    """Return at which edges (k opposite to corner k) the surface ends or folds over in a view."""
    opposite = opposite_vertices(faces)
    in_front = clip[..., 3] > 0
    plane = clip[..., :2] / torch.where(in_front, clip[..., 3], 1.0)[..., None]
    corners, wings = plane[:, faces], plane[:, opposite.clamp(min=0)]
    starts = corners.roll(-1, dims=2)
    run, rise = (corners.roll(-2, dims=2) - starts).unbind(dim=-1)

    def side(points: Float[Tensor, "v f 3 2"]) -> Float[Tensor, "v f 3"]:
        x, y = (points - starts).unbind(dim=-1)
        return (run * y - rise * x).sign()

    folds = side(corners) * side(wings) > 0  # both faces on one side of their edge
    return folds | (opposite < 0) | ~in_front[:, opposite.clamp(min=0)]


@torch.no_grad()
def _cut_pairs(
    fragments: Fragments, clip: Float[Tensor, "v n 4"], silhouette: Bool[Tensor, "v f 3"], axis: int
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Int[Tensor, "e 2"]]:
    """Return the neighbours, in a row or column, between which a silhouette edge crosses.

    Returns:
        Flat index of the pixel that sees the nearer face, that of the other, and the vertices of
        the nearer face's edge.
    """
    face, size = fragments.face, fragments.face.shape[-1]
    differ = face.diff(dim=2) != 0 if axis == ROW else face.diff(dim=1) != 0
    view, row, column = differ.nonzero(as_tuple=True)
    first = (view * size + row) * size + column
    second = first + (1 if axis == ROW else size)
    swap = _depth(fragments, clip, second) <= _depth(fragments, clip, first)
    near, far = torch.where(swap, second, first), torch.where(swap, first, second)
    edges = silhouette[view, face.flatten()[near].long()]
    kept = edges.any(dim=1)
    near, far, edges = near[kept], far[kept], edges[kept]

    # Edge k, opposite to corner k, runs from corner k + 1 to corner k + 2.
    vertices = fragments.faces[face.flatten()[near].long()].long()
    corners, in_front = _on_screen(vertices, clip, near, far, size)
    starts, ends = corners.roll(-1, dims=1), corners.roll(-2, dims=1)
    run, rise = (ends - starts).abs().unbind(dim=-1)
    at, straddles = _meets_line(torch.stack([starts, ends], dim=-2))
    # The line leaves the face through the last of the edges that it meets.
    last = at.where(straddles, -torch.inf).argmax(dim=1, keepdim=True)
    cut = straddles & edges & (rise >= run)
    cut &= (at > -CROSSING_SLACK) & (at < 1.0 + CROSSING_SLACK)
    keep = cut.gather(1, last).squeeze(1) & in_front.all(dim=1)
    edge = vertices.gather(1, torch.cat([(last + 1) % 3, (last + 2) % 3], dim=1))
    return near[keep], far[keep], edge[keep]


def _meets_line(
    edges: Float[Tensor, "*e 2 2"],
) -> tuple[Float[Tensor, "*e"], Bool[Tensor, "*e"]]:
    """Return the x at which edges meet the line y = 0, and which do."""
    (x0, y0), (x1, y1) = (edges[..., end, :].unbind(dim=-1) for end in (0, 1))
    straddles = (y0 >= 0) != (y1 >= 0)
    return x0 - y0 * (x1 - x0) / torch.where(straddles, y1 - y0, 1.0), straddles


def _depth(
    fragments: Fragments, clip: Float[Tensor, "v n 4"], pixels: Int[Tensor, " e"]
) -> Float[Tensor, " e"]:
    """Return z / w of the face at each pixel, infinity where there is none."""
    face = fragments.face.flatten()[pixels].long()
    view = pixels // fragments.face[0].numel()
    corners = clip[view[:, None], fragments.faces[face.clamp(min=0)].long(), 2:]
    weights = fragments.barycentric.flatten(0, 2)[pixels]
    z, w = (weights[..., None] * corners).sum(dim=1).unbind(dim=1)
    return (z / w).where(face >= 0, torch.inf)


def _on_screen(
    vertices: Int[Tensor, "e k"],
    clip: Float[Tensor, "v n 4"],
    near: Int[Tensor, " e"],
    far: Int[Tensor, " e"],
    size: int,
) -> tuple[Float[Tensor, "e k 2"], Bool[Tensor, "e k"]]:
    """Return vertices as seen from pixels, and which of them lie before the camera.

    The origin is the centre of the pixel `near`, the unit one pixel; x runs towards `far`.
    """
    view = (near // size**2)[:, None]
    position = clip.flatten(0, 1).index_select(0, (view * clip.shape[1] + vertices).flatten())
    position = position.unflatten(0, vertices.shape)
    in_front = position[..., 3] > 0
    plane = position[..., :2] / torch.where(in_front, position[..., 3], 1.0)[..., None]
    here, there = (torch.stack([p % size, p // size % size], dim=1) for p in (near, far))
    offset = (plane + 1.0) * (size / 2.0) - (here + 0.5)[:, None]
    towards = (there - here)[:, None]
    x, y = (offset * towards).sum(dim=-1), (offset * towards.abs().flip(-1)).sum(dim=-1)
    return torch.stack([x, y], dim=-1), in_front

"""A slow rasterizer that is easy to read: what the fast ones are tested against.

It shares no arithmetic with them: rays meet planes by solving three equations per pixel and face,
the nearest wins in a depth buffer, textures are sums over all texels, and silhouettes are followed
pixel pair by pixel pair. Use it for a few dozen faces at a few dozen pixels, in float64.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.rasterizer import Fragments, check_inputs


class ReferenceRasterizer:
    """See `Rasterizer`."""

    def rasterize(
        self,
        vertices: Float[Tensor, "n 3"],
        faces: Int[Tensor, "f 3"],
        cameras: Sequence[Camera],
        resolution_px: int,
    ) -> Fragments:
        """Try every face at every pixel."""
        check_inputs(vertices, faces, cameras, resolution_px)
        views = [_nearest(vertices, faces, camera, resolution_px) for camera in cameras]
        face, barycentric = (torch.stack(parts) for parts in zip(*views, strict=True))
        return Fragments(vertices, faces, tuple(cameras), face, barycentric)

    def interpolate(
        self, attributes: Float[Tensor, "k c"], faces: Int[Tensor, "f 3"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Weight the attributes of each pixel's three corners."""
        fragments.check_faces(faces)
        if not len(faces):
            return attributes.new_zeros(*fragments.face.shape, attributes.shape[1])
        corners = attributes[faces.long()[fragments.face.long().clamp(min=0)]]
        return (fragments.barycentric[..., None] * corners).sum(dim=-2)

    def texture(
        self,
        image: Float[Tensor, "th tw c"],
        uv: Float[Tensor, "v h w 2"],
        fragments: Fragments,
    ) -> Float[Tensor, "v h w c"]:
        """Sum all texels, each weighted by how near it is, in turns around the image."""
        height, width, _ = image.shape
        down = _tents((1.0 - uv[..., 1]) * height - 0.5, height)
        right = _tents(uv[..., 0] * width - 0.5, width)
        samples = torch.einsum("...i,...j,ijc->...c", down, right, image)
        return samples * fragments.hit[..., None]

    def antialias(
        self, image: Float[Tensor, "v h w c"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Visit all pairs of neighbours, view by view."""
        views = []
        for view, camera in enumerate(fragments.cameras):
            pixels, depths = _project(camera, fragments.vertices, image.shape[1])
            changes = torch.zeros_like(image[view])
            for near, far in _pairs(fragments, view, depths):
                at = _crossing(near, far, pixels, depths, fragments, view)
                if at is None:
                    continue
                difference = image[view][far] - image[view][near]
                row, column = near if at < 0.5 else far
                blend = torch.zeros_like(changes)
                blend[row, column] = 1.0
                changes = changes + blend * (0.5 - at) * difference
            views.append(image[view] + changes)
        return torch.stack(views)


def _nearest(
    vertices: Float[Tensor, "n 3"], faces: Int[Tensor, "f 3"], camera: Camera, resolution_px: int
) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w 3"]]:
    """Return the nearest face at each pixel centre, and the weights of its corners."""
    origins, directions = (
        torch.from_numpy(array).to(vertices) for array in camera.rays(resolution_px)
    )
    face = torch.full(origins.shape[:2], -1, device=vertices.device)
    barycentric = torch.zeros_like(origins)
    distance = torch.full_like(origins[..., 0], torch.inf)
    for index, corners in enumerate(faces.long().tolist()):
        a, b, c = vertices[corners]
        # a + u (b - a) + v (c - a) = origin + t direction
        matrix = torch.stack(
            [(b - a).expand_as(directions), (c - a).expand_as(directions), -directions], dim=-1
        )
        solvable = torch.linalg.det(matrix.detach()).abs() > 1e-12
        matrix = torch.where(solvable[..., None, None], matrix, torch.eye(3).to(matrix))
        u, v, t = torch.linalg.solve(matrix, origins - a).unbind(dim=-1)
        weights = torch.stack([1.0 - u - v, u, v], dim=-1)
        nearer = solvable & (weights >= 0).all(dim=-1) & (t > 0) & (t < distance)
        face = torch.where(nearer, index, face)
        barycentric = torch.where(nearer[..., None], weights, barycentric)
        distance = torch.where(nearer, t.detach(), distance)
    return face, barycentric


def _tents(position: Float[Tensor, "v h w"], size: int) -> Float[Tensor, "v h w k"]:
    """Return each texel's weight, linear in distance, along an axis that repeats after `size`."""
    distance = position[..., None] % size - torch.arange(size).to(position)
    turns = torch.stack([distance - size, distance, distance + size])
    return (1.0 - turns.abs()).clamp(min=0.0).sum(dim=0)


def _project(
    camera: Camera, vertices: Float[Tensor, "n 3"], resolution_px: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """`Camera.project` in torch: pixels (x right, y down) and depth."""
    matrix = torch.from_numpy(camera.matrix).to(vertices)
    local = (vertices - matrix[:3, 3]) @ matrix[:3, :3]
    depth = -local[:, 2]
    if camera.projection == "orthographic":
        assert camera.ortho_scale is not None
        plane = local[:, :2] / (camera.ortho_scale / 2.0)
    else:
        assert camera.fov_deg is not None
        plane = local[:, :2] / depth[:, None]
        plane = plane / torch.tan(torch.deg2rad(torch.tensor(camera.fov_deg / 2.0).to(vertices)))
    x, y = (plane[:, 0] + 1.0) / 2.0, (1.0 - plane[:, 1]) / 2.0
    return torch.stack([x, y], dim=1) * resolution_px, depth


Pixel = tuple[int, int]
"""Row and column."""


def _pairs(
    fragments: Fragments, view: int, depths: Float[Tensor, " n"]
) -> Iterator[tuple[Pixel, Pixel]]:
    """Yield neighbours that see different faces: the pixel that sees the nearer one comes first."""
    size = fragments.face.shape[-1]

    def depth(pixel: Pixel) -> float:
        face = int(fragments.face[view][pixel])
        if face < 0:
            return float("inf")
        weights = fragments.barycentric[view][pixel]
        return float((weights * depths[fragments.faces[face].long()]).sum().detach())

    for row in range(size):
        for column in range(size):
            here = (row, column)
            for there in ((row, column + 1), (row + 1, column)):
                if max(there) == size or fragments.face[view][here] == fragments.face[view][there]:
                    continue
                yield (there, here) if depth(there) < depth(here) else (here, there)


def _crossing(
    near: Pixel,
    far: Pixel,
    pixels: Float[Tensor, "n 2"],
    depths: Float[Tensor, " n"],
    fragments: Fragments,
    view: int,
) -> Float[Tensor, ""] | None:
    """Return where, from `near` (0) to `far` (1), the near face ends; None if on no silhouette."""
    face = int(fragments.face[view][near])
    corners = fragments.faces[face].tolist()
    if bool((depths[corners] <= 0).any()):
        return None
    along = 0 if near[0] == far[0] else 1  # x, or y
    level = near[along] + 0.5  # of the line between the two centres, on the other axis
    start = near[1 - along] + 0.5
    step = far[1 - along] - near[1 - along]
    exits = []
    for corner in range(3):
        a, b = corners[(corner + 1) % 3], corners[(corner + 2) % 3]
        before, after = (pixels[vertex, 1 - along] - level for vertex in (a, b))
        if bool(before >= 0) == bool(after >= 0):
            continue
        share = before / (before - after)
        meets = pixels[a, along] + share * (pixels[b, along] - pixels[a, along])
        exits.append(((meets - start) * step, a, b))
    if not exits:
        return None
    at, a, b = max(exits, key=lambda found: float(found[0].detach()))
    run, rise = (pixels[b] - pixels[a])[[along, 1 - along]].abs()
    if rise < run or not -1.0 / 16.0 < at < 17.0 / 16.0:
        return None
    (third,) = set(corners) - {a, b}
    if not _is_silhouette(a, b, third, pixels, depths, fragments.faces, face):
        return None
    return at.clamp(0.0, 1.0)


def _is_silhouette(
    a: int,
    b: int,
    third: int,
    pixels: Float[Tensor, "n 2"],
    depths: Float[Tensor, " n"],
    faces: Int[Tensor, "f 3"],
    face: int,
) -> bool:
    """Return whether the surface ends or folds over at edge ab in this view."""
    across = [
        next(iter(set(other) - {a, b}))
        for index, other in enumerate(faces.tolist())
        if index != face and {a, b} < set(other)
    ]
    if len(across) != 1 or depths[across[0]] <= 0:
        return True
    edge = pixels[b] - pixels[a]
    own, others = (
        edge[0] * (pixels[vertex] - pixels[a])[1] - edge[1] * (pixels[vertex] - pixels[a])[0]
        for vertex in (third, across[0])
    )
    return bool(own * others > 0)

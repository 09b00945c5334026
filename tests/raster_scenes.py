"""Small scenes for the tests of rasterizers, on the CPU and on a GPU."""

import numpy as np
import torch
from torch import Tensor

from data_pipeline.contract import Camera, look_at_origin
from modules.geometry.mesh import ColoredMesh, smooth_normals
from modules.geometry.rasterize import render_mesh
from modules.geometry.rasterizer import Rasterizer

FLAT = Camera(name="flat", camera_to_world=look_at_origin(25.0, 35.0, 2.0), ortho_scale=1.1)
WIDE = Camera(
    name="wide",
    camera_to_world=look_at_origin(200.0, -20.0, 0.9),
    projection="perspective",
    fov_deg=70.0,
)
CAMERAS = (FLAT, WIDE)
STEPS = ((0, 0), (1, 0), (1, 1), (0, 1))
SIDES = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6], [0, 4, 5], [0, 5, 1]])


def soup(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A few welded faces and some stray ones that cut through each other and the camera's plane."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.tensor([[-0.4, -0.3], [0.35, -0.4], [0.4, 0.35], [-0.3, 0.4]]).unbind(dim=1)
    near = torch.stack([x, y, 0.3 * x - 0.2], dim=1)
    box = torch.cat([near, near + torch.tensor([0.05, -0.02, 0.5])])
    stray = torch.rand(15, 3, generator=generator) - 0.5
    behind = torch.tensor([[-0.5, 1.2, -0.4], [-0.2, 1.4, -0.5], [-0.6, 1.0, -0.6]])
    crossing = torch.tensor([[0.4, 0.1, 0.1], [0.3, 0.3, -0.2], [-0.4, 1.6, -0.5]])
    vertices = torch.cat([box, stray, behind, crossing]).double()
    faces = torch.cat([SIDES, torch.arange(8, len(vertices)).view(-1, 3)])
    return vertices, torch.cat([faces, torch.tensor([[0, 0, 1], [2, 2, 2]])])  # and degenerate ones


def torus(around: int = 12, across: int = 8) -> tuple[Tensor, Tensor]:
    """A closed surface that hides part of itself."""
    u, v = torch.meshgrid(torch.arange(around), torch.arange(across), indexing="ij")
    # The shifts keep edges off pixel centres and off the diagonal, where rounding decides.
    turn, tilt = 2 * torch.pi * (u + 0.3) / around, 2 * torch.pi * (v + 0.2) / across
    turn, tilt = turn.double(), tilt.double()
    radius = 0.3 + 0.15 * torch.cos(tilt)
    vertices = [radius * torch.cos(turn), radius * torch.sin(turn), 0.15 * torch.sin(tilt)]
    corner = [((u + du) % around * across + (v + dv) % across).flatten() for du, dv in STEPS]
    faces = [torch.stack([corner[0], corner[1], corner[2]], dim=1)]
    faces += [torch.stack([corner[0], corner[2], corner[3]], dim=1)]
    return torch.stack(vertices, dim=-1).view(-1, 3), torch.cat(faces)


def images(
    rasterizer: Rasterizer,
    vertices: Tensor,
    attributes: Tensor,
    image: Tensor,
    faces: Tensor,
    size: int,
) -> Tensor:
    """Coordinates, attributes, texture and silhouette, antialiased: all that a loss would see."""
    seen = rasterizer.rasterize(vertices, faces, CAMERAS, size)
    coord = rasterizer.interpolate(vertices, faces, seen)
    values = rasterizer.interpolate(attributes, faces, seen)
    rgb = rasterizer.texture(image, values[..., :2], seen)
    alpha = seen.hit[..., None].to(vertices.dtype)
    return rasterizer.antialias(torch.cat([coord, values, rgb, alpha], dim=-1), seen)


def inputs(scene: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vertices, attributes, texture and faces, as `images` takes them."""
    vertices, faces = scene
    generator = torch.Generator().manual_seed(7)
    attributes = torch.rand(len(vertices), 2, generator=generator).double()
    return vertices, attributes, torch.rand(3, 4, 2, generator=generator).double(), faces


def square(side: float, x: float = 0.0, z: float = 0.0) -> tuple[Tensor, Tensor]:
    """A square that faces azimuth 0."""
    h = side / 2.0
    corners = [[x - h, 0.0, z - h], [x + h, 0.0, z - h], [x + h, 0.0, z + h], [x - h, 0.0, z + h]]
    return torch.tensor(corners), torch.tensor([[0, 1, 2], [0, 2, 3]])


def waved_torus() -> ColoredMesh:
    """A torus in waves of colour."""
    vertices, faces = (each.numpy() for each in torus(96, 64))
    normals = smooth_normals(vertices, faces)
    tint = 0.5 + 0.4 * np.sin(25.0 * vertices)
    return ColoredMesh(
        vertices=vertices,
        faces=faces,
        corner_normals=normals[faces],
        corner_uv=np.zeros((len(faces), 3, 2)),
        corner_tint=tint[faces],
        face_texture=np.full(len(faces), -1),
        textures=(),
    )


def shown(
    mesh: ColoredMesh, cameras: tuple[Camera, ...], resolution_px: int
) -> tuple[Tensor, Tensor]:
    """Return the 2.5D images of a mesh and their foreground."""
    views = render_mesh(mesh, cameras, resolution_px)
    stack = np.stack([views.rgb * 2.0 - 1.0, views.normal, views.coord * 2.0])
    images = np.moveaxis(stack, -1, 2).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(views.hit)

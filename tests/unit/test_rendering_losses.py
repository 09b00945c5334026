"""A field's surface on a grid, and the losses of its images: gradients, and what they mend."""

import numpy as np
import pytest
import torch
from analytic import ORTHO6, observe, sphere

from modules.geometry.grid_surface import grid_surface
from modules.geometry.rasterizer_embree import EmbreeRasterizer
from modules.losses.rendering import rendering_losses, vertex_normals

CELLS, HALF_SIDE = 32, 0.54
STEP = 2.0 * HALF_SIDE / CELLS


def grid_points() -> torch.Tensor:
    axis = torch.linspace(-HALF_SIDE, HALF_SIDE, CELLS + 1, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis, axis)


def sphere_values(radius: float | torch.Tensor) -> torch.Tensor:
    return (grid_points().norm(dim=1) - radius).view([CELLS + 1] * 3)


def test_vertices_lie_on_the_zero_set_and_faces_look_outwards():
    surface = grid_surface(sphere_values(0.4), STEP)
    vertices = surface.interpolate(grid_points())
    torch.testing.assert_close(
        vertices.norm(dim=1), torch.full((len(vertices),), 0.4).double(), atol=1e-3, rtol=0.0
    )
    outwards = (vertex_normals(vertices, surface.faces) * vertices).sum(dim=1)
    assert outwards.min() > 0.3


def test_vertices_move_with_the_values():
    """Growing the sphere by d moves every vertex outwards by d, to first order."""
    radius = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    surface = grid_surface(sphere_values(radius), STEP)
    lengths = surface.interpolate(grid_points()).norm(dim=1)
    (slope,) = torch.autograd.grad(lengths.mean(), radius)
    assert slope == pytest.approx(1.0, abs=0.02)


def test_values_without_a_zero_set_give_no_faces():
    surface = grid_surface(torch.ones(9, 9, 9), 0.1)
    assert len(surface.faces) == 0
    assert surface.interpolate(torch.zeros(9**3, 3)).shape == (0, 3)


def test_every_vertex_of_a_foam_lies_between_two_neighbouring_grid_points():
    """Noise holds every ambiguous cell that marching cubes knows."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 20, 20))) * STEP
    surface = grid_surface(values.requires_grad_(), STEP)
    points = torch.cartesian_prod(*[torch.arange(20.0, dtype=torch.float64)] * 3)
    ends = points[surface.ends]
    torch.testing.assert_close(
        (ends[:, 1] - ends[:, 0]).abs().sum(dim=1),
        torch.ones(len(ends)).double(),
        atol=0.0,
        rtol=0.0,
    )
    share = surface.share.detach()
    assert len(share) > 1000
    assert 0.0 < share.min() <= share.max() < 1.0
    (gradient,) = torch.autograd.grad(surface.interpolate(points).sum(), values)
    assert gradient.isfinite().all()


def losses_of(radius: torch.Tensor, shade: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the losses of a sphere in one grey against images of one of radius 0.4."""
    images, hit = observe(sphere(0.4), 96)
    surface = grid_surface(sphere_values(radius), STEP)
    vertices = surface.interpolate(grid_points())
    return rendering_losses(
        EmbreeRasterizer(),
        vertices,
        surface.faces,
        shade.expand(len(vertices), 3),
        torch.from_numpy(images).double(),
        torch.from_numpy(hit),
        ORTHO6,
        0.05,
    )


def test_the_true_surface_has_next_to_no_loss():
    images, _ = observe(sphere(0.4), 96)
    grey = torch.tensor(float(images[0][images[0] < 1.0].mean()) / 2.0 + 0.5).double()
    exact = losses_of(torch.tensor(0.4).double(), grey)
    assert exact["depth"] < 0.05
    assert exact["normal"] < 0.01
    assert exact["mask"] < 0.01
    assert exact["colour"] < 1e-4


@pytest.mark.parametrize("name", ["depth", "mask"])
def test_a_planted_offset_is_undone_by_the_rendering_loss_alone(name: str):
    offset = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.002)
    for _ in range(25):
        optimizer.zero_grad()
        losses_of(0.4 + offset, torch.tensor(0.5).double())[name].backward()
        optimizer.step()
    assert abs(float(offset.detach())) < 0.004


def test_a_wrong_colour_is_told_and_has_a_gradient():
    shade = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss = losses_of(torch.tensor(0.4).double(), shade)["colour"]
    loss.backward()
    assert loss > 0.1
    assert shade.grad is not None
    assert np.sign(float(shade.grad)) == -1.0


def test_faces_almost_edge_on_give_no_gradient_without_bound():
    """A wall along the viewing axis, tilted by a billionth: what a pixel sees of it races along."""
    wall = torch.tensor([[0.0, -0.4, -0.4], [1e-9, 0.4, -0.4], [0.0, 0.0, 0.4]], requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [0, 2, 1]])
    images, hit = observe(sphere(0.4), 33)  # odd: a column of pixel centres lies on the wall
    losses = rendering_losses(
        EmbreeRasterizer(), wall, faces, torch.zeros(3, 3), torch.from_numpy(images),
        torch.from_numpy(hit), ORTHO6, 0.05,
    )  # fmt: skip
    torch.stack(list(losses.values())).sum().backward()
    assert wall.grad is not None
    assert wall.grad.isfinite().all()
    assert wall.grad.abs().max() <= 0.05 + 1e-6

"""The field of lifted points and its surface are the same on a GPU as on the CPU."""

import numpy as np
import pytest
import torch
from raster_scenes import shown, waved_torus

from data_pipeline.contract import view_layout
from modules.geometry.classical_field import ClassicalField
from modules.geometry.isosurface import extract_isosurface
from modules.geometry.lift import Observation, lift
from modules.geometry.neighbours import PointIndex

pytestmark = pytest.mark.gpu


def observed(layout: str, noise: float) -> Observation:
    cameras = view_layout(layout)
    images, hit = shown(waved_torus(), cameras, 96)
    images[2] += noise * torch.randn(images[2].shape, generator=torch.Generator().manual_seed(0))
    return lift(images.double().numpy(), cameras, hit.numpy())


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("layout", ["ortho6", "pinhole4"])
def test_field_and_surface_are_those_of_the_cpu(layout: str, noise: float):
    observation = observed(layout, noise)
    points = np.random.default_rng(1).uniform(-0.54, 0.54, (50_000, 3))
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    near = observation.position + np.random.default_rng(2).normal(
        0.0, 0.01, observation.position.shape
    )
    asked, made = np.concatenate([points, near]), []
    for device in ("cpu", "cuda"):
        field = ClassicalField(observation, device=device)
        sample = field.sample(asked)
        surface = extract_isosurface(
            lambda some, field=field: field.sample(some).distance,
            96,
            observation.position,
            sharp=False,
            device=device,
        )
        made.append((sample, field.colour(points, normals), surface))
    (expected, colour, mesh), (sample, same_colour, same_mesh) = made
    for name in ("distance", "free", "thickened", "outwards"):
        apart = np.abs(getattr(sample, name) - getattr(expected, name))
        apart = apart if apart.ndim == 1 else apart.max(axis=1)
        # Of two neighbours at one distance either may lead.
        assert (apart < 1e-9).mean() > 0.9999, name
    np.testing.assert_allclose(same_colour, colour, atol=1e-9)
    assert abs(len(same_mesh[1]) - len(mesh[1])) <= 1e-3 * len(mesh[1])
    index = PointIndex(torch.from_numpy(mesh[0]))
    distance, _ = index.query(torch.from_numpy(same_mesh[0]), 1)
    assert np.quantile(distance.numpy(), 0.999) < 1e-6

import numpy as np
import trimesh
from analytic import ORTHO6, bowl, flat_colored, observe

from modules.geometry.classical_field import ClassicalField
from modules.geometry.lift import lift


def field_of(*bodies: trimesh.Trimesh) -> ClassicalField:
    scene = trimesh.util.concatenate(bodies)
    assert isinstance(scene, trimesh.Trimesh)
    images, hit = observe(flat_colored(scene), 64)
    return ClassicalField(lift(images, ORTHO6, hit))


def body(mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces)


def test_nothing_supports_a_pillar_between_a_ball_and_the_dome_above_it():
    dome = body(bowl())
    dome.apply_transform(trimesh.transformations.rotation_matrix(np.pi, [1, 0, 0]))
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.12)
    distance = (
        field_of(dome, ball)
        .sample(np.array([[0.0, 0.0, 0.25], [0.05, 0.0, 0.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.42]]))
        .distance
    )
    np.testing.assert_array_equal(distance > 0, [True, True, False, False])


def test_the_inside_of_bodies_is_solid_and_so_is_a_wall_that_no_view_sees():
    """A deep notch in a cube: neither its hidden back wall nor the body around it is taken away."""
    parts = []
    for low, high in (((-0.4, -0.4, -0.4), (0.4, 0.4, 0.0)), ((-0.4, -0.4, 0.0), (0.1, 0.4, 0.4))):
        part = trimesh.creation.box(bounds=[low, high])
        parts.append(part)
    field = field_of(*parts)
    rng = np.random.default_rng(0)
    lower = rng.uniform(-0.37, 0.37, (500, 3)) * [1, 1, 0.5] - [0, 0, 0.2]
    assert (field.sample(lower).distance < 0).all()
    upper = rng.uniform(-0.37, 0.37, (500, 3)) * [0.6, 1, 0.5] + [-0.15, 0, 0.2]
    assert (field.sample(upper).distance < 0).all()
    notch = rng.uniform(0, 1, (500, 3)) * [0.25, 0.7, 0.35] + [0.13, -0.35, 0.03]
    assert (field.sample(notch).distance > 0).all()

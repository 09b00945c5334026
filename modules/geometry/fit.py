"""Per-asset fit: a mesh's vertices moved until what the views see of it agrees with the images.

Every step rasterizes the mesh into the views and solves one sparse linear least squares problem, as
Nehab et al. ("Efficiently combining positions and normals for precise 3D geometry", 2005) do for
one scan: a pixel's surface point should lie on the plane that its depth and normal tell of, a face
should be square to the normals that its pixels show, and outlines should meet. Weights are robust:
what contradicts the mesh by pixels is another surface, and is left out. Faces stay as they are, so
a closed mesh stays closed; moves are cut short where a face would turn over or two walls would
meet.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import cg

from data_pipeline.contract import UserError
from modules.geometry.fit_equations import FitSettings, FitViews, area_vectors
from modules.geometry.lift import Observation
from modules.geometry.mesh import smooth_normals
from modules.geometry.rasterize import RayScene

MAX_STEPS = 1000

LEAST_TOLD = 0.1
"""Weight of the images, in squared spacings, below which a vertex counts as unseen."""

LEAST_TURN_COSINE, TURN_TRIES = 0.5, 6
"""No face turns by more than 60 degrees in a step: its corners' moves are halved so many times."""


def check_steps(steps: int) -> None:
    """Raise UserError unless so many steps can be taken."""
    if not 0 <= steps <= MAX_STEPS:
        raise UserError(f"refine_steps={steps} must be at least 0 (none) and at most {MAX_STEPS}")


def fit_vertices(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    observation: Observation,
    steps: int,
    *,
    settings: FitSettings | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Float[ndarray, "n 3"]:
    """Return the vertices after some steps of the fit.

    Args:
        vertices: to start from, world; welded.
        faces: vertex indices, outwards; they stay as they are.
        observation: the views.
        steps: how many; beyond 10 little changes.
        settings: what counts how much.
        progress: called after every step.

    Raises:
        UserError: steps is out of range.
    """
    check_steps(steps)
    settings = settings or FitSettings()
    views, current = FitViews(observation), vertices.copy()
    bending = _laplacian(faces, len(vertices))
    bending = settings.stiffness * (bending.T @ bending)
    for _ in range(steps):
        matrix, missing = views.equations(current, faces, settings)
        data = matrix.T @ matrix
        told = data.diagonal().reshape(-1, 3).max(axis=1) * observation.spacing**2 > LEAST_TOLD
        anchor = np.where(told, settings.anchor, settings.unseen_anchor)
        shape = kron(bending + diags_array(anchor), eye_array(3)) / observation.spacing**2
        system = (data + shape).tocsr()
        wanted = matrix.T @ missing - shape @ (current - vertices).ravel()
        diagonal = diags_array(1.0 / system.diagonal())
        move, _ = cg(system, wanted, rtol=1e-3, maxiter=200, M=diagonal)
        current = current + _safe(
            current, faces, move.reshape(-1, 3), observation.spacing, settings
        )
        progress()
    return current


def _laplacian(faces: Int[ndarray, "f 3"], count: int) -> csr_array:
    """Return the matrix that takes from every vertex the mean of its neighbours."""
    ends = np.concatenate([faces, np.roll(faces, 1, axis=1)]).ravel()
    others = np.concatenate([np.roll(faces, 1, axis=1), faces]).ravel()
    joined = coo_array((np.ones(len(ends)), (ends, others)), shape=(count, count)).tocsr()
    joined.data[:] = 1.0
    degree = np.maximum(np.asarray(joined.sum(axis=1)).ravel(), 1.0)
    return eye_array(count, format="csr") - diags_array(1.0 / degree) @ joined


def _safe(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    move: Float[ndarray, "n 3"],
    spacing: float,
    settings: FitSettings,
) -> Float[ndarray, "n 3"]:
    """Return the move, shortened so that no face turns over and no two walls meet."""
    edges = np.linalg.norm(vertices[faces] - vertices[np.roll(faces, -1, axis=1)], axis=2)
    uses = np.maximum(np.bincount(faces.ravel(), minlength=len(vertices)), 1)
    mean = np.bincount(faces.ravel(), edges.ravel(), minlength=len(vertices)) / uses
    room = _room(vertices, faces, move, spacing, settings.kept_thickness * spacing)
    most = np.minimum(settings.longest_move * mean, room)
    length = np.linalg.norm(move, axis=1)
    move = move * np.minimum(1.0, most / np.maximum(length, 1e-30))[:, None]
    before = area_vectors(vertices, faces)
    for share in (*[0.5] * TURN_TRIES, 0.0):
        after = area_vectors(vertices + move, faces)
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        turned = (before * after).sum(axis=1) < LEAST_TURN_COSINE * lengths
        if not turned.any():
            break
        move[np.unique(faces[turned])] *= share
    return move


def _room(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    move: Float[ndarray, "n 3"],
    spacing: float,
    kept: float,
) -> Float[ndarray, " n"]:
    """Return how far each vertex may go: not half way to the wall that it moves towards."""
    normals = smooth_normals(vertices, faces)
    along = np.copysign(1.0, (move * normals).sum(axis=1, keepdims=True)) * normals
    scene = RayScene(vertices, faces)
    hit, weights = scene.first_hit(vertices + 0.02 * spacing * along, along)
    distance = np.linalg.norm(scene.positions(hit, weights) - vertices, axis=1)
    return np.where(hit >= 0, np.maximum(0.45 * (distance - kept), 0.0), np.inf)

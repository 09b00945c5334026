"""A UV atlas for any mesh, within a time limit: xatlas in a child process, else a plain grid."""

import io
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

_WORKER = Path(__file__).with_name("atlas_worker.py")

MIP_PX = 128
"""Charts stay a texel apart down to the mip level of this side."""


LEAST_USE = 0.05
"""Share of the texture that charts must fill, unless a grid of triangles fills less."""


@dataclass(frozen=True)
class Atlas:
    """How a mesh lies in its texture.

    Args:
        source: the mesh's vertex that each atlas vertex copies.
        faces: the mesh's faces, in its order, as atlas vertices.
        uv: texture coordinates in [0, 1], v up.
    """

    source: Int[ndarray, " a"]
    faces: Int[ndarray, "f 3"]
    uv: Float[ndarray, "a 2"]

    @property
    def use(self) -> float:
        """Share of the texture that faces cover."""
        a, b, c = np.moveaxis(self.uv[self.faces], 1, 0)
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        return float(np.abs(ux * vy - uy * vx).sum() / 2.0)


class AtlasWorker(AbstractContextManager["AtlasWorker"]):
    """The child process that unwraps one mesh: started early, it is ready when the mesh is."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __exit__(self, *_: object) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()

    def run(self, mesh: bytes, timeout_s: float) -> bytes:
        """Return what the process makes of a mesh; see `atlas_worker`.

        Raises:
            RuntimeError: it failed or took too long.
        """
        try:
            made, told = self._process.communicate(mesh, timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"nothing after {timeout_s:g} s") from error
        if self._process.returncode:
            lines = told.decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {self._process.returncode}")
        return made


def unwrap(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    resolution_px: int,
    padding_px: int | None = None,
    timeout_s: float | None = None,
    worker: AtlasWorker | None = None,
) -> Atlas:
    """Return a UV atlas. Where xatlas fails or takes too long, warn and lay faces out on a grid.

    So too where faces hang together so little (a soup of triangles) that the air between charts
    leaves them next to nothing of the texture.

    Args:
        vertices: positions.
        faces: vertex indices.
        resolution_px: side of the texture to come.
        padding_px: texels between charts; less where charts are so many that it would take most of
            the texture. By default a texel at the mip level of MIP_PX: more in larger textures.
        timeout_s: xatlas is killed after so long: on some meshes it does not end. By default two
            minutes, and two milliseconds for each face where that is more.
        worker: a fresh one that is to do it; the caller ends it. None starts one.
    """
    if timeout_s is None:
        timeout_s = max(120.0, 0.002 * len(faces))
    packed = io.BytesIO()
    np.savez(
        packed,
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.uint32),
        resolution_px=resolution_px,
        padding_px=max(2, resolution_px // MIP_PX) if padding_px is None else padding_px,
    )
    try:
        with AtlasWorker() if worker is None else nullcontext(worker) as process:
            made = np.load(io.BytesIO(process.run(packed.getvalue(), timeout_s)))
    except RuntimeError as reason:
        warnings.warn(f"xatlas gave no atlas ({reason}): a grid atlas is used", stacklevel=2)
        return grid_atlas(faces, resolution_px)
    atlas = Atlas(
        source=made["source"].astype(np.int64),
        faces=made["faces"].astype(np.int64),
        uv=made["uv"].astype(np.float64),
    )
    if atlas.use >= LEAST_USE:
        return atlas
    grid = grid_atlas(faces, resolution_px)
    if atlas.use < grid.use:
        warnings.warn(
            f"the charts of {len(faces)} faces fill {atlas.use:.1%} of a texture of "
            f"{resolution_px} px: a grid atlas is used; a larger texture_px may do without",
            stacklevel=2,
        )
        return grid
    return atlas


def grid_atlas(faces: Int[ndarray, "f 3"], resolution_px: int) -> Atlas:
    """Return an atlas of equal right triangles, two to a square: ugly, instant, disjoint."""
    num_faces = len(faces)
    per_side = int(np.ceil(np.sqrt((num_faces + 1) // 2)))
    cell = 1.0 / per_side
    # One texel of air around each triangle, less where cells are only a few texels wide.
    gap = min(1.0 / resolution_px, cell / 6.0)
    lower = np.array([[gap, gap], [cell - 3 * gap, gap], [gap, cell - 3 * gap]])
    square, upper = np.divmod(np.arange(num_faces), 2)
    corner = np.where(upper[:, None, None] == 1, cell - lower, lower)
    origin = np.stack([square % per_side, square // per_side], axis=1) * cell
    return Atlas(
        source=faces.reshape(-1).astype(np.int64),
        faces=np.arange(num_faces * 3).reshape(-1, 3),
        uv=(origin[:, None] + corner).reshape(-1, 2),
    )

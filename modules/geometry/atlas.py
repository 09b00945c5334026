"""A UV atlas for any mesh, within a time limit: xatlas in child processes, else a plain grid."""

import os
import pickle
import queue
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from modules.geometry import atlas_worker
from modules.geometry.atlas_worker import Charts, flat_area
from modules.geometry.partition import partition

MIP_PX = 128
"""Charts stay a texel apart down to the mip level of this side."""

PART_FACES = 900
"""Larger meshes are cut into parts: xatlas takes 2.5 times as long for 10,000 faces at once, and
its seams are hardly shorter. Parts half as large have a tenth more seams."""

MOST_WORKERS = 8
"""Processes that cut parts into charts, if torch may use as many threads."""

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
        return flat_area(self.uv, self.faces)


class AtlasWorkers(AbstractContextManager["AtlasWorkers"]):
    """Child processes that unwrap: started early, they are ready when a mesh is.

    They end with the thread that starts them, at the latest: start, use and leave them in one.
    Where the machine lets fewer start, those do all; where none, `ask` fails.
    """

    def __init__(self) -> None:
        core = random.SystemRandom().randrange(2**16)  # other programs' workers begin elsewhere
        command = [sys.executable, "-P", str(Path(atlas_worker.__file__)), str(os.getpid())]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # else numpy starts one a core
        self._processes: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._failure: OSError | None = None
        for number in range(min(torch.get_num_threads(), MOST_WORKERS)):
            try:
                process = subprocess.Popen(
                    [*command, str(core + number)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:  # no memory, too many processes or open files
                self._failure = error
                break
            self._processes.append(process)
            self._free.put(process)

    def __exit__(self, *_: object) -> None:
        """End the processes, whatever they are doing."""
        self.kill()
        for process in self._processes:
            process.communicate()

    def kill(self) -> None:
        """Let whatever is asked fail."""
        for process in self._processes:
            process.kill()

    def ask(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers to messages; see `atlas_worker`.

        Raises:
            RuntimeError: no process could be started; or one failed, with the last line it said.
        """
        if not self._processes:
            raise RuntimeError(f"no process could be started: {self._failure}")
        with ThreadPoolExecutor(len(self._processes)) as pool:
            try:
                return list(pool.map(self._ask, messages))
            except BaseException:  # an interrupt too: else the pool would wait for every answer
                self.kill()
                raise

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a process's answer."""
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            told = process.stderr.read().decode(errors="replace").strip().splitlines()
            self._free.put(process)
            raise RuntimeError(told[-1] if told else f"exit code {process.wait()}") from None
        self._free.put(process)
        return answer


def unwrap(
    vertices: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    resolution_px: int,
    padding_px: int | None = None,
    timeout_s: float | None = None,
    workers: AtlasWorkers | None = None,
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
        workers: that are to do it, and of no use afterwards if they fail. None starts some.
    """
    if timeout_s is None:
        timeout_s = max(120.0, 0.002 * len(faces))
    if padding_px is None:
        padding_px = max(2, resolution_px // MIP_PX)
    with AtlasWorkers() if workers is None else nullcontext(workers) as own:
        limit = threading.Timer(timeout_s, own.kill)
        limit.start()
        try:
            charts = _cut(vertices, faces, own)
            sizes = {"resolution_px": resolution_px, "padding_px": padding_px}
            [made] = own.ask([asdict(charts) | sizes])
        except RuntimeError as error:
            reason = f"nothing after {timeout_s:g} s" if limit.finished.is_set() else error
            warnings.warn(f"xatlas gave no atlas ({reason}): a grid atlas is used", stacklevel=2)
            return grid_atlas(faces, resolution_px)
        finally:
            limit.cancel()
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


def _cut(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"], workers: AtlasWorkers
) -> Charts:
    """Return the charts of a mesh, those of its parts beside each other.

    Raises:
        RuntimeError: a process failed.
    """
    parts = sorted(partition(vertices, faces, PART_FACES), key=len, reverse=True)  # longest first
    used, messages = [], []
    for part in parts:
        own, local = np.unique(faces[part], return_inverse=True)
        used.append(own)
        corners = local.reshape(-1, 3).astype(np.uint32)
        messages.append({"vertices": vertices[own].astype(np.float32), "faces": corners})
    found = [Charts(**answer) for answer in workers.ask(messages)]
    side = 1.01 * max(float(charts.flat.max()) for charts in found)
    per_row = int(np.ceil(np.sqrt(len(found))))
    source, cut, flat, count = [], np.empty(faces.shape, np.int64), [], 0
    for number, (part, own, charts) in enumerate(zip(parts, used, found, strict=True)):
        source.append(own[charts.source])
        cut[part] = charts.faces.astype(np.int64) + count
        flat.append(charts.flat + side * np.array(divmod(number, per_row)))
        count += len(charts.source)
    return Charts(
        source=np.concatenate(source),
        faces=cut,
        flat=np.concatenate(flat),
        sides=np.concatenate([charts.sides for charts in found]),
    )


def grid_atlas(faces: Int[ndarray, "f 3"], resolution_px: int) -> Atlas:
    """Return an atlas of equal right triangles, two to a square: ugly, instant, disjoint."""
    num_faces = len(faces)
    per_side = max(1, int(np.ceil(np.sqrt((num_faces + 1) // 2))))
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

"""Write open surfaces without thickness as GLBs: cloths, a leaf, a plant, a lampshade.

    python benchmarks/open_surfaces.py FOLDER

Nothing closes them and both sides are seen: what rebuilding finds hardest. Render them with
`source=folder`, then score them with `benchmarks/rebuild.py --reference FOLDER`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

Array = NDArray[np.float64]


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, mesh in make_surfaces().items():
        mesh.export(folder / f"{name}.glb")


def make_surfaces() -> dict[str, trimesh.Trimesh]:
    """Return the surfaces by name, Y up, each about a unit wide."""
    return {
        "cloth_draped": sheet(90, draped),
        "cloth_waving": sheet(90, waving),
        "lampshade_open": sheet(100, lampshade),
        "leaf_curled": sheet(120, curled, lambda u, v: np.abs(v) < 0.35 * (1.0 - 4.0 * u**2)),
        "plant_leaves": plant(),
    }


def sheet(
    side: int,
    place: Callable[[Array, Array], Array],
    kept: Callable[[Array, Array], NDArray[np.bool_]] | None = None,
) -> trimesh.Trimesh:
    """Return a grid of triangles with stripes of colour.

    Args:
        side: vertices along a side.
        place: maps (u, v) in [-.5, .5]^2 to points.
        kept: tells which vertices stay; None: all.
    """
    u, v = np.meshgrid(*[np.linspace(-0.5, 0.5, side)] * 2, indexing="ij")
    vertices = place(u, v).reshape(-1, 3)
    index = np.arange(side**2).reshape(side, side)
    a, b, c, d = (
        each.ravel() for each in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:])
    )
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    if kept is not None:
        faces = faces[kept(u, v).ravel()[faces].all(axis=1)]
    x, y, _ = vertices.T
    colours = np.full((len(vertices), 4), 0.5)
    colours[:, 0], colours[:, 2] = (
        0.3 + 0.6 * (np.sin(14 * x) > 0),
        0.7 - 0.5 * (np.sin(11 * y) > 0),
    )
    colours[:, 3] = 1.0
    mesh = trimesh.Trimesh(
        vertices, faces, process=False, vertex_colors=(255.0 * colours).astype(np.uint8)
    )
    mesh.remove_unreferenced_vertices()
    return mesh


def waving(u: Array, v: Array) -> Array:
    """A flag in the wind."""
    return np.stack([u, 0.8 * v, 0.12 * np.sin(7 * u) + 0.06 * np.cos(9 * v + 3 * u)], axis=-1)


def draped(u: Array, v: Array) -> Array:
    """A cloth that hangs over a point, in folds."""
    folds = 0.1 * np.sin(12 * np.arctan2(v, u)) * np.hypot(u, v)
    return np.stack([u, 0.25 - 1.1 * (u**2 + v**2) + folds, v], axis=-1)


def curled(u: Array, v: Array) -> Array:
    """A leaf with a fold along its middle."""
    return np.stack([u, 0.35 * v, 0.3 * u**2 + 0.25 * np.abs(v)], axis=-1)


def lampshade(u: Array, v: Array) -> Array:
    """A cone without top and bottom: its inner side is seen at a slant, by few pixels."""
    radius, angle = 0.3 - 0.2 * v, 2.0 * np.pi * u * 0.999
    return np.stack([radius * np.cos(angle), v, radius * np.sin(angle)], axis=-1)


def plant() -> trimesh.Trimesh:
    """Nine leaves that rise from one point."""
    turn = trimesh.transformations.rotation_matrix

    def leaf(u: Array, v: Array) -> Array:
        rise = (u + 0.5) * 0.5 * (0.5 - u) + 0.15 * np.abs(v)
        return np.stack([u + 0.5, rise, 0.2 * v], axis=-1)

    leaves = []
    for number in range(9):
        one = sheet(40, leaf, lambda u, v: np.abs(v) < 0.45 * (1.0 - 4.0 * u**2))
        one.apply_scale(0.6 + 0.05 * number)
        one.apply_transform(turn(0.5 + 0.1 * number, [0, 0, 1]))
        one.apply_transform(turn(2.4 * number, [0, 1, 0]))
        leaves.append(one)
    joined: Any = trimesh.util.concatenate(leaves)
    return joined


if __name__ == "__main__":
    main()

"""Cases from two folders: meshes beside references of the same file name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_pipeline.contract import SourceFrame, UserError, unit_cube_frame
from modules.geometry.mesh import ColoredMesh, load_mesh
from modules.metrics.geometry import MeshSurface
from modules.reporting.evaluation import Case, Loaded, Truth
from modules.reporting.mesh_files import asset_digest, named_files

BOX_FIGURES = ("box_scale", "box_offset", "box_turned")


def folder_cases(meshes: Path, reference: Path) -> list[Case]:
    """Return a case for every name in either folder; a name that only one holds is a failure.

    Both meshes of a pair are moved to the frame where the reference fills the unit cube.

    Raises:
        UserError: a folder is missing or holds no mesh, two files of one share a name, or no name
            is in both.
    """
    predicted, truths = named_files(meshes), named_files(reference)
    if not predicted.keys() & truths.keys():
        raise UserError(
            f"no file in meshes={meshes} has the name of one in reference={reference} (first are "
            f"{min(predicted)} and {min(truths)}): pairs are formed by file name without suffix"
        )

    def case(name: str) -> Case:
        def load() -> Loaded:
            if name not in truths:
                raise UserError(f"there is no mesh of this name in reference={reference}")
            if name not in predicted:
                raise UserError(f"there is no mesh of this name in meshes={meshes}")
            truth = load_mesh(truths[name])
            frame = _filling_frame(truth, truths[name])
            truth = truth.transformed(frame)
            surface = MeshSurface(truth.vertices, truth.faces)
            path = predicted[name]
            mesh = load_mesh(path).transformed(frame)
            figures = box_figures(mesh.vertices[mesh.faces], truth.vertices[truth.faces])
            return Loaded(mesh, Truth(surface, truth), path, figures)

        files = [folder[name] for folder in (predicted, truths) if name in folder]
        return Case(name, " ".join(map(asset_digest, files)), load)

    return [case(name) for name in sorted(predicted.keys() | truths.keys())]


def box_figures(
    predicted: Float[ndarray, "f 3 3"], reference: Float[ndarray, "g 3 3"]
) -> dict[str, float]:
    """Return how the box of a mesh lies to that of its reference, which fills the unit cube.

    Keys: `box_scale` (longest side, in units of the reference's), `box_offset` (distance of the
    centres), `box_turned` (1 when its sides are those of the reference, in another order).

    Args:
        predicted: corners of the faces.
        reference: the same.
    """
    low, high = predicted.min(axis=(0, 1)), predicted.max(axis=(0, 1))
    other_low, other_high = reference.min(axis=(0, 1)), reference.max(axis=(0, 1))
    sides, other = high - low, other_high - other_low
    turned = _alike(np.sort(sides), np.sort(other)) and not _alike(sides, other)
    return {
        "box_scale": float(sides.max() / other.max()),
        "box_offset": float(np.linalg.norm((low + high - other_low - other_high) / 2.0)),
        "box_turned": float(turned),
    }


def _alike(sides: Float[ndarray, "3"], other: Float[ndarray, "3"]) -> bool:
    return bool(np.abs(sides - other).max() <= 0.03 * other.max())


def frame_notes(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on meshes that lie in another frame than their references; or nothing.

    Args:
        pairs: of a report, with `box_figures` among their metrics.
    """
    found = [pair for pair in pairs if "box_scale" in pair["metrics"]]
    boxes = {pair["name"]: [pair["metrics"][key] for key in BOX_FIGURES] for pair in found}
    away = [
        name
        for name, (scale, offset, _) in boxes.items()
        if not 0.5 <= scale <= 2.0 or offset > 0.5
    ]
    turned = [name for name, (*_, turned) in boxes.items() if turned]
    notes = []
    if away:
        notes.append(
            f"{len(away)} of {len(pairs)} meshes have a box of another size or place than their "
            f"references, such as {away[0]}: meshes are compared as they lie, so write them in the "
            "reference's own units and place."
        )
    if turned:
        notes.append(
            f"{len(turned)} of {len(pairs)} meshes have the box of their references turned by a "
            f"quarter, such as {turned[0]}: .ply and .stl are read as Z up, .glb, .gltf and .obj "
            "as Y up."
        )
    return notes


def _filling_frame(mesh: ColoredMesh, path: Path) -> SourceFrame:
    """Return the frame in which the mesh's faces fill the unit cube."""
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    try:
        return unit_cube_frame(used.min(axis=0), used.max(axis=0))
    except ValueError as error:
        raise UserError(f"the reference {path} cannot be normalised: {error}") from error

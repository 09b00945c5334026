"""Cases from two folders: meshes beside references of the same file name."""

import hashlib
import json
import re
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_pipeline.contract import SourceFrame, UserError, unit_cube_frame
from modules.geometry.mesh import ColoredMesh, load_mesh
from modules.metrics.geometry import MeshSurface
from modules.reporting.evaluation import Case, Loaded, Truth

BOX_FIGURES = ("box_scale", "box_offset", "box_turned")
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")


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


def named_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Return the files with these suffixes in a folder by name without suffix.

    Raises:
        UserError: it is no folder, holds no such file, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that holds {', '.join(suffixes)} files")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]
    if not files:
        raise UserError(f"{folder} holds none of {', '.join(suffixes)}: name another folder")
    found: dict[str, Path] = {}
    for path in files:
        name = unicodedata.normalize("NFC", path.stem)  # letters with accents have two spellings
        if name in found:
            raise UserError(
                f"{folder} holds both {found[name].name} and {path.name}: keep one of them, "
                "for pairs are formed by name"
            )
        found[name] = path
    return found


def file_notes(*folders: Path) -> list[str]:
    """Return sentences on what reading leaves out of the files of some folders; or nothing."""
    files = [path for folder in folders for path in named_files(folder).values()]
    skinned = [path for path in files if has_skin(path)]
    bare = {path: [f.name for f in files_of(path) if not f.is_file()] for path in files}
    bare = {path: missing for path, missing in bare.items() if missing}
    notes = []
    if skinned:
        notes.append(
            f"{len(skinned)} meshes are skinned, such as {skinned[0].name}: they were measured as "
            "their vertices are stored, without the pose that a viewer shows; export them with it "
            "applied."
        )
    if bare:
        path, missing = next(iter(bare.items()))
        notes.append(
            f"{len(bare)} meshes name files that are not there, such as {path.name} "
            f"({missing[0]}): their colours were taken for white; keep the files beside them."
        )
    return notes


def has_skin(path: Path) -> bool:
    """Return whether a glTF file poses a mesh by a skeleton; False where it cannot be read."""
    try:
        if path.suffix.lower() == ".gltf":
            document = json.loads(path.read_bytes())
        elif path.suffix.lower() == ".glb":
            with path.open("rb") as file:
                length = struct.unpack("<12xI4x", file.read(20))[0]
                document = json.loads(file.read(length))
        else:
            return False
        return any("skin" in node for node in document.get("nodes", ()))
    except (OSError, ValueError, TypeError, AttributeError, struct.error):
        return False


NAMED_FILE = re.compile(
    r'^\s*mtllib\s+(.+?)\s*$|^\s*map_\w+\s+(.+?)\s*$|"uri"\s*:\s*"([^"]+)"', re.MULTILINE
)
"""How .obj, .mtl and .gltf name other files."""


def asset_digest(path: Path) -> str:
    """Return a hash of a mesh file and of the materials, textures and buffers that it names."""
    parts = [file_digest(file) for file in files_of(path)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def files_of(path: Path) -> list[Path]:
    """Return a mesh file and the files that it names, there or not, and those that they name."""
    found, todo = [], [path]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.append(file)
        if file.suffix.lower() not in (".obj", ".mtl", ".gltf") or not file.is_file():
            continue
        for match in NAMED_FILE.finditer(file.read_text("utf-8", errors="replace")):
            name = next(filter(None, match.groups()))
            if not name.startswith("data:"):
                names = [name, unquote(name), name.split()[-1]]  # -o 1 1 1 before the name
                there = [file.parent / each for each in names if (file.parent / each).is_file()]
                todo.append(there[0] if there else file.parent / unquote(name))
    return found


def _filling_frame(mesh: ColoredMesh, path: Path) -> SourceFrame:
    """Return the frame in which the mesh's faces fill the unit cube."""
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    try:
        return unit_cube_frame(used.min(axis=0), used.max(axis=0))
    except ValueError as error:
        raise UserError(f"the reference {path} cannot be normalised: {error}") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of its name when it cannot be read, which scoring will tell."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable {path.name}"

"""Cases from two folders: meshes beside references of the same file name."""

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from data_pipeline.contract import SourceFrame, UserError, unit_cube_frame
from modules.geometry.mesh import ColoredMesh, load_mesh
from modules.metrics.geometry import MeshSurface
from modules.reporting.evaluation import Case, Loaded, Truth

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
            return Loaded(load_mesh(path).transformed(frame), Truth(surface, truth), path)

        files = [folder[name] for folder in (predicted, truths) if name in folder]
        return Case(name, " ".join(map(asset_digest, files)), load)

    return [case(name) for name in sorted(predicted.keys() | truths.keys())]


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
        if path.stem in found:
            raise UserError(
                f"{folder} holds both {found[path.stem].name} and {path.name}: keep one of them, "
                "for pairs are formed by name"
            )
        found[path.stem] = path
    return found


def unposed_note(*folders: Path) -> list[str]:
    """Return a sentence on the files with a skin, whose pose reading leaves out; or nothing."""
    found = [path for folder in folders for path in named_files(folder).values() if has_skin(path)]
    if not found:
        return []
    return [
        f"{len(found)} meshes are skinned, such as {found[0].name}: they were measured as their "
        "vertices are stored, without the pose that a viewer shows; export them with it applied."
    ]


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
    parts, todo, seen = [], [path], set()
    while todo:
        file = todo.pop()
        parts.append(file_digest(file))
        names_others = file.suffix.lower() in (".obj", ".mtl", ".gltf")
        if file in seen or not names_others or not file.is_file():
            continue
        seen.add(file)
        for match in NAMED_FILE.finditer(file.read_text("utf-8", errors="replace")):
            name = next(filter(None, match.groups()))
            if not name.startswith("data:"):
                names = sorted({name, name.split()[-1], unquote(name)})  # -o 1 1 1 before the name
                todo += [file.parent / each for each in names if (file.parent / each).is_file()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


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

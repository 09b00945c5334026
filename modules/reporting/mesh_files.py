"""Folders of mesh files: their names, what else they name, and what reading leaves out of them."""

import hashlib
import json
import re
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from data_pipeline.contract import UserError

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")

NAMED_FILE = re.compile(
    r'^\s*mtllib\s+(.+?)\s*$|^\s*map_\w+\s+(.+?)\s*$|"uri"\s*:\s*"([^"]+)"', re.MULTILINE
)
"""How .obj, .mtl and .gltf name other files."""


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


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of its name when it cannot be read, which scoring will tell."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable {path.name}"


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

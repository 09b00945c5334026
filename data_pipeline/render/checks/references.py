"""Where a file inside an asset may point: to its own folder, and nowhere else."""

import os
import re
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from data_pipeline.render.failures import AssetFailure

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")  # two characters at least: not a drive letter
_DRIVE = re.compile(r"[a-zA-Z]:[\\/]")


def inside(root: Path, reference: str, start: str = "") -> Path:
    """Return the file that a reference names, which need not exist.

    Args:
        root: folder of the asset, which must not be left.
        reference: as written in a file, percent-encoded or not.
        start: folder of that file, below the root.

    Raises:
        AssetFailure: `unsupported`: it leads out of the root, through a link too, or to the net.
    """
    for text in {reference, unquote(reference), unquote(unquote(reference))}:
        path = text.replace("\\", "/")
        if _SCHEME.match(path) or path.startswith(("/", "~")) or _DRIVE.match(path):
            _refuse(reference)
        if any(ord(character) < 32 for character in path):
            _refuse(reference)
        if os.path.normpath(os.path.join(start, path)).split("/")[0] == "..":
            _refuse(reference)
    try:
        raw, plain = (root / start / name for name in (reference, unquote(reference)))
        found = raw if raw.exists() else Path(str(plain).replace("\\", "/"))
        if not found.resolve().is_relative_to(root.resolve()):
            _refuse(reference)
    except (OSError, RuntimeError, ValueError):  # too long a name, or links in a circle
        _refuse(reference)
    return found


def beside(folder: Path, reference: str) -> Path | None:
    r"""Return the file that a format with loose references finds, or None if it finds none.

    Exporters write paths of the artist's machine (`C:\art\wood.png`, `../textures/wood.png`), and
    importers then look for the bare name in the asset's folder.

    Raises:
        AssetFailure: `unsupported`: the path exists on this machine, outside of the folder.
    """
    path = unquote(reference).removeprefix("file://").replace("\\", "/")
    try:
        for name in (path, path.rsplit("/", 1)[-1]):
            found = folder / name
            if not name or _DRIVE.match(name) or not os.path.lexists(found):
                continue
            if not found.resolve().is_relative_to(folder.resolve()):
                _refuse(reference)
            return found
    except (OSError, RuntimeError, ValueError):  # a null character, too long a name, circular links
        _refuse(reference)
    return None


def _refuse(reference: str) -> NoReturn:
    raise AssetFailure(
        "unsupported",
        f"refers to {reference[:120]!r} outside of its own folder, which is not followed: "
        "put the file beside the asset and refer to it by name",
    )

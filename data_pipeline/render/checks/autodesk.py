"""FBX: the images that it names and embeds; a binary FBX keeps both uncompressed."""

import mmap
import re
from pathlib import Path

from data_pipeline.render.checks.images import PixelBudget
from data_pipeline.render.checks.references import beside
from data_pipeline.render.failures import AssetFailure

_NAME = re.compile(rb"(?:RelativeFilename|FileName|Filename)S(....)", re.S)

_EMBEDDED = re.compile(rb"\x07ContentR(....)", re.S)

MAX_NAME_BYTES = 4096


def check_fbx(path: Path) -> None:
    """Raise AssetFailure for an image that leads elsewhere, is huge, or is cut off.

    Images that are missing are left to the renderer: whether a material shows them, and whether
    they are embedded, is known only after the import.
    """
    budget = PixelBudget()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _NAME.finditer(content):
            size = int.from_bytes(match[1], "little")
            name = content[match.end() : match.end() + size]
            if 0 < size <= MAX_NAME_BYTES and b"\0" not in name:
                found = beside(path.parent, name.decode("utf-8", "replace"))
                if found is not None and found.is_file():
                    budget.add_file(found)
        left = len(content)  # embedded images do not overlap: reading them is no more than this
        for match in _EMBEDDED.finditer(content):
            size = int.from_bytes(match[1], "little")
            left -= size
            if left < 0:
                raise AssetFailure("unreadable", "its embedded images are longer than the file")
            if size:
                budget.add_bytes(content[match.end() : match.end() + size], "embedded")

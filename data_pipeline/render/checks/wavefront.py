"""OBJ: the material files that it names, and the images that those name."""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.render.checks.images import PixelBudget
from data_pipeline.render.checks.references import beside
from data_pipeline.render.failures import AssetFailure

MAX_MTL_BYTES, MAX_LIBRARIES = 16_000_000, 1000

_LIBRARY = re.compile(rb"^[ \t]*mtllib[ \t]+([^\r\n]*)", re.M | re.I)

COLOUR_MAPS = ("map_kd", "map_d", "map_ke")
"""Without one of these images the object has a wrong colour; without another one it has not."""

MAPS = (*COLOUR_MAPS, "map_ka", "map_ks", "map_ns", "map_bump", "map_pr", "map_pm", "bump", "disp",
        "decal", "refl", "norm")  # fmt: skip

OPTION_VALUES = {
    "-o": 3, "-s": 3, "-t": 3, "-mm": 2, "-bm": 1, "-boost": 1, "-blendu": 1, "-blendv": 1,
    "-clamp": 1, "-texres": 1, "-imfchan": 1, "-type": 1, "-cc": 1,
}  # fmt: skip
"""How many words follow an option."""


def check_obj(path: Path) -> None:
    """Raise AssetFailure for a material or image that leads elsewhere, is missing, or is huge.

    A missing material file is none: many objects come without theirs, and are grey.
    """
    budget = PixelBudget()
    for name in _material_files(path):
        found = beside(path.parent, name)
        if found is None or not found.is_file():
            continue
        if found.stat().st_size > MAX_MTL_BYTES:
            raise AssetFailure("too_large", f"{found.name!r} has {found.stat().st_size} bytes")
        for key, image in _images(found):
            file = beside(path.parent, image)
            if file is not None:
                budget.add_file(file)
            elif key in COLOUR_MAPS:
                raise AssetFailure("missing_texture", f"the image {image[:120]!r} is missing")


def _material_files(path: Path) -> list[str]:
    """Return the file names after `mtllib`; several may share a line, and names may hold spaces."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        lines = dict.fromkeys(match[1].strip() for match in _LIBRARY.finditer(content))
    if len(lines) > MAX_LIBRARIES:
        raise AssetFailure("too_large", f"names {len(lines)} material files")
    texts = [line.decode("utf-8", "replace") for line in lines]
    return [name for text in texts for name in dict.fromkeys([text, *text.split()])]


def _images(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (statement, file name) of every image of a material file."""
    for line in path.read_text("utf-8", "replace").splitlines():
        key, _, rest = line.strip().partition(" ")
        words = rest.split()
        while words and words[0].lower() in OPTION_VALUES:
            words = words[1 + OPTION_VALUES[words[0].lower()] :]
        if key.lower() in MAPS and words:
            yield key.lower(), " ".join(words)

"""USD: the layers and images that it names, in text, binary ("crate") and ZIP form.

A layer is composed from others by asset paths. Those of a text layer stand between `@` signs; those
of a crate are among its tokens, which `crate` unpacks.
"""

import os
import posixpath
import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data_pipeline.render.checks.archives import check_archive
from data_pipeline.render.checks.crate import crate_tokens
from data_pipeline.render.checks.images import PixelBudget
from data_pipeline.render.checks.references import inside
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_JSON_BYTES

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tga", ".tif", ".tiff", ".dds", ".gif",
          ".exr", ".hdr", ".ktx", ".ktx2")  # fmt: skip
LAYERS = (".usd", ".usda", ".usdc", ".usdz")

MAX_LAYERS, MAX_REFERENCES = 1000, 10_000

_TEXT_PATH = re.compile(rb"@@@(.*?)@@@|@([^@\n]*)@", re.S)


def check_usd(path: Path) -> None:
    """Raise AssetFailure for what a layer, or a layer that it names, must not name.

    Raises:
        AssetFailure: `unsupported`, `missing_texture`, `too_large` or `unreadable`.
    """
    if path.suffix.lower() == ".usdz":
        _check_package(path)
        return
    budget, waiting, seen = PixelBudget(), [path], {path.resolve()}
    while waiting:
        layer = waiting.pop()
        if len(seen) > MAX_LAYERS:
            raise AssetFailure("too_large", f"composed of over {MAX_LAYERS} layers")
        for name in layer_references(layer.read_bytes(), layer.stat().st_size):
            found = inside(path.parent, name, os.path.relpath(layer.parent, path.parent))
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in IMAGES and "<UDIM>" not in name:
                budget.add_file(found)
            elif suffix in LAYERS and found.is_file() and found.resolve() not in seen:
                seen.add(found.resolve())
                if suffix == ".usdz":
                    _check_package(found)
                else:
                    waiting.append(found)


def _check_package(path: Path) -> None:
    """Check a USDZ: stored members only, and names that stay within."""
    members = {member.filename: member for member in check_archive(path)}
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED:
            raise AssetFailure("unreadable", f"{name[:120]!r} is compressed, which USDZ forbids")
    budget = PixelBudget()
    with zipfile.ZipFile(path) as archive:
        for name, member in members.items():
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in IMAGES:
                with archive.open(member) as file:
                    budget.add_bytes(file.read(), name)
            elif suffix in (".zip", ".usdz"):
                raise AssetFailure("unsupported", f"holds another archive, {name[:120]!r}")
            elif suffix in LAYERS:
                with archive.open(member) as file:
                    references = layer_references(file.read(), member.file_size)
                folder = PurePosixPath(name).parent
                _check_members(references, folder, lambda found: found in members)


def _check_members(
    references: list[str], folder: PurePosixPath, held: Callable[[str], bool]
) -> None:
    for reference in references:
        inside(Path(os.devnull), reference, str(folder))
        name = posixpath.normpath(folder / reference)
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGES and "<UDIM>" not in name and not held(name):
            raise AssetFailure("missing_texture", f"the image {reference[:120]!r} is missing")


def layer_references(content: bytes, size: int) -> list[str]:
    """Return the names of other files in a layer, text or crate, each once.

    Raises:
        AssetFailure: `too_large` or `unreadable`.
    """
    if content.startswith(b"PXR-USDC"):
        names = dict.fromkeys(token for token in crate_tokens(content) if _is_file_name(token))
    elif size > 4 * MAX_JSON_BYTES:
        raise AssetFailure("too_large", f"{size} bytes of USD text")
    else:
        found = dict.fromkeys(match[1] or match[2] for match in _TEXT_PATH.finditer(content))
        names = dict.fromkeys(name.decode("utf-8", "replace").strip() for name in found if name)
    if len(names) > MAX_REFERENCES:
        raise AssetFailure("too_large", f"a layer names {len(names)} files")
    return [name for name in names if name]


def _is_file_name(token: str) -> bool:
    """Return whether a token of a crate can be the path of a layer or image."""
    return token.lower().endswith((*IMAGES, *LAYERS)) or "://" in token

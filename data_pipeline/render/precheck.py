"""What can be told about a file without Blender: missing, empty, huge, truncated, hostile.

Runs in the process that hands out assets, before any worker opens one.
"""

from collections.abc import Callable
from pathlib import Path

from data_pipeline.render.checks.autodesk import check_fbx
from data_pipeline.render.checks.collada import check_dae
from data_pipeline.render.checks.gltf import check_gltf
from data_pipeline.render.checks.gltf_document import read_document
from data_pipeline.render.checks.usd import check_usd
from data_pipeline.render.checks.wavefront import check_obj
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_BYTES
from data_pipeline.sources.file_kind import SUFFIXES, WrongContent, check_kind


def _gltf(path: Path) -> None:
    check_gltf(read_document(path))


CHECKS: dict[str, Callable[[Path], None]] = {
    ".glb": _gltf,
    ".gltf": _gltf,
    ".obj": check_obj,
    ".fbx": check_fbx,
    ".dae": check_dae,
    ".usd": check_usd,
    ".usda": check_usd,
    ".usdc": check_usd,
    ".usdz": check_usd,
}
"""Check of each suffix; PLY and STL name no other files and hold no images."""


def check_file(path: Path) -> None:
    """Raise AssetFailure if the file cannot or must not become a sample; passing is no promise."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise AssetFailure("unsupported", f"files named *{suffix} are not imported")
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise AssetFailure("unreadable", "not a file")
        if size > MAX_BYTES:
            raise AssetFailure("too_large", f"{size} bytes; at most {MAX_BYTES} are allowed")
        check_kind(path)
        if suffix in CHECKS:
            CHECKS[suffix](path)
    except WrongContent as error:
        raise AssetFailure("unreadable", str(error)) from error
    except OSError as error:
        raise AssetFailure("unreadable", error.strerror or type(error).__name__) from error
    except (MemoryError, RecursionError) as error:
        raise AssetFailure("too_large", f"{type(error).__name__} in the check") from error

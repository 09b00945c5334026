"""DAE: no entities, and images from its own folder only."""

import re
from html import unescape
from pathlib import Path

from data_pipeline.render.checks.images import PixelBudget
from data_pipeline.render.checks.references import beside
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_JSON_BYTES

# None of them can be made to look at a byte more than some thousand times.
_IMAGE_ID = re.compile(
    rb"""<image\b[^>]{0,1000}\bid\s{0,9}=\s{0,9}["']([^"'<]{0,1000})["']""", re.I
)
_SOURCE = re.compile(rb"<init_from>\s*(?:<ref>)?([^<]*)", re.I)
_INSTANCE = re.compile(rb"""\burl\s*=\s*["']([^"'#][^"']*)["']""", re.I)


def check_dae(path: Path) -> None:
    """Raise AssetFailure for entities (which can grow without end), foreign files, missing images.

    Parsed by patterns: an XML parser would be the first victim of what is looked for.
    """
    size = path.stat().st_size
    if size > 4 * MAX_JSON_BYTES:
        raise AssetFailure("too_large", f"{size} bytes of XML")
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise AssetFailure("unsupported", "declares XML entities: remove its <!DOCTYPE ...>")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise AssetFailure("unsupported", "its XML is not UTF-8: save it as UTF-8")
    for match in _INSTANCE.finditer(content):
        name = unescape(match[1].decode("utf-8", "replace"))
        raise AssetFailure("unsupported", f"refers to another document, {name[:120]!r}: merge them")
    budget, ids = PixelBudget(), set(_IMAGE_ID.findall(content))
    for match in _SOURCE.finditer(content):
        name = unescape(match[1].decode("utf-8", "replace").strip())
        file = beside(path.parent, name) if name else None
        if file is not None:
            budget.add_file(file)
        elif name and match[1].strip() not in ids:  # a surface names its image by id
            raise AssetFailure("missing_texture", f"the image {name[:120]!r} is missing")

"""Check a glTF before it is imported: what it requires, where it points, how large it declares."""

from typing import Any

from data_pipeline.render.checks.gltf_document import GltfDocument, decode_data, is_data
from data_pipeline.render.checks.images import KTX_ADVICE, PixelBudget
from data_pipeline.render.checks.node_graph import check_nodes
from data_pipeline.render.checks.references import inside
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_ELEMENTS

MESHOPT = "EXT_meshopt_compression"
KTX2 = "KHR_texture_basisu"

REFUSED_EXTENSIONS = {
    MESHOPT: "rewrite the file: npx @gltf-transform/cli dequantize in.glb out.glb",
    KTX2: KTX_ADVICE,
}
"""glTF extensions that Blender 4.5 cannot read, and what to do."""

WIDTH = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def check_gltf(document: GltfDocument) -> None:
    """Raise AssetFailure unless the document is sound as far as can be told without decoding it."""
    required = document.json.get("extensionsRequired") or ()
    for name, advice in REFUSED_EXTENSIONS.items():
        if name in required:
            raise AssetFailure("unsupported", f"requires {name}, unknown to Blender: {advice}")
    if not document.json.get("meshes"):
        raise AssetFailure("empty", "the file holds no mesh")
    try:
        _check_buffers(document)
        _check_views(document)
        _check_accessors(document)
        check_nodes(document)
        _check_images(document)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise AssetFailure("unreadable", f"its tables contradict each other ({what})") from error


def _check_buffers(document: GltfDocument) -> None:
    for index, buffer in enumerate(document.table("buffers")):
        declared = _count(buffer["byteLength"], "a buffer's byteLength")
        fallback = MESHOPT in buffer.get("extensions", {})
        if not fallback and (size := document.buffer_size(index)) < declared:
            raise AssetFailure("unreadable", f"truncated: {size} of {declared} bytes of a buffer")


def _check_views(document: GltfDocument) -> None:
    buffers = document.table("buffers")
    for view in document.table("bufferViews"):
        start = _count(view.get("byteOffset", 0), "a view's byteOffset")
        size = _count(view["byteLength"], "a view's byteLength")
        held = buffers[_count(view["buffer"], "a view's buffer")]["byteLength"]
        if start + size > held:
            raise AssetFailure("unreadable", f"a view reaches to byte {start + size} of {held}")


def _check_accessors(document: GltfDocument) -> None:
    views, num_elements = document.table("bufferViews"), 0
    for accessor in document.table("accessors"):
        count = _count(accessor["count"], "an accessor's count")
        columns, width = COLUMNS[accessor["type"]], WIDTH[accessor["componentType"]]
        num_elements += count * columns
        if num_elements > MAX_ELEMENTS:
            raise AssetFailure("too_large", f"its accessors declare over {MAX_ELEMENTS} numbers")
        if "bufferView" in accessor:
            view = views[_count(accessor["bufferView"], "an accessor's view")]
            stride = _count(view.get("byteStride", columns * width), "a view's byteStride")
            start = _count(accessor.get("byteOffset", 0), "an accessor's byteOffset")
            end = start + max(count - 1, 0) * stride + (columns * width if count else 0)
            if end > view["byteLength"]:
                raise AssetFailure("unreadable", "an accessor reaches beyond its buffer view")
        if "sparse" in accessor and _count(accessor["sparse"]["count"], "a sparse count") > count:
            raise AssetFailure("unreadable", "a sparse accessor replaces more than it has")


def _check_images(document: GltfDocument) -> None:
    """Check where the images that a texture shows are, and how large they say they are."""
    budget, images, folder = PixelBudget(), document.table("images"), document.path.parent
    for image in images:  # used or not: the importer may follow any of them
        if "uri" in image and not is_data(image["uri"]):
            inside(folder, str(image["uri"]))
    for index in _shown_images(document):
        image = images[index]
        uri, name = image.get("uri"), str(image.get("name") or image.get("uri") or index)[:80]
        if is_data(uri):
            budget.add_bytes(decode_data(str(uri)), name if not is_data(name) else str(index))
        elif uri is not None:
            budget.add_file(inside(folder, str(uri)))
        else:
            budget.add_bytes(document.read_view(image["bufferView"]), name)


def _shown_images(document: GltfDocument) -> list[int]:
    """Return the images of all textures; of one with a choice of formats those Blender can read."""
    shown: set[int] = set()
    for texture in document.table("textures"):
        extensions = texture.get("extensions") or {}
        webp = extensions.get("EXT_texture_webp", {}).get("source")
        sources = [texture.get("source"), webp]
        if sources == [None, None] and KTX2 in extensions:
            raise AssetFailure("unsupported", KTX_ADVICE)
        shown.update(source for source in sources if source is not None)
    return sorted(shown)


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise AssetFailure("unreadable", f"{what} is {str(value)[:40]}")
    return value

"""What Blender's glTF importer is told before it begins: no animation, no hidden node.

Blender 4.5 applies the first key of an animation and shows what KHR_node_visibility hides. Both are
taken out of the parsed document, by the hook that the importer offers to extensions.
"""

import sys
from typing import Any


class AtRest:
    """An import extension in the importer's own sense; it calls the method by its name."""

    def gather_import_gltf_before_hook(self, gltf: Any) -> None:
        """Leave the nodes as the document places them, and drop those that it hides."""
        gltf.data.animations = []
        nodes = gltf.data.nodes or []
        hidden = {index for index, node in enumerate(nodes) if _is_hidden(node)}
        if not hidden:
            return
        for holder in [*nodes, *(gltf.data.scenes or [])]:
            key = "children" if hasattr(holder, "children") else "nodes"
            kept = [index for index in getattr(holder, key) or () if index not in hidden]
            setattr(holder, key, kept)


def install() -> None:
    """Have the importer find the extension: it looks into the modules of all enabled add-ons."""
    sys.modules["io_scene_gltf2"].glTF2ImportUserExtension = AtRest


def _is_hidden(node: Any) -> bool:
    extension = (node.extensions or {}).get("KHR_node_visibility") or {}
    return extension.get("visible") is False

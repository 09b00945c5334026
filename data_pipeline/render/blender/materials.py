"""Albedo lighting: every material shows its base colour, unlit and exact, whatever its shader.

Each surface shader is rewired to an Emission of its own colour, mixed with Transparent by its own
alpha. The rendered image and the surface samples (`node_colours`) both read the rewired graph.
"""

import bpy

from data_pipeline.render.blender.scene import visible_objects

DEFAULT_GREY = (0.2140, 0.2140, 0.2140, 1.0)
"""Linear; 0.5 in sRGB. Colour of a surface that has neither material nor vertex colours."""

COLOUR_INPUT = {
    "BSDF_PRINCIPLED": "Base Color",
    "BSDF_HAIR_PRINCIPLED": "Color",
    "BSDF_DIFFUSE": "Color",
    "BSDF_GLOSSY": "Color",
    "BSDF_METALLIC": "Base Color",
    "BSDF_GLASS": "Color",
    "BSDF_REFRACTION": "Color",
    "BSDF_TRANSLUCENT": "Color",
    "BSDF_SHEEN": "Color",
    "BSDF_TOON": "Color",
    "BSDF_HAIR": "Color",
    "SUBSURFACE_SCATTERING": "Color",
    "EEVEE_SPECULAR": "Base Color",
}
"""Shader node types that scatter light, and the input that holds their colour."""


def make_unlit() -> None:
    """Rewire the materials of all visible objects, giving one to those that have none."""
    defaults: dict[str, bpy.types.Material] = {}
    for thing in visible_objects():
        slots = thing.material_slots
        if not len(slots):
            thing.data.materials.append(_default_material(thing, defaults))
        for slot in slots:
            if slot.material is None:
                slot.material = _default_material(thing, defaults)
    done: set[str] = set()
    for material in bpy.data.materials:
        # With emission sampling every face would become a lamp, for which Cycles builds a tree.
        material.cycles.emission_sampling = "NONE"
        if material.use_nodes:
            _rewire_output(material)
            _rewire(material.node_tree, done)
        else:
            _emit(material, tuple(material.diffuse_color))


def _default_material(
    thing: bpy.types.Object, defaults: dict[str, bpy.types.Material]
) -> bpy.types.Material:
    """Return a material of vertex colours where `thing` has any (PLY, OBJ), else of the grey."""
    colours = getattr(thing.data, "color_attributes", ())
    layer = thing.data.color_attributes.default_color_name if len(colours) else ""
    if layer not in defaults:
        material = bpy.data.materials.new(f"relief_default_{layer}")
        _emit(material, DEFAULT_GREY)
        if layer:
            nodes, links = material.node_tree.nodes, material.node_tree.links
            attribute = nodes.new("ShaderNodeVertexColor")
            attribute.layer_name = layer
            emission = next(node for node in nodes if node.type == "EMISSION")
            links.new(attribute.outputs["Color"], emission.inputs["Color"])
        defaults[layer] = material
    return defaults[layer]


def _emit(material: bpy.types.Material, colour: tuple[float, ...]) -> None:
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    output, emission = (
        tree.nodes.new("ShaderNodeOutputMaterial"),
        tree.nodes.new("ShaderNodeEmission"),
    )
    emission.inputs["Color"].default_value = (*colour[:3], 1.0)
    tree.links.new(emission.outputs[0], output.inputs["Surface"])


def _rewire_output(material: bpy.types.Material) -> None:
    """Leave the output its surface alone: a volume would tint, a displacement move the surface."""
    output = material.node_tree.get_output_node("CYCLES")
    if output is None or not output.inputs["Surface"].is_linked:
        _emit(material, tuple(material.diffuse_color))
        return
    for name in ("Volume", "Displacement"):
        for link in list(output.inputs[name].links):
            material.node_tree.links.remove(link)


def _rewire(tree: bpy.types.NodeTree, done: set[str]) -> None:
    """Replace the shader nodes of a tree and, once each, of the groups that it uses."""
    for node in list(tree.nodes):
        if node.type == "GROUP" and node.node_tree and node.node_tree.name not in done:
            done.add(node.node_tree.name)
            _rewire(node.node_tree, done)
        elif node.type in COLOUR_INPUT:
            _replace_shader(tree, node, COLOUR_INPUT[node.type])
        elif node.type == "EMISSION":
            _unhook(tree, node.inputs["Strength"])
            # Added to a scattering shader it is glow on top of the albedo; alone, the colour.
            added = any(link.to_node.type == "ADD_SHADER" for link in node.outputs[0].links)
            node.inputs["Strength"].default_value = 0.0 if added else 1.0


def _replace_shader(tree: bpy.types.NodeTree, node: bpy.types.Node, colour_input: str) -> None:
    emission = tree.nodes.new("ShaderNodeEmission")
    _hand_over(tree, node.inputs[colour_input], emission.inputs["Color"])
    shader = emission.outputs[0]
    alpha = node.inputs.get("Alpha")
    if alpha is not None and (alpha.is_linked or alpha.default_value < 1.0):
        mix = tree.nodes.new("ShaderNodeMixShader")
        transparent = tree.nodes.new("ShaderNodeBsdfTransparent")
        _hand_over(tree, alpha, mix.inputs["Fac"])
        tree.links.new(transparent.outputs[0], mix.inputs[1])
        tree.links.new(shader, mix.inputs[2])
        shader = mix.outputs[0]
    for link in list(node.outputs[0].links):
        tree.links.new(shader, link.to_socket)
    tree.nodes.remove(node)


def _hand_over(
    tree: bpy.types.NodeTree, old: bpy.types.NodeSocket, new: bpy.types.NodeSocket
) -> None:
    if old.is_linked:
        tree.links.new(old.links[0].from_socket, new)
    else:
        new.default_value = old.default_value


def _unhook(tree: bpy.types.NodeTree, socket: bpy.types.NodeSocket) -> None:
    for link in list(socket.links):
        tree.links.remove(link)

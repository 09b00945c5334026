"""The base colour of every material, unlit and exact, whatever its shader.

Each surface shader is rewired to an Emission of its own colour, mixed with Transparent by its own
alpha. The rendered image and the surface samples (`node_colours`) both read the rewired graph.
Where some views are lit, the shader stays beside its Emission, and the view layer's property
`UNLIT` chooses between the two: one render call then takes both.
"""

import bpy

from data_pipeline.render.blender.scene import visible_objects

UNLIT = "relief_unlit"
"""Property of a view layer, and name of the nodes that read it: 1 base colours, 0 lit shaders."""

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


def show_base_colours(*, keep_lit: bool) -> None:
    """Rewire the materials of all visible objects, giving one to those that have none.

    Args:
        keep_lit: some views are lit: keep the shaders too, to be chosen by `UNLIT`.
    """
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
        if not material.use_nodes:
            _paint(material, tuple(material.diffuse_color))
        _strip_output(material)
        _rewire(material.node_tree, keep_lit, done)


def _default_material(
    thing: bpy.types.Object, defaults: dict[str, bpy.types.Material]
) -> bpy.types.Material:
    """Return a material of vertex colours where `thing` has any (PLY, OBJ), else of the grey."""
    colours = getattr(thing.data, "color_attributes", ())
    layer = thing.data.color_attributes.default_color_name if len(colours) else ""
    if layer not in defaults:
        material = bpy.data.materials.new(f"relief_default_{layer}")
        _paint(material, DEFAULT_GREY)
        if layer:
            nodes, links = material.node_tree.nodes, material.node_tree.links
            attribute = nodes.new("ShaderNodeVertexColor")
            attribute.layer_name = layer
            diffuse = next(node for node in nodes if node.type == "BSDF_DIFFUSE")
            links.new(attribute.outputs["Color"], diffuse.inputs["Color"])
        defaults[layer] = material
    return defaults[layer]


def _paint(material: bpy.types.Material, colour: tuple[float, ...]) -> None:
    """Make the material a plain diffuse colour."""
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    output, diffuse = (
        tree.nodes.new("ShaderNodeOutputMaterial"),
        tree.nodes.new("ShaderNodeBsdfDiffuse"),
    )
    diffuse.inputs["Color"].default_value = (*colour[:3], 1.0)
    tree.links.new(diffuse.outputs[0], output.inputs["Surface"])


def _strip_output(material: bpy.types.Material) -> None:
    """Leave the output its surface alone: a volume would tint, a displacement move the surface."""
    output = material.node_tree.get_output_node("CYCLES")
    if output is None or not output.inputs["Surface"].is_linked:
        _paint(material, tuple(material.diffuse_color))
        return
    for name in ("Volume", "Displacement"):
        for link in list(output.inputs[name].links):
            material.node_tree.links.remove(link)


def _rewire(tree: bpy.types.NodeTree, keep_lit: bool, done: set[str]) -> None:
    """Give the shader nodes of a tree, and once each of the groups that it uses, a base colour."""
    for node in list(tree.nodes):
        if node.type == "GROUP" and node.node_tree and node.node_tree.name not in done:
            done.add(node.node_tree.name)
            _rewire(node.node_tree, keep_lit, done)
        elif node.type in COLOUR_INPUT:
            unlit = _base_colour(tree, node, COLOUR_INPUT[node.type])
            _replace(tree, node, unlit, keep_lit)
        elif node.type == "EMISSION":
            # Added to a scattering shader it is glow on top of the albedo; alone, the colour.
            added = any(link.to_node.type == "ADD_SHADER" for link in node.outputs[0].links)
            glow = tree.nodes.new("ShaderNodeEmission")
            _share(tree, node.inputs["Color"], glow.inputs["Color"])
            glow.inputs["Strength"].default_value = 0.0 if added else 1.0
            _replace(tree, node, glow.outputs[0], keep_lit)


def _base_colour(
    tree: bpy.types.NodeTree, node: bpy.types.Node, colour_input: str
) -> bpy.types.NodeSocket:
    """Return a shader that emits the node's colour, as transparent as the node is."""
    emission = tree.nodes.new("ShaderNodeEmission")
    _share(tree, node.inputs[colour_input], emission.inputs["Color"])
    alpha = node.inputs.get("Alpha")
    if alpha is None or not (alpha.is_linked or alpha.default_value < 1.0):
        return emission.outputs[0]
    mix = tree.nodes.new("ShaderNodeMixShader")
    transparent = tree.nodes.new("ShaderNodeBsdfTransparent")
    _share(tree, alpha, mix.inputs["Fac"])
    tree.links.new(transparent.outputs[0], mix.inputs[1])
    tree.links.new(emission.outputs[0], mix.inputs[2])
    return mix.outputs[0]


def _replace(
    tree: bpy.types.NodeTree, node: bpy.types.Node, unlit: bpy.types.NodeSocket, keep_lit: bool
) -> None:
    """Put the unlit shader in the node's place, or a switch between the two."""
    targets = [link.to_socket for link in node.outputs[0].links]
    shader = unlit
    if keep_lit:
        switch, mix = tree.nodes.new("ShaderNodeAttribute"), tree.nodes.new("ShaderNodeMixShader")
        switch.attribute_type, switch.attribute_name = "VIEW_LAYER", UNLIT
        tree.links.new(switch.outputs["Fac"], mix.inputs["Fac"])
        tree.links.new(node.outputs[0], mix.inputs[1])
        tree.links.new(unlit, mix.inputs[2])
        shader = mix.outputs[0]
    for target in targets:
        tree.links.new(shader, target)
    if not keep_lit:
        tree.nodes.remove(node)


def _share(tree: bpy.types.NodeTree, old: bpy.types.NodeSocket, new: bpy.types.NodeSocket) -> None:
    if old.is_linked:
        tree.links.new(old.links[0].from_socket, new)
    else:
        new.default_value = old.default_value

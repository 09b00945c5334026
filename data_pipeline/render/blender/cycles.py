"""Settings of Cycles: everything that decides pixels is pinned, so that no default can change it.

Three view layers are rendered by one call per view:

    lit       rgb of a lit view, `samples` per pixel
    unlit     the base colour: rgb of an unlit view, albedo of a lit one
    geometry  normal, position and depth: one sample, which Cycles takes at the pixel centre, so
              that all three describe one and the same point (averaged over samples they would not)

Materials switch by `UNLIT`, a property of the layer, see `materials`.
"""

import bpy

from data_pipeline.contract import RenderSpec
from data_pipeline.render.blender.device import use_device
from data_pipeline.render.blender.materials import UNLIT
from data_pipeline.render.blender.scene import OPAQUE_ALPHA

LIT_LAYER, UNLIT_LAYER, GEOMETRY_LAYER = "lit", "unlit", "geometry"

CLEAR_LAYERS = 64
"""Transparent surfaces that a ray may pass; the peers' 3 turn foliage and glass black."""

ALBEDO_SHARE = 4
"""Of the samples, albedo beside lit views gets one in so many: it holds no noise but at edges."""

TRANSMISSION_BOUNCES = 3


def set_up_cycles(spec: RenderSpec, seed: int, threads: int) -> None:
    """Pin the settings of the scene, its lights excepted."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    use_device(spec.device)
    _set_up_sampling(scene.cycles, spec, seed)
    _set_up_image(scene, spec.resolution_px, threads)
    unlit = scene.view_layers[0]
    unlit.name, unlit.use_pass_z = UNLIT_LAYER, False
    if "albedo" not in spec.lightings:
        unlit.samples = max(spec.samples // ALBEDO_SHARE, 1)  # colours need edges, not light
    geometry = scene.view_layers.new(GEOMETRY_LAYER)
    geometry.samples, geometry.use_pass_combined = 1, False
    geometry.use_pass_normal = geometry.use_pass_position = geometry.use_pass_z = True
    layers = [unlit, geometry]
    if set(spec.lightings) != {"albedo"}:
        layers.append(scene.view_layers.new(LIT_LAYER))
        layers[-1].use_pass_z = False
        _set_up_denoiser(scene.cycles, spec)
    for layer in layers:
        layer.pass_alpha_threshold = OPAQUE_ALPHA
        layer[UNLIT] = 0.0 if layer.name == LIT_LAYER else 1.0
        layer.cycles.use_denoising = layer.name == LIT_LAYER


def _set_up_sampling(cycles: bpy.types.PropertyGroup, spec: RenderSpec, seed: int) -> None:
    cycles.samples = spec.samples
    cycles.seed = seed % 2**31
    cycles.sampling_pattern = "TABULATED_SOBOL"
    cycles.use_adaptive_sampling = cycles.use_denoising = cycles.use_auto_tile = False
    # Without the tree three lamps take 15 % less time for 1.4 dB, denoised (docs/benchmarks.md).
    cycles.use_light_tree = cycles.auto_scrambling_distance = False
    cycles.scrambling_distance = 1.0
    # A box of one pixel: alpha is the covered share of the pixel, and what is outside stays out.
    cycles.pixel_filter_type = "BOX"
    cycles.max_bounces = max(spec.bounces, TRANSMISSION_BOUNCES)
    cycles.diffuse_bounces = cycles.glossy_bounces = spec.bounces
    cycles.transmission_bounces = TRANSMISSION_BOUNCES
    cycles.volume_bounces = 0
    cycles.transparent_max_bounces = CLEAR_LAYERS
    # No Russian roulette on clear surfaces: it would put noise into exact colours.
    cycles.min_light_bounces, cycles.min_transparent_bounces = 0, CLEAR_LAYERS
    cycles.caustics_reflective = cycles.caustics_refractive = False  # bright specks, at few samples
    cycles.blur_glossy = 1.0
    cycles.sample_clamp_direct, cycles.sample_clamp_indirect = 0.0, 10.0
    cycles.film_exposure = 1.0


def _set_up_denoiser(cycles: bpy.types.PropertyGroup, spec: RenderSpec) -> None:
    cycles.use_denoising = spec.denoise
    cycles.denoiser = "OPENIMAGEDENOISE"
    cycles.denoising_use_gpu = spec.device != "cpu"
    # The guiding albedo and normal hold hardly any noise here: to filter them first, and the best
    # of three qualities, take 6 times as long for .3 dB (docs/benchmarks.md).
    cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
    cycles.denoising_prefilter, cycles.denoising_quality = "NONE", "BALANCED"


def _set_up_image(scene: bpy.types.Scene, resolution_px: int, threads: int) -> None:
    render = scene.render
    render.resolution_x = render.resolution_y = resolution_px
    render.resolution_percentage = 100
    render.pixel_aspect_x = render.pixel_aspect_y = 1.0
    render.film_transparent = True
    render.dither_intensity = 0.0
    render.use_motion_blur = render.use_simplify = render.use_freestyle = False
    render.use_compositing = render.use_sequencer = False
    render.use_border = render.use_crop_to_border = True  # set by every view to the asset's box
    render.use_persistent_data = True  # meshes and textures stay loaded between the views
    render.threads_mode, render.threads = "FIXED", threads
    render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
    render.image_settings.color_depth = "32"
    render.image_settings.exr_codec = "NONE"
    render.use_file_extension = False
    scene.display_settings.display_device = "sRGB"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.view_settings.exposure, scene.view_settings.gamma = 0.0, 1.0

"""Make textured meshes: python generate.py prompt="a red chair" checkpoint=DIR out=chair.glb.

With image=FILE, a picture of it, beside a prompt or alone. With mesh=FILE that mesh is textured and
keeps its shape and frame. With sample=UID and shards=DIR a rendered sample is rebuilt instead.
"""

from pathlib import Path

from omegaconf import DictConfig

from data_pipeline.command_line import run
from data_pipeline.contract import UserError
from modules.pipelines.sampling_options import Sampling


def main(config: DictConfig) -> None:
    """Compose, check, run."""
    asked = config.prompt is not None or config.image is not None
    if config.mesh is not None and not asked:
        raise UserError('mesh=FILE needs prompt="..." or image=FILE: what it is to look like')
    if config.mesh is not None and config.sample is not None:
        raise UserError("mesh=FILE textures a mesh, sample=UID rebuilds one: give one of the two")
    if asked == (config.sample is not None):
        raise UserError('give either prompt="..." or image=FILE, or both; or sample=UID')
    if config.mesh is not None and config.refine_steps:
        raise UserError("refine_steps moves vertices, but mesh=FILE keeps its shape: leave it out")
    if not 0 <= config.seed < 2**63 - config.num:
        raise UserError(f"seed={config.seed} must be at least 0 and below 2^63")
    if config.prompt is not None and not str(config.prompt).strip():
        raise UserError("prompt= is empty: say what to make (with image=FILE it can be left out)")
    how = ("steps", "solver", "guidance", "guidance_interval", "guidance_rescale")
    sampling = Sampling(**{key: config[key] for key in how})
    out = str(config.out)
    # torch and diffusers take seconds to import; a mistyped key is told before that.
    from data_pipeline.loading.samples import decode_sample
    from data_pipeline.shards.manifest import ShardSet
    from modules.pipelines.export import ExportOptions
    from modules.pipelines.text_to_mesh import check_outputs, generate_from_prompt, rebuild_images

    sizes = ("format", "grid", "faces", "texture_px", "texture_format", "refine_steps")
    written = ExportOptions(**{key: config[key] for key in sizes})
    outputs = check_outputs(out, range(config.seed, config.seed + config.num), written)
    options = {"views": config.views, "options": written, "device": config.device}
    if asked:
        if config.checkpoint is None:
            raise UserError(
                "prompt and image need checkpoint=DIR: a pipeline folder that train.py exported"
            )
        options["sampling"] = sampling
        for key in ("image", "mesh"):
            options[key] = None if config[key] is None else Path(str(config[key]))
        prompt = "" if config.prompt is None else str(config.prompt)
        generate_from_prompt(prompt, outputs, Path(config.checkpoint), **options)
        return
    if config.num != 1 or config.shards is None:
        raise UserError("sample=UID needs shards=DIR, and gives one result (num=1)")
    shard_set = ShardSet(Path(config.shards), "samples")
    members = shard_set.read(shard_set.index_of(str(config.sample)))
    checkpoint = None if config.checkpoint is None else Path(config.checkpoint)
    sample = decode_sample(members)
    rebuild_images(sample, members["meta.json"], outputs, checkpoint, **options)


if __name__ == "__main__":
    run("generate", main)

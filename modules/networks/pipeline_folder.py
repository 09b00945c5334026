"""The folder that the stages of one model share: one subfolder for each."""

from pathlib import Path

from data_pipeline.contract import UserError

STAGES = {
    "autoencoder": "autoencoder",
    "denoiser": "latent_diffusion",
    "refiner_decoder": "refiner_decoder",
}
"""Stages of a pipeline folder, and the experiment that exports each."""


def stage_folder(pipeline_dir: Path, stage: str) -> Path:
    """Return the folder of an exported stage.

    Raises:
        UserError: there is none.
    """
    folder = pipeline_dir / stage
    if folder.is_dir():
        return folder
    held = [each for each in STAGES if (pipeline_dir / each).is_dir()]
    if not held:
        raise UserError(
            f"{pipeline_dir} is no pipeline folder: give the one that train.py exported into "
            "(paths.pipeline_dir)"
        )
    lacking = f"{pipeline_dir} holds {' and '.join(held)}, but no {stage}"
    if stage == "autoencoder":
        raise UserError(
            f"{lacking}: put there the one that the latents were encoded with: encode.py's "
            "autoencoder (of a hub model its vae folder), or what the matching */autoencoder "
            "experiment exported"
        )
    raise UserError(
        f"{lacking}: train it with the matching */{STAGES[stage]} experiment (such as "
        f"tiny/{STAGES[stage]}) and paths.pipeline_dir={pipeline_dir}"
    )

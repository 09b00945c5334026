"""An exported refiner-decoder: config.json and model.safetensors."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_pipeline.contract import CONVENTIONS_VERSION, UserError, check_conventions
from modules.networks.refiner import Refiner

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

SHAPE = ("width", "hidden", "side", "levels")
"""Settings that tell which weights a refiner has."""


def save_refiner(directory: Path, refiner: Refiner) -> None:
    """Write a refiner into an existing folder."""
    weights = {name: tensor.contiguous() for name, tensor in refiner.state_dict().items()}
    save_file(weights, directory / WEIGHTS_NAME)
    content = {"conventions": CONVENTIONS_VERSION, "refiner": refiner.config}
    (directory / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def load_refiner(directory: Path) -> Refiner:
    """Read what `save_refiner` wrote, ready for inference.

    Raises:
        UserError: the folder is no exported refiner-decoder, is damaged, or follows other
            conventions.
    """
    try:
        content = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
        check_conventions(content["conventions"], str(directory))
        refiner = Refiner(**content["refiner"])
        refiner.load_state_dict(load_file(directory / WEIGHTS_NAME))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{directory} is no exported refiner-decoder ({type(error).__name__}): "
            "train it with experiment=tiny/refiner_decoder, or give another checkpoint folder"
        ) from error
    return refiner.eval().requires_grad_(False)


def continue_refiner(refiner: Refiner, directory: Path) -> None:
    """Give a refiner that is to be trained the weights of an exported one.

    Raises:
        UserError: the folder holds none, or one of another shape.
    """
    exported = load_refiner(directory)
    shape, wanted = ({key: each.config[key] for key in SHAPE} for each in (exported, refiner))
    if shape != wanted:
        needed = " ".join(f"refiner.{key}={value}" for key, value in shape.items())
        raise UserError(f"the refiner of {directory} is of another shape: give {needed}")
    refiner.load_state_dict(exported.state_dict())

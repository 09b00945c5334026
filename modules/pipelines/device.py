"""Where inference runs."""

import torch

from data_pipeline.contract import UserError


def inference_device(name: str) -> torch.device:
    """Return the device of a `device=` key: `auto` takes a CUDA device if there is one.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        raise UserError(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}): "
            "give auto, cpu, or cuda where there is one"
        ) from error
    return device

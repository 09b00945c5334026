"""Random draws as a function of where training stands, so that a resume repeats them."""

import lightning
import numpy as np
import torch


def draw_generator(system: lightning.LightningModule, seed: int, batch_idx: int) -> torch.Generator:
    """Return the generator of one micro-batch: a function of seed, step, batch and process.

    The global generator of an interrupted run is lost; this one is the same after a resume.
    """
    entropy = [seed, system.global_step, batch_idx, system.global_rank]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(system.device).manual_seed(state)

import copy

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from modules.networks.adapters import MixtureOfLoRA
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone, image_positions, text_positions

CONFIG = {
    "in_channels": 12,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 10,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": (2, 2, 2, 2),
    "rope_theta": 2000,
    "guidance_embeds": False,
}
BATCH, VIEWS, GRID, WORDS = 3, 2, 2, 5
TIMES = torch.tensor([0.1, 0.6, 1.0])


def make_transformer(**changes) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**CONFIG | changes)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, 3, VIEWS, 12, GRID, GRID, generator=generator)
    references = torch.randn(BATCH, 2, 12, 3, 1, generator=generator)
    return latents, references, torch.randn(BATCH, WORDS, 10, generator=generator)


def run_stock(transformer, latents, references, text, times, **options) -> torch.Tensor:
    """The class's own forward, with the pipeline's order: all images, then the references."""
    tokens = [latents.movedim(3, -1).flatten(1, 4), references.movedim(2, -1).flatten(1, 3)]
    slots = [image_positions(torch.tensor([[0, 1]]), GRID, GRID)] * 3
    slots.append(image_positions(torch.tensor([[2, 3]]), 3, 1))
    output = transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=text,
        timestep=times,
        img_ids=torch.cat(slots, dim=1),
        txt_ids=text_positions(WORDS, text.device),
        **options,
    ).sample[:, : tokens[0].shape[1]]
    return output.unflatten(1, (3, VIEWS, GRID, GRID)).movedim(-1, 3)


ADAPTERS = {
    "mixture": MixtureOfLoRA(shared_rank=3, modality_rank=2),
    "plain LoRA": MixtureOfLoRA(shared_rank=3, modality_rank=0),
    "per modality only": MixtureOfLoRA(shared_rank=0, modality_rank=2),
    "none": None,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_equal_timesteps_and_references_give_the_stock_forward_bit_for_bit(name):
    stock, (latents, references, text) = make_transformer(), make_inputs()
    backbone = Flux2Backbone(copy.deepcopy(stock))
    if ADAPTERS[name] is not None:
        backbone.adapt(ADAPTERS[name])
        assert backbone.adapted
    denoiser = JointDenoiser(backbone, num_views=VIEWS)  # embeddings are zero
    driven = denoiser(latents, TIMES[:, None].expand(-1, 3), text, references=references)
    expected = run_stock(stock, latents, references, text, TIMES)
    assert expected.abs().max() > 0.1
    assert (driven - expected).abs().max() == 0.0

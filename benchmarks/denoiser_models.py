"""The denoisers that benchmarks/denoiser.py measures: random weights, real classes, one batch."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from data_pipeline.command_line import compose
from data_pipeline.contract import MODALITIES
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone
from modules.networks.sd3 import Sd3Backbone
from modules.reporting.plan import Batch, Plan, plan_denoiser

NUM_VIEWS = 6
BACKBONES: dict[str, Any] = {"flux2_klein": Flux2Backbone, "sd35m": Sd3Backbone}
SMALL: dict[str, dict[str, Any]] = {
    "flux2_klein": {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": [8, 8, 8, 8],
        "timestep_guidance_channels": 16, "guidance_embeds": False,
    },
    "sd35m": {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48,
        "caption_projection_dim": 64, "pooled_projection_dim": 24, "pos_embed_max_size": 16,
        "dual_attention_layers": [0, 1], "qk_norm": "rms_norm",
    },
}  # fmt: skip
"""The switches of the full models in small."""
BATCHES = {
    "small": Batch(size=1, grid=4, text_tokens=8),
    "full": Batch(size=1, grid=32, text_tokens=512),  # 18 images of 512 px: 18,432 tokens
}

build_optimizer = functools.partial(torch.optim.AdamW, lr=1e-4, fused=True)


def build_denoiser(name: str, size: str, device: str, dtype: torch.dtype) -> JointDenoiser:
    """Return a frozen random backbone with a mixture of LoRA, blocks checkpointed."""
    config = SMALL[name]
    adapters = MixtureOfLoRA(shared_rank=4, modality_rank=4)
    if size == "full":
        node = compose("train", [f"experiment={name}/latent_diffusion"]).denoiser
        config = instantiate(node.backbone.config, _convert_="all")
        adapters = instantiate(node.adapters, _convert_="all")
    backbone_class = BACKBONES[name]
    with torch.device(device):
        transformer = backbone_class.transformer_class(**config)
        nn.Module.to(transformer, dtype)  # diffusers' own `to` only adds a warning
        transformer.enable_gradient_checkpointing()
        return JointDenoiser(backbone_class(transformer).adapt(adapters), NUM_VIEWS)


def plan_model(name: str, size: str, dtype: torch.dtype, *, checkpointed: bool) -> Plan:
    """Return what `plan=true` says of the same model and batch."""
    planned = build_denoiser(name, size, "meta", dtype)
    if not checkpointed:
        planned.backbone.transformer.disable_gradient_checkpointing()
    return plan_denoiser(planned, None, build_optimizer, BATCHES[size], bf16=False, averaged=False)


class Model:
    """A denoiser with its optimizer and a batch that stays on the device.

    Args:
        name: of BACKBONES.
        size: of BATCHES.
        device: to run on.
        dtype: of the frozen weights.
    """

    def __init__(self, name: str, size: str, device: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.denoiser = build_denoiser(name, size, device, dtype)
        self.trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.trained)
        batch, backbone = BATCHES[size], self.denoiser.backbone
        shape = (batch.size, len(MODALITIES), NUM_VIEWS, backbone.channels, batch.grid, batch.grid)
        with torch.device(device):
            self.latents, self.noise = torch.randn(shape), torch.randn(shape)
            self.timesteps = torch.rand(shape[:2])
            self.text = torch.randn(batch.size, batch.text_tokens, backbone.text_width)
            self.pooled = None
            if backbone.pooled_width is not None:
                self.pooled = torch.randn(batch.size, backbone.pooled_width)

    def loss(self) -> Tensor:
        """Return the flow-matching loss."""
        t = self.timesteps[:, :, None, None, None, None]
        noisy = (1.0 - t) * self.latents + t * self.noise
        output = self.denoiser(noisy, self.timesteps, self.text, pooled=self.pooled)
        return (output - (self.noise - self.latents)).square().mean()

    def train_step(self) -> Tensor:
        """Make one step in Lightning's order: old gradients are let go behind the forward pass."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def sample(self, steps: int, guidance: float) -> Tensor:
        """Generate the latents of one asset by Euler's method with classifier-free guidance."""
        latents = self.noise[:1]
        text = torch.cat([self.text[:1], torch.zeros_like(self.text[:1])])
        pooled = self.pooled
        if pooled is not None:
            pooled = torch.cat([pooled[:1], torch.zeros_like(pooled[:1])])
        for i in range(steps, 0, -1):
            times = torch.full((2, len(MODALITIES)), i / steps, device=latents.device)
            both = self.denoiser(torch.cat([latents, latents]), times, text, pooled=pooled)
            velocity, null = both.chunk(2)
            latents = latents - (null + guidance * (velocity - null)) / steps
        return latents

    def compile_blocks(self, backend: str) -> None:
        """Compile every block by itself: equal blocks share one compilation."""
        transformer: Any = self.denoiser.backbone.transformer
        for name in ("transformer_blocks", "single_transformer_blocks"):
            for block in getattr(transformer, name, ()):
                block.compile(backend=backend)


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention by its definition, one matrix of scores per head (b n s d)."""
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head].mT / query.shape[-1] ** 0.5
        heads.append(scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value[:, head])
    return torch.stack(heads, dim=1)


Step = Callable[[], Any]


def attention_kernels(step: Step, device: str) -> list[str]:
    """Return the names of the attention kernels that run in a step."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([activity.CUDA] if device.startswith("cuda") else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    words = ("flash", "fmha", "sdpa", "attention")
    names = {event.key for event in profile.key_averages()}
    return sorted(name[:120] for name in names if any(word in name.lower() for word in words))

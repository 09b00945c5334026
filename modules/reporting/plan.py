"""What a training run of a denoiser needs, told before anything is bought: docs/planning.md.

Networks are built on the meta device and one step is run dry, so a laptop plans for a cluster.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import MODALITIES, UserError
from modules.latents.cache import read_cache
from modules.latents.spec import LatentSpec
from modules.networks.denoiser import JointDenoiser
from modules.networks.flops import StepCost, dry_run
from modules.networks.text_encoder import TextEncoder

OptimizerBuilder = Callable[[Iterable[nn.Parameter]], Optimizer]

TRAINED_TEXT_ENCODER = "modules.networks.text_encoder.TextEncoder"
"""What is trained with the denoiser; text of pretrained models comes as embeddings."""

GIB = 2**30
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Shape of what one GPU trains on in one step.

    Args:
        size: samples per GPU.
        grid: packed latent cells along the side of one view.
        text_tokens: of pretrained text embeddings; a text encoder that is trained has its own.
        references: reference images of every sample.
        vision_tokens: of each of these, where the denoiser takes any.
    """

    size: int
    grid: int
    text_tokens: int
    references: int = 0
    vision_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one GPU holds at the worst moment of a step, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        """Bytes of everything."""
        return sum(astuple(self))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters, tokens, FLOPs and memory of one training step.

    Args:
        parameters: of all networks.
        trainable: those of them that are trained.
        frozen_bytes: of weights that are not trained.
        trainable_bytes: of weights that are trained.
        largest_block_bytes: of the weights that ZeRO-3 gathers at a time.
        image_tokens: of one sample.
        text_tokens: of one sample.
        reference_tokens: of one sample.
        vision_tokens: of one sample.
        step: of a batch without recomputation.
        activation_bytes: peak of a batch, with gradient checkpointing where it is switched on.
        optimizer_states: numbers that the optimizer keeps per trained parameter.
        averaged: whether an average of the trained weights is kept.
        bf16: whether it is computed in bfloat16, as precision or as the frozen weights' dtype.
    """

    parameters: int
    trainable: int
    frozen_bytes: int
    trainable_bytes: int
    largest_block_bytes: int
    image_tokens: int
    text_tokens: int
    reference_tokens: int
    vision_tokens: int
    step: StepCost
    activation_bytes: int
    optimizer_states: int
    averaged: bool
    bf16: bool

    def memory(self, zero_stage: int, num_gpus: int) -> Memory:
        """Return the memory of one GPU out of `num_gpus`.

        Stage 0 is one GPU or DDP: trained weights, gradients and optimizer states in the weights'
        own dtype. DeepSpeed (stages 1 to 3) in bfloat16 holds weights and gradients in 2 bytes, and
        4-byte master weights beside the optimizer's 4-byte states; in float32 it copies them too.
        """
        shared = [1.0 if zero_stage < stage else 1.0 / num_gpus for stage in (1, 2, 3)]
        of_optimizer, of_gradients, of_weights = shared
        if zero_stage == 0:
            weights = gradients = self.trainable_bytes
            optimizer = self.optimizer_states * self.trainable_bytes
        else:
            weights = gradients = self.trainable * (2 if self.bf16 else 4)
            optimizer = (1 + self.optimizer_states) * 4 * self.trainable
        gathered = self.largest_block_bytes if zero_stage == 3 and num_gpus > 1 else 0
        return Memory(
            weights=(self.frozen_bytes + weights) * of_weights + gathered,
            gradients=gradients * of_gradients,
            optimizer=optimizer * of_optimizer,
            average=4 * self.trainable * of_weights if self.averaged else 0.0,
            activations=self.activation_bytes,
        )


def plan_from_config(config: DictConfig) -> None:
    """Print what a training step of a denoiser needs; only the configuration of train.py is read.

    Raises:
        UserError: the experiment trains another stage.
    """
    if "denoiser" not in config:
        raise UserError("plan=true plans latent_diffusion experiments: the other stages are small")
    named = None if OmegaConf.is_missing(config, "conditioner") else config.conditioner
    without_encoder = named is None or named._target_ != TRAINED_TEXT_ENCODER
    trainer, devices = config.trainer, config.trainer.get("devices", 1)
    build_denoiser = instantiate(config.denoiser, _convert_="object")
    build_text_encoder = None if without_encoder else instantiate(named, _convert_="object")
    batch = _planned_batch(config)
    with torch.device("meta"):
        denoiser = build_denoiser()
        text_encoder = None if build_text_encoder is None else build_text_encoder()
    plan = plan_denoiser(
        denoiser,
        text_encoder,
        instantiate(config.system.optimizer, _convert_="object"),
        batch,
        bf16=str(trainer.get("precision", "32-true")).startswith("bf16"),
        averaged="ema" in config.callbacks,
    )
    num_gpus = (devices if isinstance(devices, int) else 8) * trainer.get("num_nodes", 1)
    print("\n".join(plan_lines(plan, batch, num_gpus)))


def _planned_batch(config: DictConfig) -> Batch:
    """Return what one GPU trains on; sizes of latents come from their cache, if there is one.

    Raises:
        UserError: the grid is not known, or how many vision tokens a reference has.
    """
    grid, vision_tokens = config.plan_grid, config.plan_vision_tokens
    if not OmegaConf.is_missing(config, "latents"):
        cache = read_cache(Path(config.latents))
        grid = LatentSpec.from_json(cache.get("latent_spec"), str(config.latents)).grid
        vision_tokens = cache.get("vision", {}).get("num_tokens", vision_tokens)
    if grid is None:
        raise UserError(
            "plan=true must know the size of the latents: give plan_grid=CELLS (of one view's "
            "side, after packing), or latents=FOLDER"
        )
    references = config.system.num_references if config.system.image_share > 0.0 else 0
    if config.denoiser.vision_width is None or references == 0:
        vision_tokens = 0
    elif vision_tokens is None:
        raise UserError(
            "plan=true must know how many tokens the vision encoder makes of a reference: give "
            "plan_vision_tokens=NUMBER (conf/vision says them), or latents=FOLDER"
        )
    return Batch(
        size=config.data.batch_size,
        grid=grid,
        text_tokens=config.plan_text_tokens,
        references=references,
        vision_tokens=vision_tokens,
    )


def plan_denoiser(
    denoiser: JointDenoiser,
    text_encoder: TextEncoder | None,
    build_optimizer: OptimizerBuilder,
    batch: Batch,
    *,
    bf16: bool,
    averaged: bool,
) -> Plan:
    """Run one step dry and add up.

    Args:
        denoiser: on the meta device.
        text_encoder: trained with it, on the meta device; None: text comes as embeddings.
        build_optimizer: makes the optimizer of given parameters.
        batch: of one GPU.
        bf16: whether the trainer's precision is bfloat16; else weights are used as they are stored.
        averaged: whether an average of the trained weights is kept.
    """
    networks = nn.ModuleList([denoiser] if text_encoder is None else [denoiser, text_encoder])
    computed = copy.deepcopy(networks).to(torch.bfloat16 if bf16 else None)
    num_views = denoiser.num_views
    text_tokens = batch.text_tokens if text_encoder is None else text_encoder.length

    def step() -> Tensor:
        with torch.device("meta"):
            return _step(computed, batch, num_views, text_tokens)

    activations = dry_run(step, [computed]).peak_bytes
    plain: Any = computed[0]
    plain.backbone.transformer.gradient_checkpointing = False
    parameters = list(networks.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return Plan(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        frozen_bytes=_bytes(parameters) - _bytes(trainable),
        trainable_bytes=_bytes(trainable),
        largest_block_bytes=_largest_block(networks),
        image_tokens=len(MODALITIES) * num_views * batch.grid**2,
        text_tokens=text_tokens,
        reference_tokens=batch.references * batch.grid**2,
        vision_tokens=0 if denoiser.vision is None else batch.references * batch.vision_tokens,
        step=dry_run(step, [computed]),
        activation_bytes=activations,
        optimizer_states=_states_per_parameter(build_optimizer),
        averaged=averaged,
        bf16=bf16 or any(parameter.dtype == torch.bfloat16 for parameter in parameters),
    )


def _step(networks: nn.ModuleList, batch: Batch, num_views: int, text_tokens: int) -> Tensor:
    """Return a loss as the training step computes it: flow matching on one batch."""
    denoiser: Any = networks[0]
    shape = (batch.size, len(MODALITIES), num_views, denoiser.channels, batch.grid, batch.grid)
    latents, noise = torch.empty(shape), torch.empty(shape)
    timesteps = torch.empty(shape[:2])
    options = {}
    if batch.references:
        options["references"] = torch.empty(batch.size, batch.references, *shape[3:])
        if denoiser.vision is not None:
            tokens = batch.references * batch.vision_tokens
            options["vision"] = torch.empty(batch.size, tokens, denoiser.vision.in_features)
    if len(networks) > 1:
        text = networks[1](torch.empty(batch.size, text_tokens, dtype=torch.long))
    else:
        backbone = denoiser.backbone
        text = torch.empty(batch.size, text_tokens, backbone.text_width)
        if backbone.pooled_width is not None:
            options["pooled"] = torch.empty(batch.size, backbone.pooled_width)
    t = timesteps[:, :, None, None, None, None]
    prediction = denoiser((1.0 - t) * latents + t * noise, timesteps, text, **options)
    return (prediction.float() - (noise - latents)).square().flatten(2).mean(dim=2).sum()


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _largest_block(networks: nn.Module) -> int:
    lists = (module for module in networks.modules() if isinstance(module, nn.ModuleList))
    blocks = (block for each in lists if each is not networks for block in each)
    return max((_bytes(block.parameters()) for block in blocks), default=0)


def _states_per_parameter(build: OptimizerBuilder) -> int:
    """Return how many numbers the optimizer keeps per parameter, by letting it make one step."""
    parameter = nn.Parameter(torch.zeros(1024))
    parameter.grad = torch.ones_like(parameter)
    optimizer = build([parameter])
    optimizer.step()
    kept = (
        value.numel() for value in optimizer.state[parameter].values() if torch.is_tensor(value)
    )
    return round(sum(kept) / parameter.numel())


def plan_lines(plan: Plan, batch: Batch, num_gpus: int) -> list[str]:
    """Return the plan as lines of text.

    Args:
        plan: to tell.
        batch: that it was made for.
        num_gpus: over which ZeRO shards.
    """
    step = plan.step
    images = plan.image_tokens // batch.grid**2
    names = (field.name for field in fields(Memory))
    rows: list[tuple[str, ...]] = [("ZeRO", *names, "total")]
    for stage in ZERO_STAGES:
        held = plan.memory(stage, num_gpus)
        parts = (*astuple(held), held.total)
        rows.append((str(stage), *(f"{part / GIB:.2f}" for part in parts)))
    share = plan.trainable / plan.parameters
    others = f"{plan.text_tokens:,} of text"
    if batch.references:
        others += f", {plan.reference_tokens:,} of {batch.references} references"
    if plan.vision_tokens:
        others += f", {plan.vision_tokens:,} of their vision encoder"
    return [
        f"parameters   {_count(plan.parameters)} total, {_count(plan.trainable)} trainable "
        f"({share:.1%})",
        f"tokens       {plan.image_tokens:,} per sample: {images} images of {batch.grid} x "
        f"{batch.grid}; {others}",
        f"FLOPs/step   {step.total / 1e12:.4g} TFLOP for a batch of {batch.size} on each GPU: "
        f"forward {step.forward / 1e12:.4g}, gradients of inputs and trained weights "
        f"{step.backward / 1e12:.4g}; {step.attention / step.total:.0%} of it is attention",
        f"GiB per GPU  of {num_gpus}",
        *("  " + "".join(f"{cell:>12}" for cell in row) for row in rows),
    ]


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return f"{number:,}"

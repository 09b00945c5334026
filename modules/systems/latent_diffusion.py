"""Recipe of the joint latent diffusion: text to 2.5D latents, texture and geometry in one model."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import MODALITIES, UserError
from modules.latents.cache import read_cache
from modules.latents.spec import LatentSpec
from modules.losses.flow import (
    Prediction,
    TimestepMix,
    add_noise,
    mean_over_noisy,
    mean_square,
    to_velocity,
    velocity_target,
)
from modules.networks.denoiser import JointDenoiser
from modules.networks.denoiser_files import save_denoiser
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.systems.randomness import draw_generator
from modules.systems.schedule import optimizer_with_schedule


class LatentDiffusionSystem(lightning.LightningModule):
    """Train a joint denoiser and its text encoder on cached latents by rectified flow.

    What the latents mean and which words the captions use is read from the cache when training
    starts (`encode.py` wrote both there), so the networks can be built without any data.

    Args:
        denoiser: builds the denoiser.
        text_encoder: builds the text encoder.
        optimizer: makes the optimizer of given parameters.
        latents: folder of the latent cache that is trained on.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        mix: how noise levels are drawn.
        prediction: what the denoiser's output stands for: `clean` or `velocity`.
        min_t: bound of the division by t in the loss of a clean prediction.
        modality_weights: of the losses of rgb, normal and coord.
        text_dropout: share of captions that training replaces by the null caption.
        sampling_shift: shift of the sampler's timesteps that is exported; above 1 takes finer steps
            where noise is strong.
        seed: of what training draws.
    """

    stage = "denoiser"
    weights: Tensor

    def __init__(
        self,
        denoiser: Callable[[], JointDenoiser],
        text_encoder: Callable[[], TextEncoder],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        latents: str,
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        mix: TimestepMix,
        prediction: Prediction = "clean",
        min_t: float = 0.15,
        modality_weights: Sequence[float] = (1.0, 1.0, 1.0),
        text_dropout: float = 0.1,
        sampling_shift: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_denoiser, self.build_text_encoder = denoiser, text_encoder
        self.build_optimizer, self.build_scheduler = optimizer, scheduler
        self.latents = Path(latents)
        self.prediction: Prediction = prediction
        self.mix, self.min_t = mix, min_t
        self.text_dropout, self.sampling_shift = text_dropout, sampling_shift
        self.seed = seed
        self.register_buffer("weights", torch.tensor(modality_weights), persistent=False)
        self.denoiser: Any = None
        self.text_encoder: Any = None
        self.spec: LatentSpec | None = None
        self.vocabulary: Vocabulary | None = None
        self.trained_on: str | None = None

    def configure_model(self) -> None:
        if self.denoiser is None:
            self.denoiser, self.text_encoder = self.build_denoiser(), self.build_text_encoder()

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return optimizer_with_schedule(parameters, self.build_optimizer, self.build_scheduler)

    def setup(self, stage: str) -> None:
        """Read what the cache says of itself."""
        cache = read_cache(self.latents)
        self.spec = LatentSpec.from_json(cache.get("latent_spec"), str(self.latents))
        self.vocabulary = Vocabulary(cache.get("vocabulary", ()))
        self.trained_on = cache.get("inputs", {}).get("source_manifest_sha256")

    def on_fit_start(self) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        num_words, views = self.text_encoder.config["max_words"], self.denoiser.num_views
        if self.denoiser.channels != self.spec.channels or views != self.spec.num_views:
            raise UserError(
                f"{self.latents} holds {self.spec.num_views} views of {self.spec.channels} "
                f"channels, the denoiser takes {views} of {self.denoiser.channels}: set "
                "denoiser.num_views and denoiser.in_channels, or encode with another packing"
            )
        if len(self.vocabulary) > num_words:
            raise UserError(
                f"{self.latents} has {len(self.vocabulary)} words, the text encoder {num_words}: "
                "raise conditioner.max_words"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        checkpoint["latent_spec"] = json.dumps(self.spec.to_json())
        checkpoint["vocabulary"] = self.vocabulary.words

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        spec = LatentSpec.from_json(json.loads(checkpoint["latent_spec"]), "the checkpoint")
        if spec != self.spec or checkpoint["vocabulary"] != self.vocabulary.words:
            raise UserError(
                f"{self.latents} is another latent cache than the checkpoint's: start a new run "
                "(another paths.run_dir), or name the old cache"
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        latents: Tensor = batch["latents"]
        generator = draw_generator(self, self.seed, batch_idx)
        drawn = {"device": latents.device, "generator": generator}
        keep = torch.rand(len(latents), **drawn) >= self.text_dropout
        captions = [c if k else "" for c, k in zip(batch["caption"], keep.tolist(), strict=True)]
        timesteps = self.mix.sample(len(latents), **drawn)
        noise = torch.randn(latents.shape, **drawn)
        errors, baseline = self._errors(latents, captions, timesteps, noise)
        losses = mean_over_noisy(errors, timesteps)
        total = (losses * self.weights).sum() / self.weights.sum()
        ratio = losses.sum() / mean_over_noisy(baseline, timesteps).sum()
        logged = {f"train/loss/{name}": losses[i].detach() for i, name in enumerate(MODALITIES)}
        logged["train/loss/predict_zero_ratio"] = ratio.detach()
        self.log_dict(logged, batch_size=len(latents))
        self.log("train/loss/total", total.detach(), batch_size=len(latents), prog_bar=True)
        return total

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure the loss on fixed noise, and by how much shuffled captions make it worse.

        At the levels that training draws. At lower ones a clean prediction of unseen latents misses
        detail, which the division by t makes the larger part of any mean over levels.
        """
        latents: Tensor = batch["latents"]
        generator = torch.Generator(latents.device).manual_seed(batch_idx)
        size = len(latents)
        levels = self.mix.levels(5).to(latents.device)
        sums = latents.new_zeros(3, len(MODALITIES))  # true, shuffled captions; predict zero
        for level in levels:
            timesteps = level.expand(size, len(MODALITIES))
            noise = torch.randn(latents.shape, device=latents.device, generator=generator)
            captions = batch["caption"]
            errors, baseline = self._errors(latents, captions, timesteps, noise)
            shuffled = captions[1:] + captions[:1]
            wrong, _ = self._errors(latents, shuffled, timesteps, noise)
            sums = sums + torch.stack([errors.mean(0), wrong.mean(0), baseline.mean(0)])
        per_modality = sums[0] / len(levels)
        true, wrong, zero = sums.mean(dim=1) / len(levels)
        figures = {f"val/loss/{name}": per_modality[i] for i, name in enumerate(MODALITIES)}
        figures |= {"val/loss/total": true, "val/loss/predict_zero_ratio": true / zero}
        if size > 1:  # else there is no other caption
            figures["val/loss/true_minus_shuffled"] = true - wrong
        self.log_dict(figures, batch_size=size, sync_dist=True)

    def _errors(
        self,
        latents: Float[Tensor, "b m v c h w"],
        captions: list[str],
        timesteps: Float[Tensor, "b m"],
        noise: Float[Tensor, "b m v c h w"],
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        """Return the velocity loss per sample and modality, and that of predicting zero."""
        assert self.vocabulary is not None
        words = self.vocabulary.encode(captions, self.text_encoder.length).to(latents.device)
        noisy = add_noise(latents, noise, timesteps)
        output = self.denoiser(noisy, timesteps, self.text_encoder(words))
        velocity = to_velocity(output, noisy, timesteps, self.prediction, self.min_t)
        target = velocity_target(latents, noisy, noise, timesteps, self.prediction, self.min_t)
        return mean_square(velocity - target), mean_square(target)

    def export(self, directory: Path) -> None:
        """Write denoiser, text encoder, vocabulary and latent spec."""
        assert self.spec is not None
        assert self.vocabulary is not None
        sampling = {"prediction": self.prediction, "shift": self.sampling_shift}
        networks = self.denoiser, self.text_encoder, self.vocabulary
        save_denoiser(directory, *networks, sampling, self.trained_on)
        self.spec.save(directory)

"""Recipe of the joint latent diffusion: text to 2.5D latents, texture and geometry in one model."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    RGB,
    Prediction,
    TimestepMix,
    add_noise,
    mean_over_noisy,
    mean_square,
    to_velocity,
    velocity_target,
    weighted_mean_square,
)
from modules.networks.conditioner import Conditions
from modules.networks.denoiser import JointDenoiser
from modules.networks.denoiser_files import save_denoiser
from modules.networks.text_backbones import PretrainedText
from modules.networks.text_cache import CachedText
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.networks.weights_fingerprint import check_fingerprint
from modules.systems.diffusion_checks import (
    check_latents,
    check_settings,
    check_text,
    check_vision,
    is_same_vision,
)
from modules.systems.own_references import OwnReferences, SeenViews
from modules.systems.randomness import draw_generator
from modules.systems.schedule import optimizer_with_schedule


class LatentDiffusionSystem(lightning.LightningModule):
    """Train a joint denoiser on cached latents by rectified flow, and a text encoder with it.

    Pretrained text models stay as they are; their embeddings may come from a cache too.

    What the latents mean and which words the captions use is read from the cache when training
    starts (`encode.py` wrote both there), so the networks can be built without any data.

    Args:
        denoiser: builds the denoiser.
        text_encoder: builds what embeds captions.
        optimizer: makes the optimizer of given parameters.
        latents: folder of the latent cache that is trained on.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        mix: how noise levels are drawn.
        prediction: what the denoiser's output stands for: `clean` or `velocity`.
        min_t: bound of the division by t in the loss of a clean prediction.
        modality_weights: of the losses of rgb, normal and coord.
        foreground_weight: of cells that show the asset, those of the background having weight 1.
        text_dropout: share of captions that training replaces by the null caption.
        image_share: share of samples that see one of their own views as a reference image, whatever
            becomes of their caption; the others see the null reference. 0 trains without
            references, .9 stands for 10 % of dropout.
        image_views: views that may be references; None is any.
        num_references: most views that a sample sees.
        sampling_shift: shift of the sampler's timesteps that is exported; above 1 takes finer steps
            where noise is strong. None is the backbone's own.
        compile_blocks: keyword arguments of `torch.compile` for the backbone's blocks, each alone;
            None runs them as they are.
        seed: of what training draws.
    """

    stage = "denoiser"
    weights: Tensor

    def __init__(
        self,
        denoiser: Callable[[], JointDenoiser],
        text_encoder: Callable[[], TextEncoder | PretrainedText | CachedText],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        latents: str,
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        mix: TimestepMix,
        prediction: Prediction = "clean",
        min_t: float = 0.15,
        modality_weights: Sequence[float] = (1.0, 1.0, 1.0),
        foreground_weight: float = 1.0,
        text_dropout: float = 0.1,
        image_share: float = 0.0,
        image_views: Sequence[int] | None = None,
        num_references: int = 1,
        sampling_shift: float | None = 1.0,
        compile_blocks: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_denoiser, self.build_text_encoder = denoiser, text_encoder
        self.build_optimizer, self.build_scheduler = optimizer, scheduler
        self.latents = Path(latents)
        self.prediction: Prediction = prediction
        self.mix, self.min_t = mix, min_t
        self.text_dropout, self.sampling_shift = text_dropout, sampling_shift
        self.references = OwnReferences(image_share, image_views, num_references)
        self.foreground_weight = foreground_weight
        self.compile_blocks, self.seed = compile_blocks, seed
        self.strict_loading = False  # of what is trained; `on_load_checkpoint` checks that all is
        self.register_buffer("weights", torch.tensor(modality_weights), persistent=False)
        self.denoiser: Any = None
        self.text_encoder: Any = None
        self.spec: LatentSpec | None = None
        self.vocabulary: Vocabulary | None = None
        self.trained_on: str | None = None
        self.vision: dict[str, Any] | None = None  # what the cache says of its vision tokens
        self.last_caption = ""

    def configure_model(self) -> None:
        if self.denoiser is None:
            self.denoiser, self.text_encoder = self.build_denoiser(), self.build_text_encoder()
            if self.compile_blocks is not None:
                for kind in ("transformer_blocks", "single_transformer_blocks"):
                    for block in getattr(self.denoiser.backbone.transformer, kind, ()):
                        block.compile(**self.compile_blocks)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return optimizer_with_schedule(parameters, self.build_optimizer, self.build_scheduler)

    def setup(self, stage: str) -> None:
        """Read what the cache says of itself."""
        cache = read_cache(self.latents)
        self.spec = LatentSpec.from_json(cache.get("latent_spec"), str(self.latents))
        self.vocabulary = Vocabulary(cache.get("vocabulary", ()))
        self.trained_on = cache.get("inputs", {}).get("source_manifest_sha256")
        self.vision = cache.get("vision")

    def on_fit_start(self) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        check_latents(self.denoiser, self.spec, self.latents)
        check_vision(self.denoiser, self.vision, self.references.share, self.latents)
        check_text(self.denoiser, self.text_encoder, self.vocabulary, self.latents)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        trained = self._trained_names()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}
        checkpoint["latent_spec"] = json.dumps(self.spec.to_json())
        checkpoint["vocabulary"] = self.vocabulary.words
        checkpoint["backbone"] = self.denoiser.backbone.origin
        checkpoint["vision"] = None if self.denoiser.vision is None else self.vision
        checkpoint["text_encoder"] = self.text_encoder.config
        checkpoint["settings"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        assert self.vocabulary is not None
        spec = LatentSpec.from_json(json.loads(checkpoint["latent_spec"]), "the checkpoint")
        same_words = checkpoint["vocabulary"] == self.vocabulary.words
        same_vision = is_same_vision(checkpoint.get("vision"), self.vision)
        if spec != self.spec or not (same_words and same_vision):
            raise UserError(
                f"{self.latents} is another latent cache than the checkpoint's: start a new run "
                "(another paths.run_dir), or name the old cache"
            )
        pretrained = {
            "backbone": self.denoiser.backbone.origin, "text_encoder": self.text_encoder.config
        }  # fmt: skip
        for part, now in pretrained.items():
            saved = checkpoint.get(part, {}).get("fingerprint")
            check_fingerprint(now.get("fingerprint"), saved, now.get("source", ""))
        check_settings(checkpoint.get("settings", {}), self._settings())
        if differing := sorted(self._trained_names() ^ checkpoint["state_dict"].keys()):
            raise UserError(
                f"the checkpoint was trained with another denoiser, conditioner or adapters: "
                f"{', '.join(differing[:3])} is on one side only; start a new run (another "
                "paths.run_dir)"
            )

    def _settings(self) -> dict[str, Any]:
        """Return what training must go on with, by its key."""
        return {
            "system.prediction": self.prediction,
            "system.num_references": self.references.num_slots,
            "denoiser.text_timestep": self.denoiser.text_timestep,
        }

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, and what callbacks look at: `errors` and `timesteps` (b m)."""
        latents: Tensor = batch["latents"]
        generator = draw_generator(self, self.seed, batch_idx)
        drawn = {"device": latents.device, "generator": generator}
        keep = torch.rand(len(latents), **drawn) >= self.text_dropout
        captions = [c if k else "" for c, k in zip(batch["caption"], keep.tolist(), strict=True)]
        timesteps = self._mix(latents).sample(len(latents), **drawn)
        noise = torch.randn(latents.shape, **drawn)
        conditions = self.conditions(batch, captions, self.references.draw(latents, generator))
        errors, baseline = self._errors(batch, conditions, timesteps, noise)
        losses = mean_over_noisy(errors, timesteps)
        total = (losses * self.weights).sum() / self.weights.sum()
        ratio = losses.sum() / mean_over_noisy(baseline, timesteps).sum()
        logged = {f"train/loss/{name}": losses[i].detach() for i, name in enumerate(MODALITIES)}
        logged["train/loss/predict_zero_ratio"] = ratio.detach()
        self.log_dict(logged, batch_size=len(latents))
        self.log("train/loss/total", total.detach(), batch_size=len(latents), prog_bar=True)
        return {"loss": total, "errors": errors.detach(), "timesteps": timesteps}

    def conditions(
        self, batch: dict[str, Any], captions: list[str], seen: SeenViews | None
    ) -> Conditions:
        """Return what the denoiser is told: captions, and views of the batch's own."""
        text, pooled = self.text_encoder.embed(captions)
        references = None if seen is None else seen.pick(batch["latents"][:, RGB])
        vision = None
        if seen is not None and self.denoiser.vision is not None:
            vision = seen.pick(batch["vision"]).flatten(1, 2)
        return Conditions(text=text, pooled=pooled, references=references, vision=vision)

    def _mix(self, latents: Float[Tensor, "b m v c h w"]) -> TimestepMix:
        return self.mix.at(latents.shape[2] * latents.shape[4] * latents.shape[5])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure the loss on fixed noise, and by how much shuffled captions make it worse.

        At the levels that training draws. At lower ones a clean prediction of unseen latents misses
        detail, which the division by t makes the larger part of any mean over levels.

        A sample's wrong caption is that of the sample before it. Samples where the two are equal do
        not count in `true_minus_shuffled`, which is NaN where none counts. It is logged all the
        same: processes reduce every figure together.
        """
        latents: Tensor = batch["latents"]
        generator = torch.Generator(latents.device).manual_seed(batch_idx)
        size = len(latents)
        levels = self._mix(latents).levels(5).to(latents.device)
        captions, null = batch["caption"], self.references.null(latents)
        before = captions[-1] if batch_idx == 0 else self.last_caption
        shuffled, self.last_caption = [before, *captions[:-1]], captions[-1]
        differs = torch.tensor([a != b for a, b in zip(captions, shuffled, strict=True)])
        true, wrong = (self.conditions(batch, each, null) for each in (captions, shuffled))
        # of true, of shuffled captions; of predicting zero
        sums = latents.new_zeros(3, size, len(MODALITIES))
        for level in levels:
            timesteps = level.expand(size, len(MODALITIES))
            noise = torch.randn(latents.shape, device=latents.device, generator=generator)
            errors, baseline = self._errors(batch, true, timesteps, noise)
            misled, _ = self._errors(batch, wrong, timesteps, noise)
            sums = sums + torch.stack([errors, misled, baseline])
        means = sums / len(levels)
        per_modality = means[0].mean(dim=0)
        right, _, zero = means.mean(dim=(1, 2))
        figures = {f"val/loss/{name}": per_modality[i] for i, name in enumerate(MODALITIES)}
        figures |= {"val/loss/total": right, "val/loss/predict_zero_ratio": right / zero}
        self.log_dict(figures, batch_size=size, sync_dist=True)
        differs = differs.to(latents.device)
        num_wrong = int(differs.sum())
        gain = ((means[0] - means[1]).mean(dim=1) * differs).sum() / max(num_wrong, 1)
        self.log("val/loss/true_minus_shuffled", gain, batch_size=num_wrong, sync_dist=True)

    def predict(
        self,
        noisy: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        conditions: Conditions,
        **options: Any,
    ) -> Float[Tensor, "b m v c h w"]:
        """Return the denoiser's output; `options` are further keyword arguments of it."""
        return self.denoiser(noisy, timesteps, conditions.text, **conditions.options, **options)

    def _errors(
        self,
        batch: dict[str, Any],
        conditions: Conditions,
        timesteps: Float[Tensor, "b m"],
        noise: Float[Tensor, "b m v c h w"],
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        """Return the velocity loss per sample and modality, and that of predicting zero."""
        latents = batch["latents"]
        noisy = add_noise(latents, noise, timesteps)
        output = self.predict(noisy, timesteps, conditions)
        velocity = to_velocity(output, noisy, timesteps, self.prediction, self.min_t)
        target = velocity_target(latents, noisy, noise, timesteps, self.prediction, self.min_t)
        if self.foreground_weight == 1.0:
            return mean_square(velocity - target), mean_square(target)
        if "coverage" not in batch:
            raise UserError(
                f"{self.latents} says nothing of what is foreground: make it again with encode.py, "
                "or set system.foreground_weight=1"
            )
        weighting = batch["coverage"], self.foreground_weight
        return (
            weighted_mean_square(velocity - target, *weighting),
            weighted_mean_square(target, *weighting),
        )

    def export(self, directory: Path) -> None:
        """Write denoiser, text encoder and latent spec."""
        assert self.spec is not None
        sampling = {
            "prediction": self.prediction,
            "shift": self.sampling_shift,
            "num_references": self.references.num_slots if self.references.share > 0.0 else 0,
            "textures": self.mix.texture + self.mix.independent > 0.0,
        }
        vision = None
        if self.denoiser.vision is not None:
            assert self.vision is not None
            vision = self.vision["encoder"]
        networks = self.denoiser, self.text_encoder
        save_denoiser(directory, *networks, sampling, self.trained_on, vision)
        self.spec.save(directory)

"""Recipe of the image autoencoder: one network for rgb, normal and coord images."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import AutoencoderDC, ModelMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import MODALITIES
from modules.latents.codec import deterministic_latents, encode_images
from modules.latents.patch_linear import start_patch_linear
from modules.losses.image import (
    gradient_loss,
    kl_loss,
    normal_angle_loss,
    peak_signal_to_noise,
    reconstruction_loss,
)
from modules.systems.randomness import draw_generator
from modules.systems.schedule import optimizer_with_schedule

NORMAL = MODALITIES.index("normal")
SILHOUETTE_PX = 2
"""Pixels this near to the background are left out of the figures `*_inside`."""


class AutoencoderSystem(lightning.LightningModule):
    """Train an image autoencoder of diffusers on single views of all three modalities.

    Args:
        network: builds the autoencoder (`AutoencoderDC`, `AutoencoderKL`, ...).
        optimizer: makes the optimizer of given parameters.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        images_per_step: (modality, view) images drawn from a batch for one step.
        patch_linear_start: set the first weights from the patches of the first batch
            (`AutoencoderDC` only).
        normal_weight: of the angle between true and predicted normals on hit pixels.
        gradient_weight: of the error of image gradients.
        kl_weight: of the divergence from the unit normal; for autoencoders with a distribution.
        seed: of what training draws.
    """

    stage = "autoencoder"

    def __init__(
        self,
        network: Callable[[], ModelMixin],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        images_per_step: int = 32,
        patch_linear_start: bool = False,
        normal_weight: float = 0.1,
        gradient_weight: float = 0.25,
        kl_weight: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_network, self.build_optimizer, self.build_scheduler = (
            network,
            optimizer,
            scheduler,
        )
        self.images_per_step = images_per_step
        self.patch_linear_start = patch_linear_start
        self.normal_weight, self.gradient_weight = normal_weight, gradient_weight
        self.kl_weight, self.seed = kl_weight, seed
        self.autoencoder: Any = None

    def configure_model(self) -> None:
        if self.autoencoder is None:
            self.autoencoder = self.build_network()

    def configure_optimizers(self) -> Any:
        return optimizer_with_schedule(
            self.autoencoder.parameters(), self.build_optimizer, self.build_scheduler
        )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.patch_linear_start and self.global_step == 0 and batch_idx == 0:
            self._start_from(batch["images"].flatten(0, 2))

    def _start_from(self, images: Float[Tensor, "n 3 h w"]) -> None:
        """Start as the linear code of these patches; every process takes those of process 0."""
        if not isinstance(self.autoencoder, AutoencoderDC):
            raise TypeError(
                f"patch_linear_start is for AutoencoderDC, not {type(self.autoencoder)}"
            )
        start_patch_linear(self.autoencoder, images)
        for parameter in self.autoencoder.parameters():
            parameter.data.copy_(self.trainer.strategy.broadcast(parameter.data))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = draw_generator(self, self.seed, batch_idx)
        images, hit, modality = self._draw(batch, generator)
        encoded = self.autoencoder.encode(images)
        loss = images.new_zeros(())
        if hasattr(encoded, "latent_dist"):
            distribution = encoded.latent_dist
            latents = distribution.sample(generator)
            divergence = kl_loss(distribution.mean, distribution.logvar)
            self.log("train/loss/kl", divergence, batch_size=len(images))
            loss = loss + self.kl_weight * divergence
        else:
            latents = deterministic_latents(encoded)
        decoded = self.autoencoder.decode(latents).sample
        per_image = reconstruction_loss(decoded, images)
        per_image = per_image + self.gradient_weight * gradient_loss(decoded, images)
        angle = normal_angle_loss(
            decoded[modality == NORMAL], images[modality == NORMAL], hit[modality == NORMAL]
        )
        loss = loss + per_image.mean() + self.normal_weight * angle
        for index, name in enumerate(MODALITIES):
            chosen = per_image[modality == index]
            if len(chosen):
                self.log(f"train/loss/{name}", chosen.mean().detach(), batch_size=len(chosen))
        self.log("train/loss/normal_angle", angle.detach(), batch_size=len(images))
        self.log("train/loss/total", loss.detach(), batch_size=len(images), prog_bar=True)
        return loss

    def _draw(
        self, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, "n h w"], Int[Tensor, " n"]]:
        """Draw this step's images, their hit masks and modalities."""
        images: Tensor = batch["images"]
        num_samples, num_modalities, num_views = images.shape[:3]
        total = num_samples * num_modalities * num_views
        chosen = torch.randperm(total, device=images.device, generator=generator)[
            : self.images_per_step
        ]
        sample = chosen // (num_modalities * num_views)
        modality, view = chosen // num_views % num_modalities, chosen % num_views
        return images[sample, modality, view], batch["hit"][sample, view], modality

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, hit = batch["images"], batch["hit"]
        flat = images.flatten(0, 2)
        decoded = torch.cat(
            [
                self.autoencoder.decode(encode_images(self.autoencoder, chunk)).sample
                for chunk in flat.split(64)
            ]
        ).unflatten(0, images.shape[:3])
        rgb, normal, coord = (decoded[:, index] for index in range(len(MODALITIES)))
        cosine = nn.functional.cosine_similarity(normal, images[:, NORMAL], dim=2).clamp(-1.0, 1.0)
        angle = torch.rad2deg(torch.arccos(cosine))
        distance = (coord - images[:, MODALITIES.index("coord")]).norm(dim=2) / 2.0  # world units
        inside = _inside(hit)
        figures = {
            "val/rgb/psnr_db": peak_signal_to_noise(rgb, images[:, 0]),
            "val/normal/angle_deg": angle[hit].mean(),
            "val/coord/error": distance[hit].mean(),
            "val/normal/angle_inside_deg": angle[inside].mean(),
            "val/coord/error_inside": distance[inside].mean(),
        }
        self.log_dict(figures, batch_size=len(images), sync_dist=True)

    def export(self, directory: Path) -> None:
        """Write the autoencoder as diffusers does: config.json and safetensors."""
        self.autoencoder.save_pretrained(directory, safe_serialization=True)


def _inside(hit: Bool[Tensor, "b v h w"]) -> Bool[Tensor, "b v h w"]:
    """Return the hit pixels whose neighbourhood of `SILHOUETTE_PX` is hit as well."""
    side = 2 * SILHOUETTE_PX + 1
    background = nn.functional.max_pool2d((~hit).float(), side, stride=1, padding=SILHOUETTE_PX)
    return background == 0

"""Recipe of the image autoencoder: one network for rgb, normal and coord images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import AutoencoderDC, ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import MODALITIES, UserError
from modules.latents.codec import (
    decode_packed,
    deterministic_latents,
    encode_images,
    encode_packed,
)
from modules.latents.patch_linear import start_patch_linear
from modules.latents.spec import DECODER_PARTS
from modules.losses.image import (
    gradient_loss,
    kl_loss,
    normal_angle_loss,
    peak_signal_to_noise,
    position_losses,
    reconstruction_loss,
)
from modules.systems.image_draw import draw_images
from modules.systems.randomness import draw_generator
from modules.systems.schedule import optimizer_with_schedule

NORMAL, COORD = MODALITIES.index("normal"), MODALITIES.index("coord")
SILHOUETTE_PX = 2
"""Pixels this near to the background are left out of the figures `*_inside`."""


class AutoencoderSystem(lightning.LightningModule):
    """Train an image autoencoder of diffusers on single views of all three modalities.

    Or only its decoder: the encoder of a pretrained one stays as it is, bit for bit, and with it
    every latent and every denoiser that was trained on them.

    Args:
        network: builds or loads the autoencoder (`AutoencoderDC`, `AutoencoderKL`, ...).
        optimizer: makes the optimizer of given parameters.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        images_per_step: (modality, view) images drawn from a batch for one step.
        reductions: k of the scales 1/k at which training sees views, see `draw_images`.
        crop_px: side of the crops that training sees; None: whole views.
        patch_linear_start: set the first weights from the patches of the first batch
            (`AutoencoderDC` only).
        frozen_encoder: train the decoder alone, from the latents that inference sees: in float32,
            without sampling.
        modality_weights: of the error of rgb, normal and coord images and of their gradients.
        gradient_weight: of the error of image gradients.
        normal_weight: of the angle between true and predicted normals on hit pixels.
        position_weight: of the distance between true and predicted coords on hit pixels.
        depth_weight: of its part along the view's axis, which alone the lift takes.
        kl_weight: of the divergence from the unit normal; for autoencoders with a distribution.
        seed: of what training draws.
    """

    stage = "autoencoder"
    weights: Tensor

    def __init__(
        self,
        network: Callable[[], ModelMixin],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        images_per_step: int = 32,
        reductions: Sequence[int] = (1,),
        crop_px: int | None = None,
        patch_linear_start: bool = False,
        frozen_encoder: bool = False,
        modality_weights: Sequence[float] = (1.0, 1.0, 1.0),
        gradient_weight: float = 0.25,
        normal_weight: float = 0.1,
        position_weight: float = 0.0,
        depth_weight: float = 0.0,
        kl_weight: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_network, self.build_optimizer, self.build_scheduler = (
            network,
            optimizer,
            scheduler,
        )
        self.images_per_step, self.reductions, self.crop_px = images_per_step, reductions, crop_px
        self.patch_linear_start, self.frozen_encoder = patch_linear_start, frozen_encoder
        self.gradient_weight, self.normal_weight = gradient_weight, normal_weight
        self.position_weight, self.depth_weight = position_weight, depth_weight
        self.kl_weight, self.seed = kl_weight, seed
        self.register_buffer("weights", torch.tensor(modality_weights), persistent=False)
        self.autoencoder: Any = None

    def configure_model(self) -> None:
        if self.autoencoder is not None:
            return
        self.autoencoder = self.build_network()
        _check_channels(self.autoencoder)
        for name, parameter in self.autoencoder.named_parameters():
            trained = not self.frozen_encoder or name.startswith(DECODER_PARTS)
            parameter.requires_grad_(trained)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return optimizer_with_schedule(parameters, self.build_optimizer, self.build_scheduler)

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
        images, hit, modality, axis = draw_images(
            batch,
            generator,
            num_images=self.images_per_step,
            reductions=self.reductions,
            crop_px=self.crop_px,
        )
        latents, divergence = self._encode(images, generator)
        decoded = self.autoencoder.decode(latents).sample.float()
        _check_size(decoded, images)
        per_image = reconstruction_loss(decoded, images)
        per_image = per_image + self.gradient_weight * gradient_loss(decoded, images)
        is_normal, is_coord = modality == NORMAL, modality == COORD
        angle = normal_angle_loss(decoded[is_normal], images[is_normal], hit[is_normal])
        position, depth = position_losses(
            decoded[is_coord], images[is_coord], hit[is_coord], axis[is_coord]
        )
        loss = (
            (self.weights[modality] * per_image).mean()
            + self.normal_weight * angle
            + self.position_weight * position
            + self.depth_weight * depth
            + self.kl_weight * divergence
        )
        for index, name in enumerate(MODALITIES):
            chosen = per_image[modality == index]
            if len(chosen):
                self.log(f"train/loss/{name}", chosen.mean().detach(), batch_size=len(chosen))
        figures = {"normal_angle": angle, "position": position, "depth": depth, "kl": divergence}
        for name, figure in figures.items():
            self.log(f"train/loss/{name}", figure.detach(), batch_size=len(images))
        self.log("train/loss/total", loss.detach(), batch_size=len(images), prog_bar=True)
        return loss

    def _encode(
        self, images: Float[Tensor, "n 3 h w"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c hl wl"], Float[Tensor, ""]]:
        """Return latents and their divergence, 0 where the autoencoder has no distribution."""
        if self.frozen_encoder:
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                return encode_images(self.autoencoder, images), images.new_zeros(())
        encoded = self.autoencoder.encode(images)
        if not hasattr(encoded, "latent_dist"):
            return deterministic_latents(encoded), images.new_zeros(())
        distribution = encoded.latent_dist
        divergence = kl_loss(distribution.mean, distribution.logvar)
        return distribution.sample(generator), divergence

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, hit = batch["images"], batch["hit"]
        with torch.autocast(images.device.type, enabled=False):  # as inference has it
            decoded = decode_packed(self.autoencoder, encode_packed(self.autoencoder, images, 1), 1)
        rgb, normal, coord = (decoded[:, index] for index in range(len(MODALITIES)))
        cosine = nn.functional.cosine_similarity(normal, images[:, NORMAL], dim=2).clamp(-1.0, 1.0)
        angle = torch.rad2deg(torch.arccos(cosine))
        error = (coord - images[:, COORD]) / 2.0  # world units
        distance = error.norm(dim=2)
        axis = batch["camera_to_world"][:, :, :3, 2].to(error)
        depth = (error * axis[..., None, None]).sum(dim=2).abs()
        inside = _inside(hit)
        figures = {
            "val/rgb/psnr_db": peak_signal_to_noise(rgb, images[:, 0]),
            "val/normal/angle_deg": angle[hit].mean(),
            "val/coord/error": distance[hit].mean(),
            "val/normal/angle_inside_deg": angle[inside].mean(),
            "val/coord/error_inside": distance[inside].mean(),
            "val/coord/depth_error_inside": depth[inside].mean(),
        }
        self.log_dict(figures, batch_size=len(images), sync_dist=True)

    def export(self, directory: Path) -> None:
        """Write the autoencoder as diffusers does: config.json and safetensors."""
        self.autoencoder.save_pretrained(directory, safe_serialization=True)


def _check_channels(autoencoder: Any) -> None:
    """Raise UserError unless the autoencoder takes and gives images of three channels."""
    for name in ("in_channels", "out_channels"):
        channels = getattr(autoencoder.config, name, 3)
        if channels != 3:
            raise UserError(
                f"{type(autoencoder).__name__} has {name}={channels}; rgb, normal and coord images "
                "have 3: choose another autoencoder"
            )


def _check_size(decoded: Tensor, images: Tensor) -> None:
    if decoded.shape != images.shape:
        raise UserError(
            f"images of {images.shape[-1]} px come back as {decoded.shape[-1]} px: their side must "
            "be a multiple of the autoencoder's cells; change system.crop_px, system.reductions or "
            "resolution_px of the render"
        )


def _inside(hit: Bool[Tensor, "b v h w"]) -> Bool[Tensor, "b v h w"]:
    """Return the hit pixels whose neighbourhood of `SILHOUETTE_PX` is hit as well."""
    side = 2 * SILHOUETTE_PX + 1
    background = nn.functional.max_pool2d((~hit).float(), side, stride=1, padding=SILHOUETTE_PX)
    return background == 0

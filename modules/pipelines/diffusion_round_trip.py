"""Images of a known asset as a diffusion model would have made them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data_pipeline.contract import Camera, UserError
from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.corruption import subsample
from modules.losses.flow import RGB
from modules.pipelines.export import model_digest
from modules.pipelines.generation import TextTo25D
from modules.pipelines.sampling_options import Sampling

CONDITION_VIEW = 0


def check_strength(strength: float) -> None:
    """Raise UserError unless a noise level leaves something of the asset, and of the noise."""
    if not 0.0 < strength < 1.0:
        raise UserError(
            f"strength={strength} must lie between 0 and 1: it is the noise level from which the "
            "diffusion model makes the images anew; at 0 they stay, at 1 nothing of them is left"
        )


class DiffusionRoundTrip:
    """Encodes an asset's true images, noises the latents in part, denoises and decodes them.

    SDEdit (arXiv 2108.01073) of 2.5D images: they show about the asset, with the faults of the
    model. It is told the asset's caption and, where it takes reference images, its first view.

    Args:
        pipeline: folder with `autoencoder/` and `denoiser/`.
        device: of the networks.
        steps: of the solver from pure noise; a round trip takes its share of them.
        guidance: scale of classifier-free guidance; 1 is none.

    Attributes:
        name: 8 hex digits of the weights and of how they sample.

    Raises:
        UserError: the folder holds no diffusion model, or a value is out of its range.
    """

    def __init__(
        self,
        pipeline: Path,
        device: torch.device,
        steps: int = 20,
        guidance: float = 3.0,
    ) -> None:
        self.pipeline, self.sampling = pipeline, Sampling(steps=steps, guidance=guidance)
        self.generator = TextTo25D.from_pretrained(pipeline).to(device)
        weights = model_digest(pipeline, ("autoencoder", "denoiser"))
        self.name = hashlib.sha256(f"{weights} {self.sampling}".encode()).hexdigest()[:8]

    @torch.inference_mode()
    def __call__(
        self, sample: Mapping[str, Any], strength: float
    ) -> tuple[Float[Tensor, "m v 3 h w"], tuple[Camera, ...]]:
        """Return images in [-1, 1], on the CPU, and their cameras; a function of its arguments.

        Their foreground is not known: the hit rule finds it.

        Args:
            sample: as `decode_sample` gives it. Of orthographic views twice as large as the
                model's every other pixel is taken.
            strength: noise level of the latents, the flow's t, in (0, 1).

        Raises:
            UserError: the strength is out of its range, or the views are not the model's.
        """
        check_strength(strength)
        images, cameras = self._views(sample)
        generator = self.generator
        images = images.to(generator.device)
        references = [[images[RGB, CONDITION_VIEW]]] if generator.num_references else [[]]
        seed = int(hashlib.sha256(f"{sample['uid']} {strength}".encode()).hexdigest()[:8], 16)
        latents = generator.codec.encode(images[None])
        noised = (1.0 - strength) * latents + strength * generator.starting_noise([seed])
        denoised = generator.sample(
            generator.conditions([sample["caption"]], references),
            generator.conditions([""], [[]]),
            noised,
            self.sampling,
            start=strength,
        )
        return generator.codec.decode(denoised)[0].cpu(), cameras

    def _views(
        self, sample: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "m v 3 h w"], tuple[Camera, ...]]:
        """Return a sample's images at the size that the model makes, and their cameras."""
        images: Tensor = sample["images"]
        cameras = cameras_from_arrays(
            *(sample[key].numpy() for key in ("camera_to_world", "ortho_scale", "fov_deg"))
        )
        codec, side = self.generator.codec, images.shape[-1]
        is_parallel = all(camera.projection == "orthographic" for camera in cameras)
        if side == 2 * codec.image_px and is_parallel:
            pair = images.numpy(), sample["hit"].numpy()
            thinned, _, cameras = subsample(*pair, cameras, (0, 0))
            images = torch.from_numpy(thinned).contiguous()
        if images.shape[-1] != codec.image_px or len(cameras) != codec.spec.num_views:
            raise UserError(
                f"{self.pipeline} makes {codec.spec.num_views} views of {codec.image_px} px, "
                f"{sample['uid']} has {len(cameras)} of {side} px: render the assets with the "
                "layout and resolution_px that it was trained on"
            )
        return images, cameras

"""Text, or text and geometry, to 2.5D images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from data_pipeline.contract import MODALITIES, UserError
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import LatentCodec
from modules.latents.spec import LatentSpec
from modules.losses.flow import Prediction, to_velocity
from modules.networks.denoiser import JointDenoiser
from modules.networks.denoiser_files import load_denoiser
from modules.networks.pipeline_folder import stage_folder
from modules.networks.text_encoder import TextEncoder, Vocabulary

GEOMETRY = (MODALITIES.index("normal"), MODALITIES.index("coord"))

Progress = Callable[[int, int], None]
"""Called after every step with the number of steps done and of all steps."""


class TextTo25D:
    """Generates rgb, normal and coord images of all views from captions.

    Args:
        codec: between images and latents.
        denoiser: trained on latents of the codec's spec.
        text_encoder: trained with the denoiser.
        vocabulary: of the text encoder.
        prediction: what the denoiser's output stands for.
        shift: shift of the sampler's timesteps.
    """

    def __init__(
        self,
        codec: LatentCodec,
        denoiser: JointDenoiser,
        text_encoder: TextEncoder,
        vocabulary: Vocabulary,
        *,
        prediction: Prediction = "clean",
        shift: float = 1.0,
    ) -> None:
        self.codec, self.denoiser = codec, denoiser
        self.text_encoder, self.vocabulary = text_encoder, vocabulary
        self.prediction: Prediction = prediction
        self.shift = shift

    @classmethod
    def from_pretrained(cls, directory: Path) -> "TextTo25D":
        """Load `autoencoder/` and `denoiser/` of a pipeline folder.

        Raises:
            UserError: one is missing or damaged, or the denoiser was trained on the latents of
                another autoencoder.
        """
        autoencoder, exported = (stage_folder(directory, s) for s in ("autoencoder", "denoiser"))
        denoiser, text_encoder, vocabulary, sampling = load_denoiser(exported)
        codec = LatentCodec(load_autoencoder(autoencoder), LatentSpec.load(exported))
        return cls(codec, denoiser, text_encoder, vocabulary, **sampling)

    def to(self, device: torch.device | str) -> "TextTo25D":
        """Move all networks."""
        for network in (self.codec, self.denoiser, self.text_encoder):
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.codec.mean.device

    @torch.inference_mode()
    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        steps: int = 20,
        guidance: float = 3.0,
        progress: Progress | None = None,
        geometry: Float[Tensor, "b m v 3 h w"] | None = None,
    ) -> Float[Tensor, "b m v 3 h w"]:
        """Generate one set of images per prompt, in [-1, 1].

        Args:
            prompts: captions; the empty text is the null caption.
            seeds: of the starting noise, one per prompt. An item's noise depends on its own seed
                alone, not on what else is in the batch.
            steps: sampling steps.
            guidance: scale of classifier-free guidance; 1 is none.
            progress: called after every step.
            geometry: images whose normal and coord are held clean, so that only rgb is generated;
                their rgb is not read.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        clean = None if geometry is None else self.codec.encode(geometry)
        held = () if geometry is None else GEOMETRY
        latents = self.sample(
            self.embed(prompts),
            self.embed([""] * len(prompts)),
            self.starting_noise(seeds),
            steps=steps,
            guidance=guidance,
            clean=clean,
            held=held,
            progress=progress,
        )
        images = self.codec.decode(latents)
        if geometry is not None:
            images[:, list(held)] = geometry[:, list(held)]
        return images

    def embed(self, prompts: list[str]) -> Float[Tensor, "b k e"]:
        """Return the text embeddings of captions; words that training never saw are `<unk>`."""
        words = self.vocabulary.encode(prompts, self.text_encoder.length)
        return self.text_encoder(words.to(self.device))

    def starting_noise(self, seeds: list[int]) -> Float[Tensor, "b m v c h w"]:
        """Return noise that is a function of each item's seed alone, drawn on the CPU."""
        spec = self.codec.spec
        shape = (len(MODALITIES), spec.num_views, spec.channels, spec.grid, spec.grid)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(self.device)

    def sample(
        self,
        text: Float[Tensor, "b k e"],
        null_text: Float[Tensor, "b k e"],
        noise: Float[Tensor, "b m v c h w"],
        *,
        steps: int,
        guidance: float,
        clean: Float[Tensor, "b m v c h w"] | None = None,
        held: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Float[Tensor, "b m v c h w"]:
        """Integrate the flow from noise to latents.

        Args:
            text: embeddings of the captions.
            null_text: embeddings of the null caption.
            noise: to start from.
            steps: of Euler's method.
            guidance: scale of classifier-free guidance; 1 skips the second half of the batch.
            clean: latents of the modalities in `held`.
            held: indices of modalities that stay clean, at timestep 0, from start to end.
            progress: called after every step.
        """
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / steps, steps).tolist())
        is_noisy = torch.ones(len(MODALITIES), device=noise.device)
        is_noisy[list(held)] = 0.0

        def hold(latents: Tensor) -> Tensor:
            if clean is None:
                return latents
            return torch.where(is_noisy[:, None, None, None, None] > 0, latents, clean)

        latents = hold(noise)
        guided = guidance != 1.0
        for step, timestep in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[step].item()
            timesteps = (sigma * is_noisy).expand(len(noise), -1)
            if guided:  # one batch, so both halves see the same kernels; order: text, null
                velocity, null_velocity = self._velocity(
                    torch.cat([latents, latents]),
                    torch.cat([timesteps, timesteps]),
                    torch.cat([text, null_text]),
                ).chunk(2)
                velocity = null_velocity + guidance * (velocity - null_velocity)
            else:
                velocity = self._velocity(latents, timesteps, text)
            latents = hold(scheduler.step(velocity, timestep, latents, return_dict=False)[0])
            if progress is not None:
                progress(step + 1, steps)
        return latents

    def _velocity(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
    ) -> Float[Tensor, "b m v c h w"]:
        output = self.denoiser(latents, timesteps, text)
        # Held modalities have t = 0; their velocity is never used. Noisy ones have t >= 1 / steps.
        return to_velocity(output, latents, timesteps, self.prediction, min_t=1e-4)

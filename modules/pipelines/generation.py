"""Text, reference images and geometry, in any combination, to 2.5D images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_pipeline.contract import MODALITIES, UserError
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import LatentCodec, encode_packed
from modules.latents.spec import LatentSpec
from modules.losses.flow import RGB, Prediction, to_velocity
from modules.networks.conditioner import Conditions, join_conditions
from modules.networks.denoiser import JointDenoiser
from modules.networks.denoiser_files import load_denoiser
from modules.networks.pipeline_folder import stage_folder
from modules.networks.text_backbones import PretrainedText
from modules.networks.text_encoder import TextEncoder
from modules.networks.vision_encoder import VisionEncoder
from modules.pipelines.sampling import Progress, integrate, rescale
from modules.pipelines.sampling_options import Sampling

GEOMETRY = [MODALITIES.index("normal"), MODALITIES.index("coord")]

MIN_T = 1e-4
"""Bound of divisions by t. Held modalities have t = 0 and a velocity that is not used; noisy ones
have t >= 1 / steps."""


class TextTo25D:
    """Generates rgb, normal and coord images of all views from captions.

    Args:
        codec: between images and latents.
        denoiser: trained on latents of the codec's spec.
        text_encoder: whose embeddings the denoiser was trained with.
        prediction: what the denoiser's output stands for.
        shift: shift of the sampler's timesteps; None is the backbone's own.
        num_references: slots for reference images that the denoiser was trained with.
        textures: whether training held geometry clean while rgb was noisy, so that given geometry
            can be textured.
        vision_encoder: whose tokens of the references the denoiser was trained with, if any.
    """

    def __init__(
        self,
        codec: LatentCodec,
        denoiser: JointDenoiser,
        text_encoder: TextEncoder | PretrainedText,
        *,
        prediction: Prediction = "clean",
        shift: float | None = 1.0,
        num_references: int = 0,
        textures: bool = True,  # exports of before do not say
        vision_encoder: VisionEncoder | None = None,
    ) -> None:
        self.codec, self.denoiser = codec, denoiser
        self.text_encoder = text_encoder
        self.prediction: Prediction = prediction
        self.shift, self.num_references, self.textures = shift, num_references, textures
        self.vision_encoder = vision_encoder

    @classmethod
    def from_pretrained(cls, directory: Path) -> "TextTo25D":
        """Load `autoencoder/` and `denoiser/` of a pipeline folder.

        Raises:
            UserError: one is missing or damaged, or the denoiser was trained on the latents of
                another autoencoder.
        """
        autoencoder, exported = (stage_folder(directory, s) for s in ("autoencoder", "denoiser"))
        denoiser, text_encoder, vision_encoder, sampling = load_denoiser(exported)
        codec = LatentCodec(load_autoencoder(autoencoder), LatentSpec.load(exported))
        return cls(codec, denoiser, text_encoder, vision_encoder=vision_encoder, **sampling)

    def to(self, device: torch.device | str) -> "TextTo25D":
        """Move all networks."""
        for network in (self.codec, self.denoiser, self.text_encoder, self.vision_encoder):
            if network is not None:
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
        geometry: Float[Tensor, "b m v 3 h w"]
        | Sequence[Float[Tensor, "m v 3 h w"] | None]
        | None = None,
        *,
        references: Sequence[Sequence[Float[Tensor, "3 height width"]]] | None = None,
        solver: str = "euler",
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
    ) -> Float[Tensor, "b m v 3 h w"]:
        """Generate one set of images per prompt, in [-1, 1].

        Args:
            prompts: captions; the empty text is the null caption.
            seeds: of the starting noise, one per prompt. An item's noise depends on its own seed
                alone, not on what else is in the batch.
            steps: sampling steps.
            guidance: scale of classifier-free guidance; 1 is none.
            progress: called after every pass of the denoiser.
            geometry: for every prompt the images whose normal and coord are held clean, so that
                only rgb is generated, or None; their rgb is not read.
            references: for every prompt the images, in [-1, 1] and of the views' size, of what is
                to be made; a prompt may have none.
            solver: see `Sampling`, as the two that follow.
            guidance_interval: where guidance acts.
            guidance_rescale: against saturated colours.

        Raises:
            UserError: a number of things does not fit another, or a value is out of its range.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        sampling = Sampling(
            steps=steps,
            solver=solver,
            guidance=guidance,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
        )
        given, held = self._held(geometry, len(prompts))
        noise, clean = self.starting_noise(seeds), None
        rows = held.any(dim=1)
        if len(given):
            clean = torch.zeros_like(noise)
            clean[rows] = self.codec.encode(given)
        nothing: list[list[Tensor]] = [[] for _ in prompts]
        latents = self.sample(
            self.conditions(prompts, nothing if references is None else references),
            self.conditions([""] * len(prompts), nothing),
            noise,
            sampling,
            clean=clean,
            held=held,
            progress=progress,
        )
        images = self.codec.decode(latents)
        if len(given):
            images[held] = given[:, GEOMETRY].flatten(0, 1)
        return images

    def _held(
        self, geometry: Sequence[Tensor | None] | Tensor | None, batch_size: int
    ) -> tuple[Float[Tensor, "given m v 3 h w"] | Float[Tensor, "0"], Bool[Tensor, "b m"]]:
        """Return the given geometry, and which modalities of which prompts it holds.

        Raises:
            UserError: there are not as many as prompts, one is of another shape, or the denoiser
                never learned to texture.
        """
        rows: list[Tensor | None] = [None] * batch_size if geometry is None else list(geometry)
        given = [row for row in rows if row is not None]
        side = self.codec.image_px if given else 0
        shape = (len(MODALITIES), self.codec.spec.num_views, 3, side, side)
        if len(rows) != batch_size:
            raise UserError(f"{batch_size} prompts need as many geometries, not {len(rows)}")
        if given and not self.textures:
            raise UserError(
                "this model never learned to texture given geometry: ask without a mesh, or train "
                "one with system.mix.texture above 0 (the shares of system.mix sum to 1)"
            )
        for row in given:
            if row.shape != shape:
                raise UserError(
                    f"geometry of shape {tuple(row.shape)} must be {shape}: render it with the "
                    "layout and resolution that this model was trained on"
                )
        held = torch.zeros(batch_size, len(MODALITIES), dtype=torch.bool, device=self.device)
        for i, row in enumerate(rows):
            held[i, GEOMETRY] = row is not None
        return torch.stack(given).to(self.device) if given else torch.empty(0), held

    def conditions(
        self, prompts: list[str], references: Sequence[Sequence[Float[Tensor, "3 height width"]]]
    ) -> Conditions:
        """Return what the denoiser is told; words that training never saw are `<unk>`.

        Raises:
            UserError: there are more references than the denoiser was trained with, or not as many
                lists of them as prompts.
        """
        if len(references) != len(prompts):
            raise UserError(f"{len(prompts)} prompts need as many lists of reference images")
        if (most := max(map(len, references))) > self.num_references:
            raise UserError(_too_many(most, self.num_references))
        text, pooled = self.text_encoder.embed(prompts)
        if self.num_references == 0:
            return Conditions(text=text, pooled=pooled)
        spec, lead = self.codec.spec, (len(prompts), self.num_references)
        latents = torch.zeros(*lead, spec.channels, spec.grid, spec.grid, device=self.device)
        encoder, vision = self.vision_encoder, None
        if encoder is not None:
            vision = torch.zeros(*lead, encoder.num_tokens, encoder.width, device=self.device)
        for row, images in enumerate(references):
            for slot, image in enumerate(images):
                latents[row, slot] = self._encode_reference(image.to(self.device))
                if encoder is not None and vision is not None:
                    vision[row, slot] = encoder.embed(image[None].to(self.device))[0]
        vision = None if vision is None else vision.flatten(1, 2)
        return Conditions(text=text, pooled=pooled, references=latents, vision=vision)

    def _encode_reference(self, image: Float[Tensor, "3 height width"]) -> Float[Tensor, "c h w"]:
        """Return the latents of an image as if it were rgb of a view."""
        spec = self.codec.spec
        packed = encode_packed(self.codec.autoencoder, image[None], spec.packing)
        if packed.shape[-2:] != (spec.grid, spec.grid):
            raise UserError(
                f"a reference image of {image.shape[-1]} x {image.shape[-2]} pixels: "
                "resize it to the size of the views"
            )
        return ((packed - self.codec.mean[RGB]) / self.codec.std[RGB])[0]

    def starting_noise(self, seeds: list[int]) -> Float[Tensor, "b m v c h w"]:
        """Return noise that is a function of each item's seed alone, drawn on the CPU."""
        spec = self.codec.spec
        shape = (len(MODALITIES), spec.num_views, spec.channels, spec.grid, spec.grid)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(self.device)

    def sample(
        self,
        conditions: Conditions,
        null: Conditions,
        noise: Float[Tensor, "b m v c h w"],
        sampling: Sampling,
        *,
        start: float = 1.0,
        clean: Float[Tensor, "b m v c h w"] | None = None,
        held: Bool[Tensor, "b m"] | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b m v c h w"]:
        """Integrate the flow from noise to latents; see `integrate`.

        Args:
            conditions: what is asked for.
            null: what guidance leads away from.
            noise: to start from.
            sampling: how.
            start: noise level of `noise`.
            clean: latents of what is held.
            held: modalities of samples that stay clean.
            progress: called after every pass.
        """
        both = join_conditions(conditions, null)

        def velocity(latents: Tensor, timesteps: Tensor, guided: bool) -> Tensor:
            if not guided:
                return self._velocity(latents, timesteps, conditions)
            # One batch, so that both halves see the same kernels; the conditioned half comes first.
            plain, unconditioned = self._velocity(
                latents.repeat(2, *[1] * 5), timesteps.repeat(2, 1), both
            ).chunk(2)
            change = unconditioned + sampling.guidance * (plain - unconditioned)
            if sampling.guidance_rescale == 0.0:
                return change
            t = timesteps.reshape(*timesteps.shape, 1, 1, 1, 1)
            predicted = rescale(
                latents - t * change, latents - t * plain, sampling.guidance_rescale
            )
            return to_velocity(predicted, latents, timesteps, "clean", MIN_T)

        return integrate(
            velocity,
            noise,
            sampling,
            shift=self._shift(sampling.steps),
            start=start,
            clean=clean,
            held=held,
            progress=progress,
        )

    def _shift(self, steps: int) -> float:
        if self.shift is not None:
            return self.shift
        return self.denoiser.backbone.sampling_shift(self.codec.spec.grid**2, steps)

    def _velocity(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        conditions: Conditions,
    ) -> Float[Tensor, "b m v c h w"]:
        output = self.denoiser(latents, timesteps, conditions.text, **conditions.options)
        return to_velocity(output, latents, timesteps, self.prediction, MIN_T)


def _too_many(given: int, trained: int) -> str:
    if trained == 0:
        return (
            "this model was trained without reference images and cannot follow any: ask by text "
            "alone, or train one with system.image_share=0.9"
        )
    return (
        f"{given} reference images for one prompt: this model was trained with up to {trained}: "
        f"give no more, or train one with system.num_references={given}"
    )

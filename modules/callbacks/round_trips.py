"""Round trips of the training images through models, made once before training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from data_pipeline.contract import UserError
from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.corruption import subsample
from modules.geometry.made_images import save_made_images
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.latents.spec import fingerprint


class RoundTrips(lightning.Callback):
    """Writes, before training begins, every asset's images as models give them back.

    Autoencoders encode and decode them, at full size and, of orthographic views, at half of it.
    Diffusion models also noise the latents in part and denoise them in between, at the size that
    they make. All go to files of `made_images`, each named by the asset and the model's weights.
    What is there already stays.

    Args:
        autoencoders: folders, files or hub ids.
        folder: that takes the files.
        count: of so many assets at most; None: all.
        pipelines: pipeline folders with a diffusion model.
        strengths: noise levels between 0 and 1; each gives every asset one file of each pipeline.
        diffusion: a pipeline folder and a device to what makes images and cameras of a sample and
            a strength (`DiffusionRoundTrip`); needed for `pipelines` only.

    Raises:
        UserError: there are pipelines, but no strengths.
    """

    def __init__(
        self,
        autoencoders: Sequence[str],
        folder: str | Path,
        count: int | None = None,
        pipelines: Sequence[str] = (),
        strengths: Sequence[float] = (),
        diffusion: Callable[[Path, torch.device], Any] | None = None,
    ) -> None:
        if pipelines and (diffusion is None or not strengths):
            raise UserError(
                "callbacks.round_trips.pipelines need strengths, such as strengths=[0.2,0.4,0.6]"
            )
        self.autoencoders, self.folder, self.count = list(autoencoders), Path(folder), count
        self.pipelines = [Path(pipeline) for pipeline in pipelines]
        self.strengths, self.diffusion = list(strengths), diffusion

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        if stage == "fit":
            data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            device = trainer.strategy.root_device
            self.write(data.dataset, device, trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier("round trips")

    @torch.no_grad()
    def write(self, dataset: Any, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        """Write what is missing.

        Args:
            dataset: `load(i)` gives its samples (SampleDataset).
            device: that the models are on.
            rank: of the processes that share the work.
            num_ranks: how many they are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        indices = range(rank, min(len(dataset), self.count or len(dataset)), num_ranks)
        for source in self.autoencoders:
            autoencoder: Any = load_autoencoder(source)
            weights = fingerprint(autoencoder)[:8]
            autoencoder.to(device)
            for i in indices:
                sample = dataset.load(i)
                name = f"{sample['uid']}.round_trip_{weights}"
                if not (self.folder / f"{name}.npz").is_file():
                    self._write(sample, autoencoder, name, device)
        for pipeline in self.pipelines:
            assert self.diffusion is not None
            trip = self.diffusion(pipeline, device)
            for i in indices:
                sample = dataset.load(i)
                for strength in self.strengths:
                    file = self.folder / f"{sample['uid']}.diffused_{trip.name}_{strength:g}.npz"
                    if not file.is_file():
                        images, seen_by = trip(sample, strength)
                        save_made_images(file, images.numpy(), seen_by)

    def _write(
        self, sample: dict[str, Any], autoencoder: Any, name: str, device: torch.device
    ) -> None:
        cameras = cameras_from_arrays(
            *(sample[key].numpy() for key in ("camera_to_world", "ortho_scale", "fov_deg"))
        )
        full = sample["images"].numpy(), sample["hit"].numpy(), cameras
        sizes = {"": full}
        if all(camera.projection == "orthographic" for camera in cameras):
            sizes = {"_half": subsample(*full, (0, 0)), "": full}
        for suffix, (images, _, seen_by) in sizes.items():
            exact = torch.from_numpy(np.ascontiguousarray(images)).to(device)
            decoded = decode_packed(autoencoder, encode_packed(autoencoder, exact, 1), 1)
            save_made_images(self.folder / f"{name}{suffix}.npz", decoded.cpu().numpy(), seen_by)

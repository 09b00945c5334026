"""Round trips of the training images through autoencoders, made once before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.corruption import subsample
from modules.geometry.made_images import save_made_images
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.latents.spec import fingerprint


class RoundTrips(lightning.Callback):
    """Writes, before training begins, every asset's images encoded and decoded by autoencoders.

    As files of `made_images`, at full size and, of orthographic views, at half of it, each named
    by the asset and the autoencoder's weights. What is there already stays.

    Args:
        autoencoders: folders, files or hub ids.
        folder: that takes the files.
        count: of so many assets at most; None: all.
    """

    def __init__(
        self, autoencoders: Sequence[str], folder: str | Path, count: int | None = None
    ) -> None:
        self.autoencoders, self.folder, self.count = list(autoencoders), Path(folder), count

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        if trainer.is_global_zero and stage == "fit":
            data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            self.write(data.dataset, trainer.strategy.root_device)
        trainer.strategy.barrier("round trips")

    @torch.no_grad()
    def write(self, dataset: Any, device: torch.device) -> None:
        """Write what is missing.

        Args:
            dataset: `load(i)` gives its samples (SampleDataset).
            device: that encodes and decodes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for source in self.autoencoders:
            autoencoder: Any = load_autoencoder(source)
            weights = fingerprint(autoencoder)[:8]
            autoencoder.to(device)
            for i in range(min(len(dataset), self.count or len(dataset))):
                sample = dataset.load(i)
                name = f"{sample['uid']}.round_trip_{weights}"
                if not (self.folder / f"{name}.npz").is_file():
                    self._write(sample, autoencoder, name, device)

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

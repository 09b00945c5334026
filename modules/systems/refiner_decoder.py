"""Recipe of the refiner-decoder: residuals on the classical field, learned from spoilt images."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.corruption import Corruption, corrupt
from modules.geometry.evidence import VOLUME_HALF_SIDE, evidence_volumes
from modules.geometry.lift import lift
from modules.losses.field import colour_loss, distance_loss, eikonal_loss
from modules.networks.refiner import Refiner
from modules.networks.refiner_files import save_refiner
from modules.systems.randomness import draw_generator
from modules.systems.schedule import optimizer_with_schedule


class RefinerDecoderSystem(lightning.LightningModule):
    """Train the residuals on signed distances and surface colours of spoilt and exact images.

    The classical field is computed on the CPU for every batch: its images are spoilt anew.

    Args:
        network: builds the refiner.
        optimizer: makes the optimizer of given parameters.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        corruption: how images are spoilt.
        near_weight: of distances near the surface; those far away are mostly right already.
        colour_weight: of the colour error.
        eikonal_weight: of the deviation of the gradient's length from 1.
        eikonal_points: points a sample at which the gradient is taken.
        eikonal_step: of its finite differences, world units.
        seed: of what training draws.
    """

    stage = "refiner_decoder"

    def __init__(
        self,
        network: Callable[[], Refiner],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        corruption: Corruption,
        near_weight: float = 5.0,
        colour_weight: float = 1.0,
        eikonal_weight: float = 0.002,
        eikonal_points: int = 128,
        eikonal_step: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_network, self.build_optimizer, self.build_scheduler = (
            network,
            optimizer,
            scheduler,
        )
        self.corruption = corruption
        self.near_weight = near_weight
        self.colour_weight, self.eikonal_weight = colour_weight, eikonal_weight
        self.eikonal_points, self.eikonal_step = eikonal_points, eikonal_step
        self.seed = seed
        self.refiner: Any = None

    def configure_model(self) -> None:
        if self.refiner is None:
            self.refiner = self.build_network()

    def configure_optimizers(self) -> Any:
        return optimizer_with_schedule(
            self.refiner.parameters(), self.build_optimizer, self.build_scheduler
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = draw_generator(self, self.seed, batch_idx)
        entropy = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        inputs = self.classical_inputs(batch, np.random.default_rng(int(entropy)))
        figures = self.figures(batch, inputs)
        loss = (
            figures["distance"]
            + self.colour_weight * figures["colour"]
            + self.eikonal_weight * figures["eikonal"]
        )
        size = len(batch["uid"])
        for name, value in figures.items():
            self.log(f"train/loss/{name}", value.detach(), batch_size=size)
        self.log("train/loss/total", loss.detach(), batch_size=size, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        inputs = self.classical_inputs(batch, np.random.default_rng([self.seed, 1, batch_idx]))
        figures = self.figures(batch, inputs)
        self.log_dict(
            {f"val/loss/{name}": value for name, value in figures.items()},
            batch_size=len(batch["uid"]),
            sync_dist=True,
        )

    def export(self, directory: Path) -> None:
        """Write config.json and model.safetensors."""
        save_refiner(directory, self.refiner)

    def figures(self, batch: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses, and beside them those of the classical field alone.

        Args:
            batch: a batch of samples.
            inputs: its `classical_inputs`.
        """
        volumes = self.refiner.encode(inputs["geometry"], inputs["colour"])
        distance = inputs["distance"] + self.refiner.distance_residual(
            volumes, inputs["points"], inputs["features"]
        )
        base, albedo = inputs["base"], batch["surface_albedo"]
        surface, normals = batch["surface_position"], batch["surface_normal"]
        colour = base + self.refiner.colour_residual(
            volumes, surface, inputs["surface_features"], base, normals
        )
        target, confidence = batch["sdf_distance"], batch["sdf_confidence"]
        count = target.shape[1]
        truncation = self.refiner.truncation
        centre = distance[:, : self.eikonal_points]
        shifted = distance[:, count:].unflatten(1, (-1, 3))
        # Truncated fields are flat far away; only where the truth is not do gradients count.
        steep = (target[:, : self.eikonal_points].abs() < 0.6 * truncation).float()
        figures = {
            "colour": colour_loss(colour, albedo),
            "eikonal": eikonal_loss(centre, shifted, self.eikonal_step, steep),
            "classical_colour": colour_loss(base, albedo),
        }
        for prefix, predicted in (("", distance), ("classical_", inputs["distance"])):
            for name, near in (("distance", self.near_weight), ("near_distance", math.inf)):
                figures[prefix + name] = distance_loss(
                    predicted[:, :count], target, confidence, truncation, near
                )
        # Losses rise and fall with how spoilt a batch is; this share of them falls alone.
        classical = figures["classical_near_distance"].clamp_min(1e-6)
        return figures | {"classical_ratio": figures["near_distance"] / classical}

    def classical_inputs(
        self, batch: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return, for a batch, what the classical field of its (spoilt) images gives.

        `points` are the batch's distance points and, after them, three neighbours of each of the
        first `eikonal_points`.
        """
        rows = [
            self._sample_inputs({key: _array(values[i]) for key, values in batch.items()}, rng)
            for i in range(len(batch["uid"]))
        ]
        return {
            key: torch.from_numpy(np.stack([row[key] for row in rows]).astype(np.float32)).to(
                self.device
            )
            for key in rows[0]
        }

    def _sample_inputs(
        self, sample: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Return `classical_inputs` of one sample."""
        cameras = cameras_from_arrays(
            sample["camera_to_world"], sample["ortho_scale"], sample["fov_deg"]
        )
        images, hit, cameras = corrupt(
            sample["images"], sample["hit"], cameras, self.corruption, rng
        )
        settings = ClassicalSettings(truncation=self.refiner.truncation)
        field = ClassicalField(lift(images, cameras, hit), settings)
        centres = sample["sdf_position"].astype(np.float64)
        neighbours = centres[: self.eikonal_points, None] + self.eikonal_step * np.eye(3)
        points = np.concatenate([centres, neighbours.reshape(-1, 3)])
        points = np.clip(points, -VOLUME_HALF_SIDE, VOLUME_HALF_SIDE)
        surface = sample["surface_position"].astype(np.float64)
        sampled = field.sample(points)
        geometry, colour = evidence_volumes(field, self.refiner.side)
        return {
            "points": points,
            "distance": sampled.distance,
            "features": field.features(points, sampled),
            "surface_features": field.features(surface, field.sample(surface)),
            "base": field.colour(surface, sample["surface_normal"].astype(np.float64)),
            "geometry": geometry,
            "colour": colour,
        }


def _array(value: Any) -> Any:
    """Return tensors as NumPy arrays on the CPU, other values as they are."""
    return value.cpu().numpy() if isinstance(value, Tensor) else value

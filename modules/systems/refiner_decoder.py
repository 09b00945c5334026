"""Recipe of the refiner-decoder: residuals on the classical field, learned from spoilt images."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import UserError
from modules.geometry.cameras import cameras_from_arrays
from modules.geometry.grid_surface import grid_surface
from modules.geometry.isosurface import GRID_HALF_SIDE
from modules.geometry.rasterizer import rasterizer_or_embree
from modules.losses.field import (
    colour_loss,
    distance_loss,
    eikonal_loss,
    near_weights,
    point_losses,
    wrong_side,
)
from modules.losses.rendering import RENDERING_LOSSES, rendering_losses, vertex_normals
from modules.networks.pipeline_folder import stage_folder
from modules.networks.refiner import FeatureVolumes, Refiner
from modules.networks.refiner_files import continue_refiner, save_refiner
from modules.systems.randomness import draw_generator
from modules.systems.replay import Replay
from modules.systems.schedule import optimizer_with_schedule

LEAST_ERROR = 0.1
"""Of points as they are, in units of the truncation: samples with less are exact enough."""


class RefinerDecoderSystem(lightning.LightningModule):
    """Train the residuals on signed distances, surface colours and images of the surface.

    Batches come from a dataset that `ClassicalInputs` prepares (`conf/data/refiner.yaml`).

    Args:
        network: builds the refiner.
        optimizer: makes the optimizer of given parameters.
        scheduler: makes the learning-rate scheduler of an optimizer, stepped every step; or None.
        point_weight: of the distance of corrected points from what is truly seen, as a share of
            what it was.
        normal_weight: of the angle of their normals.
        near_weight: of distances near the surface; those far away are mostly right already.
        colour_weight: of the colour error.
        eikonal_weight: of the deviation of the gradient's length from 1.
        eikonal_step: of its finite differences, world units, as the dataset took them.
        rendering_weights: of the errors of rendered images, by name (`rendering_losses`).
        rendering_share: share of the samples that bring a grid, as the dataset draws them.
        rendering_after: optimizer steps before the rendering losses count: until then a surface is
            the classical one, as the residual has hardly begun.
        replay_count: samples of earlier batches that are added to every batch.
        replay_capacity: samples that are kept for that.
        start: pipeline folder with a refiner of the same shape, whose training goes on.
        seed: of what training draws.

    Raises:
        UserError: `rendering_weights` has a name that no rendering loss has.
        UserError: `start` holds no refiner of this shape; when the model is configured.
    """

    stage = "refiner_decoder"

    def __init__(
        self,
        network: Callable[[], Refiner],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        *,
        point_weight: float = 1.0,
        normal_weight: float = 0.5,
        near_weight: float = 5.0,
        colour_weight: float = 1.0,
        eikonal_weight: float = 0.002,
        eikonal_step: float = 0.01,
        rendering_weights: Mapping[str, float] | None = None,
        rendering_share: float = 1.0,
        rendering_after: int = 0,
        replay_count: int = 0,
        replay_capacity: int = 1024,
        start: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        unknown = set(rendering_weights or {}) - set(RENDERING_LOSSES)
        if unknown:
            raise UserError(
                f"system.rendering_weights has {', '.join(sorted(unknown))}: the rendering losses "
                f"are {', '.join(RENDERING_LOSSES)}"
            )
        self.build_network, self.build_optimizer, self.build_scheduler = (
            network,
            optimizer,
            scheduler,
        )
        self.point_weight, self.normal_weight = point_weight, normal_weight
        self.near_weight = near_weight
        self.colour_weight, self.eikonal_weight = colour_weight, eikonal_weight
        self.eikonal_step = eikonal_step
        self.rendering_weights = dict(rendering_weights or {})
        self.rendering_share, self.rendering_after = rendering_share, rendering_after
        self.start, self.seed = start, seed
        self.replay = Replay(replay_count, replay_capacity) if replay_count else None
        self.refiner: Any = None
        self._rendered: list[tuple[dict[str, Tensor], int]] = []
        """Rendering losses of the validation batches so far, and of how many samples they are."""

    def configure_model(self) -> None:
        if self.refiner is None:
            self.refiner = self.build_network()
            resumed = self._trainer is not None and self._trainer.ckpt_path is not None
            if self.start is not None and not resumed:
                continue_refiner(self.refiner, stage_folder(Path(self.start), self.stage))

    def configure_optimizers(self) -> Any:
        return optimizer_with_schedule(
            self.refiner.parameters(), self.build_optimizer, self.build_scheduler
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        joined = batch
        if self.replay is not None:
            joined = self.replay(batch, draw_generator(self, self.seed, batch_idx))
        volumes = self.refiner.encode(joined["geometry"], joined["colour"])
        figures = self.figures(joined, volumes)
        rendered, count = {}, 0
        if self.global_step >= self.rendering_after:
            rendered, count = self.rendering_figures(batch, volumes)  # new samples come first
        loss = (
            self.point_weight * figures["relative_point"]
            + self.normal_weight * figures["normal"]
            + figures["distance"]
            + self.colour_weight * figures["colour"]
            + self.eikonal_weight * figures["eikonal"]
        )
        size = len(batch["uid"])
        if count:
            # Over the number expected, not over what this rank found: the mean over ranks is then
            # the mean over the global batch.
            share = count / (self.rendering_share * size)
            for name, weight in self.rendering_weights.items():
                loss = loss + weight * share * rendered[f"rendered_{name}"]
        for name, value in (figures | rendered).items():
            self.log(f"train/loss/{name}", value.detach(), batch_size=size)
        self.log("train/loss/total", loss.detach(), batch_size=size, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        volumes = self.refiner.encode(batch["geometry"], batch["colour"])
        size = len(batch["uid"])
        for name, value in self.figures(batch, volumes).items():
            self.log(f"val/loss/{name}", value, batch_size=size, sync_dist=True)
        if self.rendering_weights:
            self._rendered.append(self.rendering_figures(batch, volumes))

    def on_validation_epoch_end(self) -> None:
        """Log the rendering losses over all samples that brought a grid, if any rank had one."""
        names = sorted(self.rendering_weights)
        totals = torch.zeros(len(names) + 1, device=self.device)
        for rendered, count in self._rendered:
            if count:
                values = [rendered[f"rendered_{name}"].detach() * count for name in names]
                totals += torch.stack([*values, totals.new_tensor(count)])
        self._rendered = []
        *sums, count = self.trainer.strategy.reduce(totals, reduce_op="sum")  # pyright: ignore[reportGeneralTypeIssues]
        if count > 0:
            for name, total in zip(names, sums, strict=True):
                self.log(f"val/loss/rendered_{name}", total / count)

    def export(self, directory: Path) -> None:
        """Write config.json and model.safetensors."""
        save_refiner(directory, self.refiner)

    def figures(self, batch: dict[str, Any], volumes: FeatureVolumes) -> dict[str, Tensor]:
        """Return the losses at points, and beside them those of the classical field alone.

        Args:
            batch: a batch of prepared samples.
            volumes: its encoded evidence.
        """
        distance = batch["distance"] + self.refiner.distance_residual(
            volumes, batch["points"], batch["features"]
        )
        base, albedo = batch["base"], batch["surface_albedo"]
        surface, normals = batch["surface_position"], batch["surface_normal"]
        colour = base + self.refiner.colour_residual(
            volumes, surface, batch["surface_features"], base, normals
        )
        target, confidence = batch["sdf_distance"], batch["sdf_confidence"]
        count = target.shape[1]
        truncation = self.refiner.truncation
        shifted = distance[:, count:].unflatten(1, (-1, 3))
        centre = distance[:, : shifted.shape[1]]
        # Truncated fields are flat far away; only where the truth is not do gradients count.
        steep = (target[:, : shifted.shape[1]].abs() < 0.6 * truncation).float()
        along, seen_normal = batch["seen_along"], batch["seen_normal"]
        moved, turned = self.refiner.correct_points(
            volumes, batch["seen_position"], batch["seen_features"], seen_normal, along
        )
        truth = {"depth": batch["seen_depth"], "truth": batch["seen_truth"], "along": along}
        truth |= {"known": batch["seen_known"], "truncation": truncation}
        point, normal = point_losses(moved, turned, **truth)
        classical_point, classical_normal = point_losses(0.0 * moved, seen_normal, **truth)
        figures = {
            # Slightly spoilt images, whose errors are small, count as much as others.
            "relative_point": (point / (classical_point + LEAST_ERROR)).mean(),
            "point": point.mean(),
            "normal": normal.mean(),
            "classical_point": classical_point.mean(),
            "classical_normal": classical_normal.mean(),
            "colour": colour_loss(colour, albedo),
            "eikonal": eikonal_loss(centre, shifted, self.eikonal_step, steep),
            "classical_colour": colour_loss(base, albedo),
        }
        near = near_weights(target, confidence, 0.5 * truncation)
        weights = {"distance": 1.0 + (self.near_weight - 1.0) * near, "near_distance": near}
        for prefix, predicted in (
            ("", distance[:, :count]),
            ("classical_", batch["distance"][:, :count]),
        ):
            for name, weight in weights.items():
                figures[prefix + name] = distance_loss(
                    predicted, target, confidence, truncation, weight
                )
            figures[f"{prefix}wrong_side"] = wrong_side(predicted, target, near * confidence)
        # Losses rise and fall with how spoilt a batch is; this share of them falls alone.
        classical = figures["classical_point"].clamp_min(1e-6)
        return figures | {"classical_ratio": figures["point"] / classical}

    def rendering_figures(
        self, batch: dict[str, Any], volumes: FeatureVolumes
    ) -> tuple[dict[str, Tensor], int]:
        """Return the errors of images of the predicted surfaces against the samples' true ones.

        Means over those samples that came with a grid and have a surface, and how many these are;
        empty where there is none.

        Args:
            batch: a batch of prepared samples.
            volumes: its encoded evidence.
        """
        found: dict[str, list[Tensor]] = {}
        for row, grid in enumerate(batch["grid"]):
            if grid is not None and self.rendering_weights:
                own = FeatureVolumes(*(volume[row : row + 1] for volume in volumes))
                sample = {key: batch[key][row] for key in ("images", "hit")}
                cameras = cameras_from_arrays(
                    *(
                        batch[key][row].cpu().numpy()
                        for key in ("camera_to_world", "ortho_scale", "fov_deg")
                    )
                )
                with torch.autocast(self.device.type, enabled=False):  # projections need it
                    rendered = self._render(grid, own, sample, cameras)
                for name, value in rendered.items():
                    found.setdefault(f"rendered_{name}", []).append(value)
        count = max((len(values) for values in found.values()), default=0)
        return {name: torch.stack(values).mean() for name, values in found.items()}, count

    def _render(
        self,
        grid: dict[str, Tensor],
        volumes: FeatureVolumes,
        sample: dict[str, Tensor],
        cameras: Any,
    ) -> dict[str, Tensor]:
        """Return the rendering losses of one sample; none where its surface is empty."""
        values, index = grid["values"], grid["index"]
        axis = torch.linspace(-GRID_HALF_SIDE, GRID_HALF_SIDE, len(values), device=self.device)
        points = torch.cartesian_prod(axis, axis, axis)
        residual = self.refiner.distance_residual(
            volumes, points[index][None], grid["features"][None]
        )[0]
        refined = values.flatten().index_add(0, index, residual).view_as(values)
        surface = grid_surface(refined, float(axis[1] - axis[0]))
        if not len(surface.faces):
            return {}
        at_index = torch.cat([grid["features"], grid["base"], grid["thickened"][:, None]], dim=1)
        known = at_index.new_zeros(len(points), at_index.shape[1]).index_copy(0, index, at_index)
        vertices = surface.interpolate(points)
        features, base, thickened = (
            surface.interpolate(known).detach().split([grid["features"].shape[1], 3, 1], dim=1)
        )
        normals = vertex_normals(vertices, surface.faces).detach()
        colours = (
            base
            + self.refiner.colour_residual(
                volumes,
                *(each[None] for each in (vertices.detach(), features, base, normals)),
            )[0]
        )
        return rendering_losses(
            rasterizer_or_embree(self.device),
            vertices - thickened * normals,
            surface.faces,
            colours,
            sample["images"],
            sample["hit"],
            cameras,
            self.refiner.truncation,
        )

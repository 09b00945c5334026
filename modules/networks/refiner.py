"""What the refiner-decoder learns: corrections of what was seen, residuals of what was not.

A lifted point is moved along its ray and its normal turned; the classical field of the points as
corrected keeps thin sheets and hidden walls, which a residual of distances, unsure where exactly
they lie, would wear away. Where nothing was seen there is no point to move: a residual is added to
the distance. Colours get one wherever there is doubt.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modules.geometry.evidence import (
    COLOUR_CHANNELS,
    DOUBT_CHANNEL,
    GEOMETRY_CHANNELS,
    POINT_CHANNELS,
    UNSEEN_CHANNEL,
    VOLUME_HALF_SIDE,
)


class FeatureVolumes(NamedTuple):
    """Encoded evidence; colour knows of geometry, geometry knows nothing of colour."""

    geometry: Float[Tensor, "b c d h w"]
    colour: Float[Tensor, "b c d h w"]


class Refiner(nn.Module):
    """Two small 3D U-Nets, read at points by three MLPs whose last layers start at zero.

    Untrained, all residuals are exactly 0: the refiner-decoder is then the classical method.

    Args:
        width: channels at full volume resolution; doubled at each coarser level.
        hidden: width of the MLPs.
        side: voxels along a side of the evidence volumes, a multiple of 2 to the number of levels.
        levels: by how many the U-Nets are coarser than the volumes in the end.
        truncation: an output of 1 means this many world units.
        unseen: whether rebuilding adds the residual of distances where nothing was seen.
    """

    def __init__(
        self,
        width: int = 8,
        hidden: int = 64,
        side: int = 16,
        levels: int = 2,
        truncation: float = 0.05,
        unseen: bool = False,
    ) -> None:
        super().__init__()
        if side % 2**levels:
            raise ValueError(f"side={side} cannot be halved {levels} times: a U-Net has to")
        self.config = {
            "width": width,
            "hidden": hidden,
            "side": side,
            "levels": levels,
            "truncation": truncation,
            "unseen": unseen,
        }
        self.side = side
        self.truncation = truncation
        self.unseen = unseen
        self.geometry_net = VolumeUNet(GEOMETRY_CHANNELS, width, levels)
        self.colour_net = VolumeUNet(GEOMETRY_CHANNELS + COLOUR_CHANNELS, width, levels)
        read = 3 * width  # full resolution and the level below it
        self.point_head = _head(read + POINT_CHANNELS + 3 + 3, hidden, 1 + 3)
        self.distance_head = _head(read + POINT_CHANNELS, hidden, 1)
        self.colour_head = _head(read + POINT_CHANNELS + 3 + 3, hidden, 3)

    def encode(
        self,
        geometry: Float[Tensor, "b 11 s s s"],
        colour: Float[Tensor, "b 4 s s s"],
    ) -> FeatureVolumes:
        """Return feature volumes from evidence volumes (see `Evidence.volumes`)."""
        return FeatureVolumes(
            self.geometry_net(geometry), self.colour_net(torch.cat([geometry, colour], dim=1))
        )

    def correct_points(
        self,
        volumes: FeatureVolumes,
        points: Float[Tensor, "b n 3"],
        evidence: Float[Tensor, "b n 27"],
        normals: Float[Tensor, "b n 3"],
        along: Float[Tensor, "b n 3"],
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n 3"]]:
        """Return what to add to the depths of lifted points, world units, and their new normals.

        Where there is no doubt that is 0, and normals stay as they are.

        Args:
            volumes: encoded evidence.
            points: lifted points.
            evidence: `Evidence.features` there.
            normals: their unit normals.
            along: how each moves when its depth grows by one.
        """
        inputs = [_read(volumes.geometry, points), evidence, normals, along]
        found = _exactly(self.point_head, inputs) * evidence[..., DOUBT_CHANNEL, None]
        turned = torch.nn.functional.normalize(normals + found[..., 1:], dim=-1)
        return found[..., 0] * self.truncation, turned

    def distance_residual(
        self,
        volumes: FeatureVolumes,
        points: Float[Tensor, "b n 3"],
        evidence: Float[Tensor, "b n 27"],
    ) -> Float[Tensor, "b n"]:
        """Return what to add to the classical distance, world units; 0 by what was seen."""
        residual = _exactly(self.distance_head, [_read(volumes.geometry, points), evidence])[..., 0]
        return residual * evidence[..., UNSEEN_CHANNEL] * self.truncation

    def colour_residual(
        self,
        volumes: FeatureVolumes,
        points: Float[Tensor, "b n 3"],
        evidence: Float[Tensor, "b n 27"],
        base: Float[Tensor, "b n 3"],
        normals: Float[Tensor, "b n 3"],
    ) -> Float[Tensor, "b n 3"]:
        """Return what to add to the classical sRGB colour; 0 where there is no doubt.

        Args:
            volumes: encoded evidence.
            points: world positions near the surface.
            evidence: `Evidence.features` there.
            base: classical colour in [0, 1].
            normals: unit surface normals.
        """
        inputs = [_read(volumes.colour, points), evidence, 2.0 * base - 1.0, normals]
        return _exactly(self.colour_head, inputs) * evidence[..., DOUBT_CHANNEL, None]


class VolumeUNet(nn.Module):
    """A 3D U-Net; features of its two finest levels come out.

    Args:
        in_channels: channels of the evidence.
        width: channels at full resolution; the output has three times as many.
        levels: below full resolution, at least one.
    """

    def __init__(self, in_channels: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.enter = _conv(in_channels, width)
        self.down = nn.ModuleList(_conv(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = nn.Sequential(*(_conv(widths[-1], widths[-1]) for _ in range(2)))
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in itertools.pairwise(widths))

    def forward(self, volume: Float[Tensor, "b c s s s"]) -> Float[Tensor, "b d s s s"]:
        """Return features at the volume's resolution."""
        passed = [self.enter(volume)]
        for down in self.down:
            passed.append(down(passed[-1]))
        features = [self.middle(passed.pop())]
        for up in reversed(self.up):
            features.append(up(torch.cat([_double(features[-1]), passed.pop()], dim=1)))
        return torch.cat([features[-1], _double(features[-2])], dim=1)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.GroupNorm(4, out_channels),
        nn.SiLU(),
    )


def _double(volume: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
    return F.interpolate(volume, scale_factor=2, mode="nearest")


def _head(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    last = nn.Linear(hidden, out_features)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
    )


def _exactly(head: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Return what a head makes of its inputs in single precision: distances are that fine."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return head(torch.cat([each.float() for each in inputs], dim=-1))


def _read(
    volume: Float[Tensor, "b c s s s"], points: Float[Tensor, "b n 3"]
) -> Float[Tensor, "b n c"]:
    """Return features interpolated at world points."""
    # grid_sample wants the last axis first, (z, y, x) for a volume indexed [x, y, z].
    grid = (points / VOLUME_HALF_SIDE).flip(-1)[:, :, None, None]
    sampled = F.grid_sample(volume.float(), grid, align_corners=False, padding_mode="border")
    return sampled.flatten(2).transpose(1, 2)

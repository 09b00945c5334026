"""Decode rendered samples and latents from shards into tensors."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data_pipeline.codec import decode_views
from data_pipeline.contract import (
    MODALITIES,
    UserError,
    check_meta,
    decode_coord,
    decode_normal,
    layout_cameras,
)
from data_pipeline.loading.order import Draw
from data_pipeline.shards.manifest import ShardSet

# What each stored code means, looked up instead of computed per pixel: three times as fast.
_CODES = np.arange(2**16, dtype=np.uint16)
_NORMAL_OF_CODE = decode_normal(_CODES)
_IMAGE_OF_COORD_CODE = 2.0 * decode_coord(_CODES)
_UNIT_OF_BYTE = np.arange(256, dtype=np.float32) / 255.0


class SampleDataset(Dataset[dict[str, Any]]):
    """Rendered samples as the image systems take them: the views of their layout.

    An item has `uid`, `caption` (str); `images` float32 (m v 3 h w) in [-1, 1] on a background of
    white, zero normal and zero coord; `alpha` float32 (v h w) in [0, 1]; `hit` bool (v h w);
    `camera_to_world` (v 4 4), `ortho_scale` and `fov_deg` (v; NaN where they do not apply); and
    random subsets of the stored points: `surface_position`, `surface_normal`, `surface_albedo`
    (n 3; albedo is sRGB in [0, 1]), `sdf_position` (k 3), `sdf_distance`, `sdf_confidence` (k).

    Args:
        shards: folder that `pack` wrote.
        num_surface_points: n, at most what is stored.
        num_sdf_points: k, at most what is stored.
        seed: of the subsets, which are a function of it and the position in the stream.
        keep_decoded: keep decoded samples in memory; for sets that fit.
        prepare: what is done to every item last, given its position in the stream too: work for
            the loader's processes.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        num_surface_points: int,
        num_sdf_points: int,
        seed: int,
        keep_decoded: bool,
        prepare: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
    ) -> None:
        self.shard_set = ShardSet(Path(shards), "samples")
        self.num_surface_points, self.num_sdf_points = num_surface_points, num_sdf_points
        self.seed, self.prepare = seed, prepare
        self._decoded: dict[int, dict[str, Any]] | None = {} if keep_decoded else None

    def __len__(self) -> int:
        return len(self.shard_set)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        position, i = draw
        sample = dict(self.load(i))
        generator = np.random.default_rng([self.seed, 1, position])
        geometry = sample.pop("geometry")
        for prefix, count in (("surface", self.num_surface_points), ("sdf", self.num_sdf_points)):
            stored = len(geometry[f"{prefix}_position"])
            if count > stored:
                raise UserError(
                    f"sample {sample['uid']} stores {stored} {prefix} points, not {count}: "
                    f"lower data.dataset.num_{prefix}_points or render with {prefix}_points={count}"
                )
            chosen = generator.choice(stored, count, replace=False)
            sample |= {
                key: torch.from_numpy(array[chosen])
                for key, array in geometry.items()
                if key.startswith(prefix)
            }
        return sample if self.prepare is None else self.prepare(sample, position)

    def load(self, i: int) -> dict[str, Any]:
        """Return sample `i` whole: its points, uncut, under `geometry` as float32 arrays."""
        if self._decoded is not None and i in self._decoded:
            return self._decoded[i]
        sample = decode_sample(self.shard_set.read(i), self.shard_set.manifest.get("config_hash"))
        if self._decoded is not None:
            self._decoded[i] = sample
        return sample


def decode_sample(members: dict[str, bytes], config_hash: str | None = None) -> dict[str, Any]:
    """Decode a sample's members; what comes back is described at `SampleDataset`.

    Args:
        members: content by name.
        config_hash: of the set; None: any.

    Raises:
        UserError: the sample follows other conventions, or is of another config.
    """
    meta = json.loads(members["meta.json"])
    check_meta(meta)
    if config_hash is not None and meta["config_hash"] != config_hash:
        raise UserError(
            f"sample {meta['uid']} is of config {meta['config_hash']}, its set is of "
            f"{config_hash}: sets do not mix; pack the set again"
        )
    cameras = layout_cameras(meta)
    strips = {
        name: decode_views(members[f"{name}.png"], len(meta["cameras"]))[: len(cameras)]
        for name in ("rgb", "normal", "coord", "hit")
    }
    hit = strips["hit"] > 127
    images, alpha = _images(strips, hit)
    with np.load(io.BytesIO(members["geometry.npz"])) as stored:
        geometry = {key: stored[key] for key in stored.files}
    geometry["surface_albedo"] = geometry["surface_albedo"].astype(np.float32) / 255.0
    nan = float("nan")
    return {
        "uid": meta["uid"],
        "caption": meta["captions"][0] if meta["captions"] else "",
        "images": torch.from_numpy(images),
        "alpha": torch.from_numpy(alpha),
        "hit": torch.from_numpy(hit),
        "camera_to_world": torch.tensor([c.camera_to_world for c in cameras], dtype=torch.float32),
        "ortho_scale": torch.tensor([c.ortho_scale or nan for c in cameras]),
        "fov_deg": torch.tensor([c.fov_deg or nan for c in cameras]),
        "geometry": geometry,
    }


def _images(
    strips: dict[str, NDArray[Any]], hit: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images (m v 3 h w) in [-1, 1] and alpha (v h w) in [0, 1] of decoded strips."""
    images = np.empty((len(MODALITIES), hit.shape[0], 3, *hit.shape[1:]), np.float32)
    alpha = _UNIT_OF_BYTE.take(strips["rgb"][..., 3])
    white = 1.0 - alpha
    for c in range(3):
        rgb = images[0, :, c]
        _UNIT_OF_BYTE.take(strips["rgb"][..., c], out=rgb, mode="clip")
        rgb *= alpha  # stored straight: composited over white here
        rgb += white
        rgb *= 2.0
        rgb -= 1.0
        for m, name, table in ((1, "normal", _NORMAL_OF_CODE), (2, "coord", _IMAGE_OF_COORD_CODE)):
            table.take(strips[name][..., c], out=images[m, :, c], mode="clip")
            images[m, :, c] *= hit
    return images, alpha


class LatentDataset(Dataset[dict[str, Any]]):
    """Cached 2.5D latents: `uid`, `caption` (str), `latents` float32 (m v c h w), normalised.

    And `coverage` float32 (v h w): the share of a cell's pixels that show the asset, in [0, 1].
    Caches of before it was stored have none. And where `encode.py vision=` wrote them and they are
    asked for, `vision` float16 (v k q): a vision encoder's tokens of every view's rgb.

    Args:
        latents: folder that encode.py wrote.
        keep_decoded: keep them in memory; for sets that fit.
        vision_width: q, of the tokens that the denoiser takes; None leaves them on disk: they are
            many times as large as the latents.
    """

    def __init__(
        self, latents: str | Path, *, keep_decoded: bool, vision_width: int | None = None
    ) -> None:
        self.shard_set = ShardSet(Path(latents), "latents")
        self.vision_width = vision_width
        self._decoded: dict[int, dict[str, Any]] | None = {} if keep_decoded else None

    def __len__(self) -> int:
        return len(self.shard_set)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        _, i = draw
        if self._decoded is not None and i in self._decoded:
            return self._decoded[i]
        members = self.shard_set.read(i)
        meta = json.loads(members["meta.json"])
        latents = np.load(io.BytesIO(members["latents.npy"])).astype(np.float32)
        captions = meta["captions"]
        sample = {
            "uid": meta["uid"],
            "caption": captions[0] if captions else "",
            "latents": torch.from_numpy(latents),
        }
        if "coverage.npy" in members:
            coverage = np.load(io.BytesIO(members["coverage.npy"])).astype(np.float32) / 255.0
            sample["coverage"] = torch.from_numpy(coverage)
        if self.vision_width is not None and "vision.npy" in members:
            sample["vision"] = torch.from_numpy(np.load(io.BytesIO(members["vision.npy"])))
        if self._decoded is not None:
            self._decoded[i] = sample
        return sample


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors along a new first axis; leave everything else a list."""
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {
        key: torch.stack(values) if isinstance(values[0], Tensor) else values
        for key, values in batch.items()
    }

"""Shards of spheres whose images are computed, not rendered: real samples without Blender."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.codec import encode_views
from data_pipeline.contract import (
    CONVENTIONS_VERSION,
    RenderSpec,
    encode_coord,
    encode_normal,
    view_layout,
)
from data_pipeline.shards.writer import ShardWriter

NUM_POINTS = 256


def sphere_members(
    uid: str,
    colour: tuple[int, int, int],
    resolution_px: int,
    radius: float = 0.5,
    captions: tuple[str, ...] = (),
    attributes: dict[str, str] | None = None,
) -> dict[str, bytes]:
    """Return the members of a sample: a sphere in one colour, seen by ortho6."""
    cameras = view_layout("ortho6")
    hits, coords = [], []
    for camera in cameras:
        origins, directions = camera.rays(resolution_px)
        along = -(origins * directions).sum(-1, keepdims=True)
        foot = origins + along * directions
        inside = radius**2 - (foot**2).sum(-1, keepdims=True)
        hits.append(inside[..., 0] > 0)
        coords.append(foot - np.sqrt(np.maximum(inside, 0.0)) * directions)
    hit, coord = np.stack(hits), np.stack(coords)
    coord = np.where(hit[..., None], coord, 0.0)
    rgba = np.concatenate([np.broadcast_to(colour, coord.shape), 255.0 * hit[..., None]], axis=-1)
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(NUM_POINTS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    queries = generator.uniform(-0.5, 0.5, (NUM_POINTS, 3))
    geometry = io.BytesIO()
    np.savez(
        geometry,
        surface_position=(radius * directions).astype(np.float32),
        surface_normal=directions.astype(np.float32),
        surface_albedo=np.broadcast_to(np.array(colour, np.uint8), (NUM_POINTS, 3)),
        sdf_position=queries.astype(np.float32),
        sdf_distance=(np.linalg.norm(queries, axis=1) - radius).astype(np.float32),
        sdf_confidence=np.ones(NUM_POINTS, np.float32),
    )
    images = {"rgb": rgba.astype(np.uint8), "normal": coord / radius, "coord": coord, "hit": hit}
    captions = captions or (f"sphere {uid}",)
    return members(uid, captions, images, geometry.getvalue(), attributes)


def members(
    uid: str,
    captions: Sequence[str],
    images: dict[str, np.ndarray],
    geometry: bytes,
    attributes: dict[str, str] | None = None,
) -> dict[str, bytes]:
    """Return the members of a sample seen by ortho6.

    Args:
        uid: of the sample.
        captions: of the sample.
        images: rgb (v h w 4, 8 bit), normal and coord (v h w 3, 0 in the background), hit (v h w).
        geometry: content of `geometry.npz`.
        attributes: what its caption names.
    """
    cameras = view_layout("ortho6")
    meta = {
        "uid": uid, "source": {"attributes": attributes or {}}, "licence": "CC0-1.0",
        "author": "", "captions": list(captions),
        "scale": 1.0, "offset": [0.0, 0.0, 0.0], "cameras": [c.to_json() for c in cameras],
        "lightings": ["albedo"] * len(cameras),
        "conventions": CONVENTIONS_VERSION, "config_hash": "0" * 16,
        "render_spec": {"random_views": 0}, "blender": "", "device": "", "counts": {}, "qa": {},
    }  # fmt: skip
    return {
        "meta.json": json.dumps(meta).encode(),
        "rgb.png": encode_views(images["rgb"]),
        "normal.png": encode_views(encode_normal(images["normal"])),
        "coord.png": encode_views(encode_coord(images["coord"])),
        "hit.png": encode_views(np.where(images["hit"], 255, 0).astype(np.uint8)),
        "geometry.npz": geometry,
    }


def write_sphere_shards(directory: Path, *, num_samples: int = 6, resolution_px: int = 32) -> Path:
    """Write a set of shards of spheres, each of another colour, and return its folder."""
    spec = RenderSpec(resolution_px=resolution_px)
    with ShardWriter(directory, "spheres", 4) as writer:
        for i in range(num_samples):
            colour = (40 * i, 255 - 40 * i, 128)
            writer.add(f"sphere_{i}", sphere_members(f"sphere_{i}", colour, spec.resolution_px))
        writer.finish({"kind": "samples", "config_hash": "0" * 16})
    return directory

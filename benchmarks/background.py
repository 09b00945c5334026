"""What coord images should hold on the background, and which pixels of decoded images to believe.

    python benchmarks/background.py shards/64 AUTOENCODER [--count 12]

Rendered samples go through the autoencoder with three backgrounds of coord: grey (0, as stored),
white (1), and the point where the pixel's ray leaves the unit cube's far side (`ray`). Then, on
grey, the thresholds of `HitRule` vary. One row each: medians over the samples of what
`modules.metrics.fidelity` measures, and of the F-score of the classical rebuild of what was decoded
against the stored surface points.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_pipeline.contract import Camera, SourceFrame, UserError, layout_cameras
from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.manifest import ShardSet
from modules.geometry.lift import HitRule, lift
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.metrics.fidelity import fidelity
from modules.metrics.geometry import MeshSurface, compare_surfaces
from modules.pipelines.reconstruction import Reconstructor
from modules.reporting.rebuild_cases import sample_truth, spread

BACKGROUNDS = ("grey", "white", "ray")
RULES = {
    f"normal {length}, reprojection {reprojection}": HitRule(
        normal_length=length, background_length=length / 2.0, reprojection=reprojection
    )
    for length in (0.3, 0.5, 0.7)
    for reprojection in (0.04, 0.08, 0.16, 2.0)
}
FAR_SIDE = 0.5
COLUMNS = {
    "decoded_mask_iou": "mask IoU",
    "decoded_mask_iou_band": "mask IoU, band",
    "decoded_position_inside": "position inside",
    "decoded_depth_inside": "depth inside",
    "decoded_depth_band": "depth, band",
    "excess_cross_view_position": "positions across views",
    "f_score_0.01": "F@.01",
    "f_score_0.02": "F@.02",
}
DEPEND_ON_RULE = ("decoded_mask_iou", "f_score_0.01", "f_score_0.02")


def with_background(
    images: torch.Tensor, hit: torch.Tensor, cameras: tuple[Camera, ...], kind: str
) -> torch.Tensor:
    """Return images (m v 3 h w) whose coord holds another background."""
    if kind == "grey":
        return images
    changed, coord = images.clone(), images[2]
    if kind == "white":
        background = torch.ones_like(coord)
    else:
        rays = [camera.rays(images.shape[-1]) for camera in cameras]
        ends = [leave_cube(origins, directions) for origins, directions in rays]
        background = torch.from_numpy(2.0 * np.stack(ends)).movedim(-1, 1).clamp(-1, 1).to(coord)
    changed[2] = torch.where(hit[:, None], coord, background)
    return changed


def leave_cube(origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return where rays cross the plane through the far side of the cube, facing their mean."""
    axis = directions.mean(axis=(0, 1)) / np.linalg.norm(directions.mean(axis=(0, 1)))
    steps = (FAR_SIDE - origins @ axis) / (directions @ axis)
    return origins + steps[..., None] * directions


def figures(
    images: torch.Tensor,
    decoded: torch.Tensor,
    sample: dict[str, Any],
    truth: Any,
    cameras: tuple[Camera, ...],
    rule: HitRule | None,
) -> dict[str, float]:
    """Return the figures of one sample's decoded images."""
    found = fidelity(images.numpy(), decoded.numpy(), sample["hit"].numpy(), cameras)
    seen = lift(decoded.numpy(), cameras, None, rule).hit
    hit = sample["hit"].numpy()
    found["decoded_mask_iou"] = float((seen & hit).sum() / max((seen | hit).sum(), 1))
    try:
        mesh = Reconstructor(rule=rule)(decoded, cameras, None, grid=96, texture_px=64)
        surface = MeshSurface(mesh.vertices, mesh.faces)
        return found | compare_surfaces(surface, truth.surface, num_samples=20_000)
    except UserError:
        return found | {"f_score_0.01": 0.0, "f_score_0.02": 0.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("autoencoder")
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    autoencoder = load_autoencoder(arguments.autoencoder)
    shard_set = ShardSet(arguments.shards, "samples")
    rows: dict[str, list[dict[str, float]]] = {}
    for i in tqdm(spread(len(shard_set.uids), arguments.count)):
        members = shard_set.read(i)
        sample, meta = decode_sample(members), json.loads(members["meta.json"])
        cameras = layout_cameras(meta)
        frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
        truth = sample_truth(sample, frame, None)
        for kind in BACKGROUNDS:
            images = with_background(sample["images"], sample["hit"], cameras, kind)
            decoded = decode_packed(autoencoder, encode_packed(autoencoder, images, 1), 1)
            common = images, decoded, sample, truth, cameras
            rows.setdefault(f"background {kind}", []).append(figures(*common, None))
            for name, rule in RULES.items() if kind == "grey" else ():
                rows.setdefault(name, []).append(figures(*common, rule))
    backgrounds = {f"background {kind}": rows[f"background {kind}"] for kind in BACKGROUNDS}
    print(as_table(backgrounds, COLUMNS))
    rules = {name: rows[name] for name in RULES}
    print(as_table(rules, {key: COLUMNS[key] for key in DEPEND_ON_RULE}))


def as_table(rows: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> str:
    """Return the medians of each row as a Markdown table."""
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        medians = [np.nanmedian([row[key] for row in found]) for key in columns]
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in medians) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Cases from rendered samples: each sent through an autoencoder, and rebuilt from what returns."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipeline.contract import SourceFrame, UserError, layout_cameras
from modules.geometry.mesh import Mesh
from modules.latents.codec import decode_packed, encode_packed, own_statistics
from modules.latents.spec import fingerprint
from modules.metrics.fidelity import fidelity, latent_statistics
from modules.metrics.geometry import MeshSurface, compare_surfaces
from modules.metrics.scoring import ScoringOptions
from modules.pipelines.reconstruction import Reconstructor
from modules.reporting.cost import measured
from modules.reporting.evaluation import Case, Loaded, RebuildError
from modules.reporting.mesh_files import asset_digest
from modules.reporting.pictures import resized, shaded_views, side_by_side, turntable_cameras
from modules.reporting.rebuild_cases import StoredSamples, originals_by_uid, sample_truth, spread

CELL_PX, NUM_VIEWS = 128, 6


def latent_cases(
    shard_set: StoredSamples,
    decode_sample: Callable[[dict[str, bytes]], dict[str, Any]],
    autoencoder: Any,
    *,
    settings: Mapping[str, int],
    options: ScoringOptions,
    reference: Path | None,
    count: int | None,
    device: torch.device,
) -> list[Case]:
    """Return a case for every rendered sample: the images after a round trip, and their rebuild.

    Both rebuilds are the classical one: that of the decoded images, which finds its foreground
    itself, is judged; that of the true images gives the figures `true_images_*` beside it.

    Args:
        shard_set: the samples.
        decode_sample: that of data_pipeline.loading.samples.
        autoencoder: any of diffusers, or TAEF2.
        settings: keyword arguments of the reconstruction (`grid`, `texture_px`, `refine_steps`).
        options: how figures are taken.
        reference: folder of the original assets; None: the stored surface points are the truth.
        count: so many samples, spread over the set; None for all.
        device: where the autoencoder and the reconstruction run.
    """
    chosen = spread(len(shard_set.uids), count)
    originals = originals_by_uid(reference)
    weights = fingerprint(autoencoder)
    autoencoder = autoencoder.to(device)
    reconstruct = Reconstructor.classical(device=device)

    def case(i: int) -> Case:
        uid = shard_set.uids[i]

        def load() -> Loaded:
            members = shard_set.read(i)
            sample, meta = decode_sample(members), json.loads(members["meta.json"])
            frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
            images, cameras = sample["images"], layout_cameras(meta)
            cost: dict[str, float] = {}
            decoded, statistics = _round_trip(autoencoder, images.to(device), cost)
            pair = images.numpy(), decoded.numpy()
            figures = fidelity(*pair, sample["hit"].numpy(), cameras) | statistics
            truth = sample_truth(sample, frame, originals.get(uid))
            try:
                best_mesh = reconstruct(images, cameras, sample["hit"], **settings)
                with measured(cost, "reconstruct"):
                    mesh = reconstruct(decoded, cameras, None, **settings)
            except UserError as error:
                raise RebuildError(str(error), figures | cost) from error
            meshes = best_mesh, mesh
            best = compare_surfaces(
                MeshSurface(meshes[0].vertices, meshes[0].faces),
                truth.surface,
                num_samples=options.num_samples,
                seed=options.seed,
            )
            figures |= cost | {f"true_images_{key}": value for key, value in best.items()}
            return Loaded(meshes[1], truth, None, figures, round_trip_picture(*pair, meshes))

        digest = asset_digest(originals[uid]) if uid in originals else "stored samples"
        identity = f"{shard_set.sha256} latents {weights} {dict(settings)} {digest}"
        return Case(uid, identity, load)

    return [case(i) for i in chosen]


def _round_trip(
    autoencoder: Any, images: Float[torch.Tensor, "m v 3 h w"], cost: dict[str, float]
) -> tuple[Float[torch.Tensor, "m v 3 h w"], dict[str, float]]:
    """Return the decoded images, on the CPU, and the statistics of the latents.

    These are of the latents as a denoiser would see them without statistics of a set: normalised
    where the autoencoder itself says how (FLUX.2), else raw. `cost` takes what each way costs.
    """
    own = own_statistics(autoencoder)
    packing = 1 if own is None else own[0]
    with measured(cost, "encode"):
        latents = encode_packed(autoencoder, images, packing)
    seen = latents
    if own is not None:
        mean, std = (values[:, None, None] for values in own[1:])
        seen = (latents - mean) / std
    with measured(cost, "decode"):
        decoded = decode_packed(autoencoder, latents, packing)
    return decoded.cpu(), latent_statistics(seen.cpu().numpy())


def round_trip_picture(
    images: Float[ndarray, "m v 3 h w"],
    decoded: Float[ndarray, "m v 3 h w"],
    meshes: Sequence[Mesh],
) -> UInt8[ndarray, "h w 4"]:
    """Return rows of views: true above decoded for rgb, normal and coord, then both rebuilds."""
    rows = []
    for pair in zip(images, decoded, strict=True):
        rows += [side_by_side(list(_drawn(views[:NUM_VIEWS]))) for views in pair]
    cameras = turntable_cameras(meshes[0], len(images[0][:NUM_VIEWS]))
    rows += [side_by_side(list(shaded_views(mesh, cameras, CELL_PX))) for mesh in meshes]
    return np.concatenate(rows, axis=0)


def _drawn(views: Float[ndarray, "v 3 h w"]) -> UInt8[ndarray, "v h2 w2 4"]:
    """Return views in [-1, 1] as opaque pictures, by nearest pixel."""
    small = resized(views.transpose(0, 2, 3, 1), CELL_PX)
    rgb = np.rint(np.clip(small / 2.0 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)

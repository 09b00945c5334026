"""Cases from rendered samples: each rebuilt from its true images, or from a model's of them."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from data_pipeline.contract import SourceFrame, UserError, layout_cameras, make_uid
from modules.geometry.mesh import load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.appearance import compare_with_views
from modules.metrics.coherence import mesh_normal_deg
from modules.metrics.geometry import MeshSurface, SampledSurface, SurfaceSamples
from modules.pipelines.diffusion_round_trip import DiffusionRoundTrip, check_strength
from modules.pipelines.reconstruction import Reconstructor
from modules.reporting.cost import measured
from modules.reporting.evaluation import Case, Loaded, Truth
from modules.reporting.mesh_files import SUFFIXES, asset_digest, file_digest

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
LARGEST_MISFIT = 0.005
"""How far the 95th percentile of a sample's stored points may lie from its original's surface."""


@runtime_checkable
class StoredSamples(Protocol):
    """What this file needs of data_pipeline's ShardSet."""

    @property
    def uids(self) -> list[str]:
        """The uids of all samples."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest."""
        ...

    def read(self, i: int) -> dict[str, bytes]:
        """Return the members of a sample."""
        ...


def rebuild_cases(
    shard_set: StoredSamples,
    decode_sample: Callable[[dict[str, bytes]], dict[str, Any]],
    *,
    checkpoint: Path | None,
    settings: Mapping[str, int],
    reference: Path | None,
    count: int | None,
    out: Path,
    strength: float | None = None,
    device: torch.device = CPU,
) -> list[Case]:
    """Return a case for every rendered sample: rebuilt, saved in its asset's own frame, and judged.

    The truth is the original asset where `reference` holds a readable file whose name gives the
    uid, else the surface points stored with the sample.

    Args:
        shard_set: the samples.
        decode_sample: that of data_pipeline.loading.samples.
        checkpoint: pipeline folder; None for the classical estimate, which needs no training.
        settings: keyword arguments of the reconstruction (`grid`, `texture_px`, `refine_steps`).
        reference: folder of the original assets, searched with all below it.
        count: so many samples, spread over the set; None for all.
        out: folder that takes the rebuilt meshes.
        strength: noise level up to which the checkpoint's diffusion model makes the images anew
            (`DiffusionRoundTrip`); None: the true images.
        device: of the diffusion model and the reconstruction.

    Raises:
        UserError: images are to be made anew without a diffusion model, or by none of their size.
    """
    diffuse = None
    if strength is not None:
        check_strength(strength)
        if checkpoint is None:
            raise UserError(f"strength={strength} needs checkpoint=DIR, whose model makes images")
        diffuse = DiffusionRoundTrip(checkpoint, device)
    chosen = spread(len(shard_set.uids), count)
    originals = originals_by_uid(reference)
    if checkpoint is None:
        reconstruct, weights = Reconstructor.classical(device=device), "classical"
    else:
        reconstruct = Reconstructor.from_pretrained(checkpoint, device=device)
        weights = folder_digest(checkpoint / "refiner_decoder")

    def case(i: int) -> Case:
        uid = shard_set.uids[i]

        def load() -> Loaded:
            members = shard_set.read(i)
            sample, meta = decode_sample(members), json.loads(members["meta.json"])
            cameras = layout_cameras(meta)
            frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
            cost: dict[str, float] = {}
            out.mkdir(parents=True, exist_ok=True)
            seen: Any = sample["images"], cameras, sample["hit"]
            if diffuse is not None and strength is not None:
                with measured(cost, "generate"):
                    seen = diffuse(sample, strength)
            with measured(cost, "reconstruct"):
                mesh = reconstruct(*seen, **settings)
                save_mesh(mesh, out / f"{uid}.glb", frame, {"relief": {"uid": uid}})
            mesh = load_mesh(out / f"{uid}.glb").transformed(frame)  # what is judged is the file
            images = sample["images"].numpy().transpose(0, 1, 3, 4, 2).astype(np.float64)
            rgb, normal, hit = images[0] / 2.0 + 0.5, images[1], sample["hit"].numpy()
            views = render_mesh(mesh, cameras, hit.shape[1])
            figures = cost | compare_with_views(views, rgb, hit)
            figures["input_view_normal_deg"] = mesh_normal_deg(views, normal, hit)
            truth = sample_truth(sample, frame, originals.get(uid))
            if truth.mesh is not None:
                floor = render_mesh(truth.mesh, cameras, hit.shape[1])
                figures["excess_input_view_normal_deg"] = figures[
                    "input_view_normal_deg"
                ] - mesh_normal_deg(floor, normal, hit)
            return Loaded(mesh, truth, out / f"{uid}.glb", figures)

        digest = asset_digest(originals[uid]) if uid in originals else "stored samples"
        identity = f"{shard_set.sha256} {weights} {dict(settings)} {digest}"
        if diffuse is not None:
            identity += f" {diffuse.name} {strength}"
        return Case(uid, identity, load, [out / f"{uid}.glb"])

    return [case(i) for i in chosen]


def folder_digest(folder: Path) -> str:
    """Return a hash of the contents of a folder, by which weights are known."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_or_folder_digest(source: str) -> str:
    """Return a hash of weights that lie here, wherever they lie; else their hub id as it is."""
    path = Path(source)
    if path.is_dir():
        return folder_digest(path)
    return file_digest(path) if path.is_file() else source


def originals_by_uid(folder: Path | None) -> Mapping[str, Path]:
    """Return the mesh files below a folder by the uid that `source=folder` gives them."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UserError(f"reference={folder} is no folder: give that of the original assets")
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    return {make_uid(path.stem): path for path in files}


def sample_truth(sample: Mapping[str, Any], frame: SourceFrame, original: Path | None) -> Truth:
    """Return the truth of a decoded sample: its asset's file, or what the sample itself holds.

    A file that is not what was rendered is no truth, which a warning tells: skinned meshes are read
    here without the pose that Blender gives them, and files may have been exchanged.

    Args:
        sample: as `decode_sample` gives it.
        frame: of the sample.
        original: file of the asset; None for the stored surface points, shown by the views.
    """
    points, normals = (
        sample["geometry"][f"surface_{key}"].astype(np.float64) for key in ("position", "normal")
    )
    if original is not None:
        mesh = load_mesh(original).transformed(frame)
        surface = MeshSurface(mesh.vertices, mesh.faces)
        away = float(np.percentile(surface.nearest(points)[0], 95))
        if away <= LARGEST_MISFIT:
            return Truth(surface, mesh)
        log.warning(
            "%s is not what was rendered as %s (%.3f away): its stored points are the truth",
            original,
            sample["uid"],
            away,
        )
    rgb = sample["images"][0].numpy().transpose(0, 2, 3, 1) / 2.0 + 0.5
    rgba = np.concatenate([np.clip(rgb, 0.0, 1.0), sample["hit"].numpy()[..., None]], axis=-1)
    views: UInt8[ndarray, "v h w 4"] = np.rint(rgba * 255.0).astype(np.uint8)
    return Truth(SampledSurface(SurfaceSamples(points, normals)), None, views)


def spread(total: int, count: int | None) -> list[int]:
    """Return `count` indices spread over a set; all of them for None.

    Raises:
        UserError: there would be none.
    """
    if count is not None and count < 1:
        raise UserError(f"count={count} must be at least 1")
    wanted = total if count is None else min(count, total)
    return [k * total // wanted for k in range(wanted)]

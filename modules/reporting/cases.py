"""Cases from folders: meshes beside references of the same file name, and rebuilt samples."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipeline.contract import Camera, SourceFrame, UserError, make_uid, unit_cube_frame
from modules.geometry.mesh import ColoredMesh, TexturedMesh, load_mesh, save_mesh
from modules.metrics.appearance import compare_with_views
from modules.metrics.geometry import MeshSurface, SampledSurface, SurfaceSamples
from modules.reporting.evaluation import Case, Loaded, Truth

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")


def folder_cases(meshes: Path, reference: Path) -> list[Case]:
    """Return a case for every name in either folder; a name that only one holds is a failure.

    Both meshes of a pair are moved to the frame where the reference fills the unit cube.

    Raises:
        UserError: a folder is missing or holds no mesh, two files of one share a name, or no name
            is in both.
    """
    predicted, truths = mesh_files(meshes), mesh_files(reference)
    if not predicted.keys() & truths.keys():
        raise UserError(
            f"no file in meshes={meshes} has the name of one in reference={reference} (first are "
            f"{min(predicted)} and {min(truths)}): pairs are formed by file name without suffix"
        )

    def case(name: str) -> Case:
        def load() -> Loaded:
            if name not in truths:
                raise UserError(f"there is no mesh of this name in reference={reference}")
            if name not in predicted:
                raise UserError(f"there is no mesh of this name in meshes={meshes}")
            truth = load_mesh(truths[name])
            frame = _filling_frame(truth, truths[name])
            truth = truth.transformed(frame)
            surface = MeshSurface(truth.vertices, truth.faces)
            return Loaded(load_mesh(predicted[name]).transformed(frame), Truth(surface, truth))

        files = [folder[name] for folder in (predicted, truths) if name in folder]
        return Case(name, " ".join(map(_file_digest, files)), load)

    return [case(name) for name in sorted(predicted.keys() | truths.keys())]


def rebuild_cases(
    uids: Sequence[str],
    read: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
    rebuild: Callable[[dict[str, Any], Sequence[Camera]], TexturedMesh],
    *,
    identity: str,
    reference: Path | None,
    out: Path,
) -> list[Case]:
    """Return a case for every rendered sample: rebuilt from its true images, saved, and judged.

    The truth is the original asset where `reference` holds a readable file whose name gives the
    uid, else the surface points stored with the sample.

    Args:
        uids: of the samples.
        read: returns a decoded sample (see data_pipeline.loading.samples) and its meta.json.
        rebuild: the refiner-decoder.
        identity: names the samples, the weights and the settings of `rebuild`.
        reference: folder of the original assets, searched with all below it.
        out: folder that takes the rebuilt meshes, each in its asset's own frame.
    """
    originals = {} if reference is None else _by_uid(reference)

    def case(uid: str) -> Case:
        def load() -> Loaded:
            sample, meta = read(uid)
            cameras = [Camera(**camera) for camera in meta["cameras"]]
            frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
            mesh = rebuild(sample, cameras)
            out.mkdir(parents=True, exist_ok=True)
            save_mesh(mesh, out / f"{uid}.glb", frame, {"uid": uid})
            rgb = sample["images"][0].numpy().transpose(0, 2, 3, 1).astype(np.float64) / 2.0 + 0.5
            figures = compare_with_views(mesh, cameras, rgb, sample["hit"].numpy())
            if uid in originals:
                original = load_mesh(originals[uid]).transformed(frame)
                truth = Truth(MeshSurface(original.vertices, original.faces), original)
            else:
                truth = _stored_truth(sample["geometry"], rgb, sample["hit"].numpy())
            return Loaded(mesh, truth, figures)

        digest = _file_digest(originals[uid]) if uid in originals else "stored samples"
        return Case(uid, f"{identity} {uid} {digest}", load)

    return [case(uid) for uid in uids]


def mesh_files(folder: Path) -> dict[str, Path]:
    """Return the mesh files in a folder by name without suffix.

    Raises:
        UserError: it is no folder, holds no mesh, or two files of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that holds {', '.join(SUFFIXES)} files")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"{folder} holds none of {', '.join(SUFFIXES)}: name another folder")
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise UserError(
                f"{folder} holds both {found[path.stem].name} and {path.name}: keep one of them, "
                "for pairs are formed by name"
            )
        found[path.stem] = path
    return found


def folder_digest(folder: Path) -> str:
    """Return a hash of the contents of a folder, by which weights are known."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {_file_digest(path)}\n".encode())
    return digest.hexdigest()


def _by_uid(folder: Path) -> Mapping[str, Path]:
    """Return the mesh files below a folder by the uid that `source=folder` gives them."""
    if not folder.is_dir():
        raise UserError(f"reference={folder} is no folder: give that of the original assets")
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    return {make_uid(path.stem): path for path in files}


def _filling_frame(mesh: ColoredMesh, path: Path) -> SourceFrame:
    """Return the frame in which the mesh's faces fill the unit cube."""
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    try:
        return unit_cube_frame(used.min(axis=0), used.max(axis=0))
    except ValueError as error:
        raise UserError(f"the reference {path} cannot be normalised: {error}") from error


def _stored_truth(
    geometry: Mapping[str, ndarray],
    rgb: Float[ndarray, "v h w 3"],
    hit: ndarray,
) -> Truth:
    surface = SampledSurface(
        SurfaceSamples(
            geometry["surface_position"].astype(np.float64),
            geometry["surface_normal"].astype(np.float64),
        )
    )
    views: UInt8[ndarray, "v h w 4"] = np.rint(
        np.concatenate([np.clip(rgb, 0.0, 1.0), hit[..., None]], axis=-1) * 255.0
    ).astype(np.uint8)
    return Truth(surface, None, views)


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of its name when it cannot be read, which scoring will tell."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable {path.name}"

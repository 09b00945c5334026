"""From the 2.5D images of one result to the file that was asked for."""

import hashlib
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from data_pipeline.contract import Camera, SourceFrame, UserError
from modules.geometry.fit import check_steps
from modules.geometry.lift import Observation
from modules.geometry.mesh import WRITTEN_SUFFIXES, TexturedMesh, save_mesh
from modules.geometry.mesh_file import TEXTURE_FORMATS
from modules.geometry.point_files import save_points, save_splats
from modules.networks.denoiser_files import fingerprints
from modules.pipelines.mesh_report import MeshReport
from modules.pipelines.reconstruction import check_mesh_size

FORMATS = {"mesh": WRITTEN_SUFFIXES, "points": (".ply",), "splats": (".ply",)}
"""What can be written of 2.5D images, and the suffixes of the files."""


@runtime_checkable
class MeshMaker(Protocol):
    """What makes a mesh of 2.5D images: the Reconstructor, or a GivenMesh."""

    def lift(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
    ) -> Observation:
        """Return the points that the images show."""
        ...

    def __call__(
        self,
        images: Float[Tensor, "m v 3 h w"],
        cameras: Sequence[Camera],
        hit: Bool[Tensor, "v h w"] | None = None,
        *,
        grid: int,
        texture_px: int,
        refine_steps: int,
    ) -> TexturedMesh:
        """Return the mesh in the world frame."""
        ...


IN_WORLD = SourceFrame(scale=1.0, offset=(0.0, 0.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is written of each result.

    Args:
        format: `mesh`; or the lifted pixels themselves, as `points` or as 3D Gaussian `splats`.
        grid: cells along the unit cube's side when the surface is extracted.
        faces: the mesh is simplified to at most so many triangles.
        texture_px: side of the texture.
        texture_format: `png` or `jpeg`.
        refine_steps: of a fit of the mesh to the images; 0 is none.
    """

    format: str = "mesh"
    grid: int = 96
    faces: int = 10_000
    texture_px: int = 512
    texture_format: str = "png"
    refine_steps: int = 0

    def __post_init__(self) -> None:
        for key, known in (("format", FORMATS), ("texture_format", TEXTURE_FORMATS)):
            if getattr(self, key) not in known:
                raise UserError(f"{key}={getattr(self, key)} is not known: give {', '.join(known)}")
        check_mesh_size(self.grid, self.texture_px, self.faces)
        check_steps(self.refine_steps)
        if self.refine_steps and self.format != "mesh":
            raise UserError(f"refine_steps fits a mesh: leave it out for format={self.format}")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that can be written."""
        return FORMATS[self.format]


def export(
    images: Float[Tensor, "m v 3 h w"],
    cameras: Sequence[Camera],
    hit: Bool[Tensor, "v h w"] | None,
    path: Path,
    make: MeshMaker,
    options: ExportOptions,
    about: dict[str, Any],
    frame: SourceFrame = IN_WORLD,
) -> str:
    """Write one result and return a line about it.

    Args:
        images: rgb, normal and coord in [-1, 1].
        cameras: one per view.
        hit: exact foreground, if known.
        path: where to; its suffix fits the options' format.
        make: makes the mesh.
        options: what is written.
        about: provenance (JSON values), kept in the file together with the cameras, the frame and
            the mesh's report: a GLB has it in the `extras` of its scene, other files in a comment.
        frame: the file is in its source frame.
    """
    about = about | {
        "generator": f"Relief {importlib.metadata.version('relief')}",
        "cameras": [camera.to_json() for camera in cameras],
        "scale": frame.scale,
        "offset": list(frame.offset),
    }
    if options.format != "mesh":
        observation = make.lift(images, cameras, hit)
        save = save_points if options.format == "points" else save_splats
        save(observation, path, frame, {"relief": about})
        return f"{len(observation.position)} {options.format}"
    start = time.perf_counter()
    mesh = make(
        images,
        cameras,
        hit,
        grid=options.grid,
        texture_px=options.texture_px,
        refine_steps=options.refine_steps,
    )
    seconds = time.perf_counter() - start
    report = MeshReport.of(mesh, frame)
    save_mesh(
        mesh,
        path,
        frame,
        {"relief": about | {"refine_steps": options.refine_steps, "mesh": asdict(report)}},
        texture_format=options.texture_format,
        credit=_credit(about),
    )
    return f"{report}, {path.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s"


def model_digest(checkpoint: Path, stages: Sequence[str] = ("",)) -> str:
    """Return a SHA-256 of the weights of a pipeline folder, by which a file tells who made it.

    Of pretrained parts, which it names and does not hold, their fingerprints.

    Args:
        checkpoint: the folder.
        stages: subfolders that count; all by default.
    """
    digest = hashlib.sha256()
    weights = (path for each in stages for path in (checkpoint / each).rglob("*.safetensors"))
    for path in sorted(weights):
        name = path.relative_to(checkpoint).as_posix()
        digest.update(f"{name} {file_digest(path)}\n".encode())
    for part, weights in fingerprints(checkpoint / "denoiser").items():
        digest.update(f"{part} {weights}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _credit(about: dict[str, Any]) -> str | None:
    """Return author and licence of the asset that a result was made from, if they are known."""
    return ", ".join(str(about[key]) for key in ("author", "licence") if about.get(key)) or None

"""Images by name: the image files of a folder, or the views of its meshes."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from data_pipeline.contract import UserError
from modules.geometry.mesh import ColoredMesh, load_mesh
from modules.metrics.appearance import check_views, unseen_cameras
from modules.metrics.scoring import check_resolution
from modules.reporting.evaluation import code_digest
from modules.reporting.folder_cases import SUFFIXES, asset_digest, named_files
from modules.reporting.page import write_bytes
from modules.reporting.pictures import in_unit_cube, shaded_views, to_png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How meshes are turned into images; all of it is told in the report.

    Args:
        num_views: of each mesh.
        resolution_px: side of the views.
        cameras: which.
        light: which colours.
        background: colour behind the mesh, and behind images that are transparent.
    """

    num_views: int = 8
    resolution_px: int = 192
    cameras: str = "unseen_cameras: orthographic, around the unit cube that the mesh fills"
    light: str = "base colour under one light that moves with the camera"
    background: str = "white"

    def __post_init__(self) -> None:
        check_views(self.num_views, self.resolution_px)
        check_resolution(self.resolution_px)


class ImageFolder:
    """The images of a folder, by name; a folder that holds meshes stands for views of them.

    Args:
        folder: of meshes, or of images.
        options: how meshes are rendered.
        cache: folder that keeps the views.

    Attributes:
        notes: sentences on files that were not taken for images.

    Raises:
        UserError: it holds neither, or two files of one name.
    """

    def __init__(self, folder: Path, options: ViewOptions, cache: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give one that holds meshes or images")
        suffixes = [path.suffix.lower() for path in folder.iterdir()]
        self.has_meshes = any(suffix in SUFFIXES for suffix in suffixes)
        beside = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes) if self.has_meshes else 0
        self.notes = []
        if beside:
            self.notes = [
                f"{beside} image files beside the meshes of {folder} were taken for their textures."
            ]
        found = named_files(folder, SUFFIXES if self.has_meshes else (*SUFFIXES, *IMAGE_SUFFIXES))
        self.files = {unicodedata.normalize("NFC", name): path for name, path in found.items()}
        self._options = options
        self._cache = cache

    @property
    def num_images(self) -> int:
        """How many images there are if every file can be read."""
        return len(self.files) * (self._options.num_views if self.has_meshes else 1)

    def digest(self) -> str:
        """Return a hash of all files, whatever their names."""
        digests = sorted(asset_digest(path) for path in self.files.values())
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def images(self, name: str) -> list[UInt8[ndarray, "_ _ 3"]]:
        """Return the image of this name, or the views of the mesh, as sRGB on white.

        Raises:
            UserError: the file cannot be read.
        """
        file = self.files[name]
        if not self.has_meshes:
            return [read_image(file)]
        kind = json.dumps([asset_digest(file), file.suffix, asdict(self._options), code_digest()])
        key = hashlib.sha256(kind.encode()).hexdigest()[:24]
        paths = [self._cache / f"{key}-{i:02d}.png" for i in range(self._options.num_views)]
        if not all(path.is_file() for path in paths):
            mesh = _filling(load_mesh(file), file)
            cameras = unseen_cameras(self._options.num_views)
            views = shaded_views(mesh, cameras, self._options.resolution_px)
            for path, view in zip(paths, views, strict=True):
                write_bytes(path, to_png(view))
        return [read_image(path) for path in paths]

    def batches(self, size: int, failed: list[str]) -> Iterator[list[UInt8[ndarray, "_ _ 3"]]]:
        """Yield all images in lists of `size`; names of files without are added to `failed`."""

        def each() -> Iterator[UInt8[ndarray, "_ _ 3"]]:
            for name in self.files:
                try:
                    yield from self.images(name)
                except UserError:
                    failed.append(name)

        images = each()
        while batch := list(islice(images, size)):
            yield batch


def _filling(mesh: ColoredMesh, file: Path) -> ColoredMesh:
    try:
        return in_unit_cube(mesh)
    except ValueError as error:  # it has no face, or no extent
        raise UserError(f"{file.name} cannot be normalised: {error}") from error


def read_image(path: Path) -> UInt8[ndarray, "h w 3"]:
    """Return an image file as sRGB; where it is transparent, white shows.

    Raises:
        UserError: it is no readable image.
    """
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} is no readable image: {error}") from error
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def file_name(text: str) -> str:
    """Return the name by which a list means a file: without folder and suffix, in NFC."""
    name = PurePosixPath(unicodedata.normalize("NFC", text)).name
    known = next((s for s in (*SUFFIXES, *IMAGE_SUFFIXES) if name.lower().endswith(s)), "")
    return name[: len(name) - len(known)]

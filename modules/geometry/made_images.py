"""2.5D images that a model made of known assets, as files: `UID.NAME.npz` in a folder.

An autoencoder's round trips, or a diffusion model's images of an asset that was partly noised. They
bring their own cameras, and no foreground: that is found in them as in all made images.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_pipeline.contract import Camera, UserError
from modules.geometry.cameras import cameras_from_arrays


def save_made_images(
    file: Path, images: Float[ndarray, "m v 3 h w"], cameras: Sequence[Camera]
) -> None:
    """Write images in [-1, 1], in half precision, with their cameras; the file appears whole."""
    nan = float("nan")
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("wb") as stream:
        np.savez(
            stream,
            images=images.astype(np.float16),
            camera_to_world=np.stack([camera.matrix for camera in cameras]),
            ortho_scale=np.array([camera.ortho_scale or nan for camera in cameras]),
            fov_deg=np.array([camera.fov_deg or nan for camera in cameras]),
        )
    os.replace(temporary, file)


def made_images_of(uid: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files that folders hold of an asset, in a fixed order."""
    return [path for folder in folders for path in sorted(folder.glob(f"{uid}.*npz"))]


def load_made_images(
    file: Path,
) -> tuple[Float[ndarray, "m v 3 h w"], tuple[Camera, ...]]:
    """Read what `save_made_images` wrote.

    Raises:
        UserError: the file is damaged or something else, or holds NaN or infinity.
    """
    try:
        with np.load(file) as stored:
            images = stored["images"].astype(np.float64)
            arrays = [stored[key] for key in ("camera_to_world", "ortho_scale", "fov_deg")]
        if not np.isfinite(images).all():
            raise ValueError("NaN or infinity")
        return images, cameras_from_arrays(*arrays)
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(
            f"{file} holds no made images ({type(error).__name__}: {error}): make them "
            "anew, or leave its folder out of data.dataset.prepare.made"
        ) from error

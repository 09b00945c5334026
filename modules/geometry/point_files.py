"""Files of the points that 2.5D images show: a coloured cloud, and 3D Gaussian splats."""

import pathlib

from data_pipeline.contract import SourceFrame
from modules.geometry.lift import Observation
from modules.geometry.mesh_file import ply_bytes, to_ply, write_files
from modules.geometry.splats import splat_columns, splats_from


def save_points(
    observation: Observation,
    path: pathlib.Path,
    frame: SourceFrame | None = None,
    extras: dict | None = None,
) -> None:
    """Write every foreground pixel as a point with its normal and colour: a binary PLY, Z up.

    Args:
        observation: the lifted images.
        path: where to.
        frame: if given, the file is in the source frame rather than in world units.
        extras: kept as a comment (JSON values only).

    Raises:
        UserError: the file cannot be written.
    """
    position = observation.position if frame is None else frame.to_source(observation.position)
    content = to_ply(position, observation.normal, observation.colour, extras=extras)
    write_files({path: content})


def save_splats(
    observation: Observation,
    path: pathlib.Path,
    frame: SourceFrame | None = None,
    extras: dict | None = None,
) -> None:
    """Write every foreground pixel as a flat 3D Gaussian, in the PLY that splat viewers read, Z up.

    Args and errors as for `save_points`.
    """
    splats = splats_from(observation)
    if frame is not None:
        splats = splats.scaled(frame)
    write_files({path: ply_bytes(splat_columns(splats), None, extras)})

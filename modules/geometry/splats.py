"""Lifted pixels as 3D Gaussians (Kerbl et al. 2023), flat on the surface: nothing is optimised."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from data_pipeline.contract import SourceFrame
from modules.geometry.lift import Observation

SH_DC = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): a colour c is stored as (c - .5) / SH_DC."""

SH_REST = 45
"""Coefficients of degrees 1 to 3, all zero here: the reference viewer expects their columns."""

SPREAD = 0.6
"""Standard deviation along the surface in pixel spacings: neighbours meet without a gap."""

FLATNESS = 0.05
"""Standard deviation along the normal in pixel spacings."""

LEAST_COSINE = 0.33
"""A pixel seen at a slant shows 1 / cos of the surface: splats are stretched 3 times at most."""

OPACITY = 0.99


@dataclass(frozen=True)
class Splats:
    """3D Gaussians of one colour each.

    Args:
        position: centres.
        normal: unit normals, along the third axis.
        scale: standard deviations along the three axes, in the unit of `position`.
        rotation: unit quaternions (w, x, y, z) that turn the axes into place.
        colour: sRGB in [0, 1], as trained splats hold it.
    """

    position: Float[ndarray, "n 3"]
    normal: Float[ndarray, "n 3"]
    scale: Float[ndarray, "n 3"]
    rotation: Float[ndarray, "n 4"]
    colour: Float[ndarray, "n 3"]

    def scaled(self, frame: SourceFrame) -> "Splats":
        """Return the splats in the source frame."""
        return replace(
            self, position=frame.to_source(self.position), scale=self.scale / frame.scale
        )


def splats_from(observation: Observation) -> Splats:
    """Return a disc for every lifted pixel, as wide as the patch of surface that it shows."""
    toward = np.empty_like(observation.position)
    for index, camera in enumerate(observation.cameras):
        own = observation.view == index
        toward[own] = camera.matrix[:3, 2]
        if camera.projection == "perspective":
            away = camera.matrix[:3, 3] - observation.position[own]
            toward[own] = away / np.linalg.norm(away, axis=1, keepdims=True)
    normal = observation.normal
    cosine = (normal * toward).sum(axis=1, keepdims=True)
    # Along the slope the patch is 1 / cos as long. Seen head-on any tangent will do.
    slope = toward - cosine * normal
    helper = np.eye(3)[np.abs(normal).argmin(axis=1)]
    any_tangent = helper - (helper * normal).sum(axis=1, keepdims=True) * normal
    slope = np.where(np.linalg.norm(slope, axis=1, keepdims=True) > 1e-3, slope, any_tangent)
    slope /= np.linalg.norm(slope, axis=1, keepdims=True)
    axes = np.stack([slope, np.cross(normal, slope), normal], axis=-1)
    long = SPREAD / np.maximum(cosine, LEAST_COSINE)
    shape = np.concatenate([long, np.full_like(long, SPREAD), np.full_like(long, FLATNESS)], axis=1)
    return Splats(
        position=observation.position,
        normal=normal,
        scale=shape * observation.spacing,
        rotation=np.roll(Rotation.from_matrix(axes).as_quat(), 1, axis=1),
        colour=observation.colour,
    )


def splat_columns(splats: Splats) -> dict[str, ndarray]:
    """Return the columns of the reference implementation's PLY, before its activations.

    Scales as logarithms, opacity as a logit, colours as coefficients of spherical harmonics.
    """
    columns = dict(zip(("x", "y", "z"), splats.position.T, strict=True))
    columns |= dict(zip(("nx", "ny", "nz"), splats.normal.T, strict=True))
    constant = (splats.colour - 0.5) / SH_DC
    columns |= {f"f_dc_{i}": constant[:, i] for i in range(3)}
    columns |= {f"f_rest_{i}": np.zeros(len(constant)) for i in range(SH_REST)}
    columns["opacity"] = np.full(len(constant), np.log(OPACITY / (1.0 - OPACITY)))
    columns |= {f"scale_{i}": np.log(splats.scale[:, i]) for i in range(3)}
    columns |= {f"rot_{i}": splats.rotation[:, i] for i in range(4)}
    return {name: values.astype(np.float32) for name, values in columns.items()}

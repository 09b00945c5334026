"""`geometry.npz`: surface samples and signed-distance samples of one asset."""

import io
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.contract import GEOMETRY_ARRAYS, RenderSpec
from data_pipeline.render.blender.scene import OPAQUE_ALPHA
from data_pipeline.render.blender.signed_distance import Solid
from data_pipeline.render.blender.surface import Surface, build_tree
from data_pipeline.render.failures import AssetFailure

NEAR_SCALES = (0.005, 0.02, 0.08)
"""Standard deviations, in world units, of the noise that takes surface points off the surface."""

SDF_HALF_SIDE = 0.55
"""Uniform signed-distance samples fill a cube of this half side: the asset and a margin."""


@dataclass(frozen=True)
class Geometry:
    """The arrays of contract.GEOMETRY_ARRAYS, and what is to be said about them."""

    arrays: dict[str, NDArray]
    qa: dict[str, object]


def sample_geometry(surface: Surface, spec: RenderSpec, seed: int) -> Geometry:
    """Sample the surface and the space around it, as a function of surface, spec and seed alone."""
    rng = np.random.default_rng(seed)
    samples = surface.sample(max(spec.surface_points, spec.sdf_points), rng)
    near = spec.sdf_points // 2
    anchors = samples.position[:near].astype(np.float64)
    scales = np.resize(NEAR_SCALES, near)[:, None]
    points = np.concatenate(
        [
            anchors + scales * rng.standard_normal((near, 3)),
            rng.uniform(-SDF_HALF_SIDE, SDF_HALF_SIDE, (spec.sdf_points - near, 3)),
        ]
    ).astype(np.float32)
    solid = Solid(_opaque(surface), _build_distance)
    signed = solid.signed_distance(points)
    arrays = {
        "surface_position": samples.position[: spec.surface_points],
        "surface_normal": samples.normal[: spec.surface_points],
        "surface_albedo": samples.albedo[: spec.surface_points],
        "sdf_position": points,
        "sdf_distance": signed.distance,
        "sdf_confidence": signed.confidence,
    }
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise AssetFailure("nonfinite", f"{name} holds NaN or infinite values")
    qa = {
        "inside_share": round(float((signed.distance[near:] < 0).mean()), 6),
        "sheet_share": round(solid.sheet_share, 6),
        "skin_share": round(solid.skin_share, 6),
        "sign_confidence": round(float(signed.confidence.mean()), 6),
        "unsupported_nodes": list(samples.unsupported),
    }
    return Geometry(arrays, qa)


def encode_npz(arrays: dict[str, NDArray]) -> bytes:
    """Return an .npz whose bytes depend on the arrays alone (numpy's own stamps the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in GEOMETRY_ARRAYS:
            member = io.BytesIO()
            np.lib.format.write_array(
                member, np.ascontiguousarray(arrays[name]), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _opaque(surface: Surface) -> NDArray[np.float64]:
    """Return the triangles that can be seen: one whose corners and centre are clear is dropped."""
    count = len(surface.triangles)
    places = np.concatenate([np.full((1, 3), 1 / 3), 0.9 * np.eye(3) + 0.1 / 3])
    seen = np.zeros(count, dtype=bool)
    for place in places:
        _, alpha, _ = surface.shade(np.arange(count), np.tile(place, (count, 1)))
        seen |= alpha >= OPAQUE_ALPHA
    return surface.triangles[seen] if seen.any() else surface.triangles


def _build_distance(triangles: NDArray[np.float64]):
    """Return the exact unsigned distance by Blender's own bounding volume tree."""
    tree = build_tree(triangles)

    def distance(points: NDArray[np.floating]) -> NDArray[np.float64]:
        find = tree.find_nearest
        return np.array([find(point)[3] for point in points.tolist()])

    return distance

"""What a sample is: frames, cameras, encodings, names. The one thing that data and training share.

Imported by the Blender workers (numpy < 2) and by training code, hence standard library and numpy
only. docs/conventions.md says the same in prose; the golden tests hold both to it.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CONVENTIONS_VERSION = 1
"""Stored with every sample, latent cache and exported model; a mismatch is an error at load."""

MODALITIES = ("rgb", "normal", "coord")
"""Order of the modality axis `m` in every array."""

CUBE_HALF_SIDE = 0.5
"""An asset's box is centred at 0 and its longest side is 1: it fits [-0.5, 0.5]^3 (Z up)."""

ORTHO6_SCALE = 1.1
"""World units that an orthographic image spans, edge to edge."""

ORTHO_CAMERA_DISTANCE = 2.0
"""Distance of an orthographic camera from the origin; it changes depth only, never the image."""

SAMPLE_MEMBERS = ("coord.png", "geometry.npz", "hit.png", "meta.json", "normal.png", "rgb.png")
"""Members of a sample in a shard, after `{uid}.`; images hold the views stacked top to bottom."""

GEOMETRY_ARRAYS = (
    "surface_position",  # n 3  float32, world
    "surface_normal",  #   n 3  float32, unit, the face's geometric normal
    "surface_albedo",  #   n 3  uint8, sRGB
    "sdf_position",  #     k 3  float32, world
    "sdf_distance",  #     k    float32, world units, positive outside
    "sdf_confidence",  #   k    float32 in [0, 1]: how sure the sign is
)
"""Arrays of `geometry.npz`."""


class UserError(Exception):
    """Something that the user can mend: the message says what, where, and what to do about it."""


# ---------------------------------------------------------------------------------------- cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One view: where it stands and how it projects.

    Args:
        name: name of the view within its layout, such as `az090`.
        camera_to_world: 4x4, row-major; the camera looks along its -Z with +Y up.
        projection: `orthographic` or `perspective`.
        ortho_scale: world units across the image; orthographic only.
        fov_deg: angle across the image, edge to edge; perspective only.
    """

    name: str
    camera_to_world: Sequence[Sequence[float]]
    projection: Literal["orthographic", "perspective"] = "orthographic"
    ortho_scale: float | None = None
    fov_deg: float | None = None

    def __post_init__(self) -> None:
        matrix = np.asarray(self.camera_to_world, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"camera {self.name}: camera_to_world is {matrix.shape}, not (4, 4)")
        if not np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6):
            raise ValueError(
                f"camera {self.name}: the rotation of camera_to_world is not a rotation"
            )
        needed = {"orthographic": self.ortho_scale, "perspective": self.fov_deg}
        if self.projection not in needed:
            raise ValueError(f"camera {self.name}: unknown projection {self.projection!r}")
        if needed[self.projection] is None:
            key = "ortho_scale" if self.projection == "orthographic" else "fov_deg"
            raise ValueError(f"camera {self.name}: a {self.projection} camera needs {key}")
        object.__setattr__(
            self, "camera_to_world", tuple(tuple(float(x) for x in row) for row in matrix)
        )

    @property
    def matrix(self) -> NDArray[np.float64]:
        """camera_to_world as a fresh 4x4 float64 array."""
        return np.asarray(self.camera_to_world, dtype=np.float64)

    def rays(self, resolution_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the world rays through all pixel centres.

        Args:
            resolution_px: side of the square image.

        Returns:
            Origins and unit directions, each `(h, w, 3)`; pixel (0, 0) is top left and its centre
            lies at (0.5, 0.5).
        """
        centre = (np.arange(resolution_px) + 0.5) / resolution_px * 2.0 - 1.0
        x, y = np.meshgrid(centre, -centre)
        matrix = self.matrix
        right, up, back, eye = (matrix[:3, i] for i in range(4))
        if self.projection == "orthographic":
            assert self.ortho_scale is not None
            half = self.ortho_scale / 2.0
            origins = eye + half * (x[..., None] * right + y[..., None] * up)
            return origins, np.broadcast_to(-back, origins.shape).copy()
        assert self.fov_deg is not None
        half = math.tan(math.radians(self.fov_deg) / 2.0)
        directions = half * (x[..., None] * right + y[..., None] * up) - back
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        return np.broadcast_to(eye, directions.shape).copy(), directions

    def project(
        self, points: NDArray[np.floating], resolution_px: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Project world points to pixels.

        Args:
            points: `(..., 3)`, world.
            resolution_px: side of the square image.

        Returns:
            Pixel coordinates `(..., 2)` as (x right, y down), and depth `(...)` along the viewing
            axis, in world units, positive in front of the camera.
        """
        matrix = self.matrix
        local = (np.asarray(points, dtype=np.float64) - matrix[:3, 3]) @ matrix[:3, :3]
        depth = -local[..., 2]
        if self.projection == "orthographic":
            assert self.ortho_scale is not None
            plane = local[..., :2] / (self.ortho_scale / 2.0)
        else:
            assert self.fov_deg is not None
            plane = local[..., :2] / (math.tan(math.radians(self.fov_deg) / 2.0) * depth[..., None])
        pixels = np.stack([plane[..., 0] + 1.0, 1.0 - plane[..., 1]], axis=-1) / 2.0 * resolution_px
        return pixels, depth

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary; `Camera(**it)` gives the camera back."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def look_at_origin(
    azimuth_deg: float, elevation_deg: float, distance: float
) -> tuple[tuple[float, ...], ...]:
    """Return camera_to_world of a camera that looks at the origin.

    Azimuth 0 stands at -Y and looks along +Y; it grows counter-clockwise seen from +Z, so 90 stands
    at +X. At elevation 90 the image's up is +Y, at -90 it is -Y (for azimuth 0).
    """
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    horizontal = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    back = math.cos(elevation) * horizontal + np.array([0.0, 0.0, math.sin(elevation)])
    right = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    up = np.cross(back, right)
    matrix = np.eye(4)
    matrix[:3, :4] = np.stack([right, up, back, distance * back], axis=1)
    matrix = np.round(matrix, 15) + 0.0  # exact zeros for the axis-aligned views, and no -0.0
    return tuple(tuple(row) for row in matrix.tolist())


def _ortho6() -> tuple[Camera, ...]:
    angles = {f"az{azimuth:03d}": (azimuth, 0) for azimuth in (0, 90, 180, 270)}
    angles |= {"top": (0, 90), "bottom": (0, -90)}
    return tuple(
        Camera(
            name=name,
            camera_to_world=look_at_origin(azimuth, elevation, ORTHO_CAMERA_DISTANCE),
            projection="orthographic",
            ortho_scale=ORTHO6_SCALE,
        )
        for name, (azimuth, elevation) in angles.items()
    )


def _pinhole4() -> tuple[Camera, ...]:
    fov_deg = 30.0
    distance = math.sqrt(3.0) * CUBE_HALF_SIDE / math.sin(math.radians(fov_deg) / 2.0)
    return tuple(
        Camera(
            name=f"az{azimuth:03d}",
            camera_to_world=look_at_origin(azimuth, 5.0, distance),
            projection="perspective",
            fov_deg=fov_deg,
        )
        for azimuth in (0, 90, 180, 270)
    )


VIEW_LAYOUTS = {"ortho6": _ortho6(), "pinhole4": _pinhole4()}
"""View layouts by name: the cameras in storage order."""


def view_layout(name: str) -> tuple[Camera, ...]:
    """Return the cameras of a view layout in storage order, or raise UserError."""
    if name not in VIEW_LAYOUTS:
        raise UserError(f"unknown view layout {name!r}: choose one of {', '.join(VIEW_LAYOUTS)}")
    return VIEW_LAYOUTS[name]


# --------------------------------------------------------------------------------------- encodings


def encode_unit(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Encode [0, 1] as 16 bit, rounding to nearest; values outside are clipped."""
    return np.rint(np.clip(values, 0.0, 1.0) * 65535.0).astype(np.uint16)


def encode_normal(normal: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Encode world normals, (n + 1) / 2 as 16 bit; the background's zero vector becomes 0.5."""
    return encode_unit((np.asarray(normal, dtype=np.float64) + 1.0) / 2.0)


def decode_normal(code: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Decode `encode_normal`; the background comes back as a vector shorter than 3e-5."""
    return (code.astype(np.float64) / 65535.0 * 2.0 - 1.0).astype(np.float32)


def encode_coord(position: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Encode world positions in [-0.5, 0.5] as p + 0.5 in 16 bit (steps of 1.5e-5)."""
    return encode_unit(np.asarray(position, dtype=np.float64) + CUBE_HALF_SIDE)


def decode_coord(code: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Decode `encode_coord` to world positions."""
    return (code.astype(np.float64) / 65535.0 - CUBE_HALF_SIDE).astype(np.float32)


def srgb_to_linear(srgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, dtype=np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert linear light in [0, 1] to sRGB (IEC 61966-2-1)."""
    linear = np.maximum(np.asarray(linear, dtype=np.float64), 0.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1.0 / 2.4) - 0.055)


# ------------------------------------------------------------------------------------------ frames


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFrame:
    """How world maps back to the asset's own frame (Z up): world = p * scale + offset."""

    scale: float
    offset: tuple[float, float, float]

    def to_world(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map source points `(..., 3)` to world."""
        return np.asarray(points, dtype=np.float64) * self.scale + np.asarray(self.offset)

    def to_source(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map world points `(..., 3)` to the source frame."""
        return (np.asarray(points, dtype=np.float64) - np.asarray(self.offset)) / self.scale


def unit_cube_frame(low: NDArray[np.floating], high: NDArray[np.floating]) -> SourceFrame:
    """Return the frame that centres the box [low, high] at 0 and makes its longest side 1."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    extent = float((high - low).max())
    if not math.isfinite(extent) or extent <= 0.0:
        raise ValueError(f"a box of extent {extent} cannot be normalised")
    offset = -(low + high) / 2.0 / extent
    return SourceFrame(
        scale=1.0 / extent, offset=(offset[0].item(), offset[1].item(), offset[2].item())
    )


# ------------------------------------------------------------------------------------ render specs


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSpec:
    """Everything, besides the asset, that changes a rendered sample.

    Args:
        layout: name of the view layout.
        resolution_px: side of each view's square image.
        samples: anti-aliasing samples of the rgb pass; the other passes take exactly one.
        lighting: `albedo` (base colour, unlit).
        surface_points: points in `geometry.npz` sampled on the surface, by area.
        sdf_points: points in `geometry.npz` with a signed distance.
        seed: mixed with the uid into each asset's own seed.
    """

    layout: str = "ortho6"
    resolution_px: int = 512
    samples: int = 16
    lighting: str = "albedo"
    surface_points: int = 16384
    sdf_points: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        view_layout(self.layout)
        if self.resolution_px < 16 or self.resolution_px % 8:
            raise UserError(
                f"resolution_px={self.resolution_px} must be a multiple of 8 and at least 16: "
                "the image autoencoders shrink images 8 times"
            )
        if self.lighting not in ("albedo",):
            raise UserError(f"lighting={self.lighting!r} is not known: choose albedo")
        for key in ("samples", "surface_points", "sdf_points"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The layout's cameras in storage order."""
        return view_layout(self.layout)

    def asset_seed(self, uid: str) -> int:
        """Return the seed of one asset, a function of its uid and this spec's seed alone."""
        digest = hashlib.sha256(f"{self.seed}:{uid}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def config_hash(self, blender_version: str, renderer_version: str) -> str:
        """Return 16 hex digits that name everything that changes pixels.

        Sets of different hashes never mix.
        """
        content = asdict(self) | {
            "conventions": CONVENTIONS_VERSION,
            "blender": blender_version,
            "renderer": renderer_version,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------ naming


def make_uid(name: str) -> str:
    """Return `name` made safe as a uid: lower ASCII letters, digits, `_` and `-`; never empty.

    WebDataset cuts a key at the first dot, so a uid holds none. A name in which nothing survives
    (such as one written in Chinese) is named by its hash.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    uid = re.sub(r"[^a-z0-9_-]+", "_", ascii_name.lower()).strip("_")
    if not uid:
        uid = "asset_" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return uid[:80]  # `{uid}.geometry.npz` must fit the 100 bytes of a USTAR name


META_KEYS = (
    "uid", "source", "licence", "author", "captions", "scale", "offset", "cameras", "conventions",
    "config_hash", "render_spec", "blender", "device", "counts", "qa",
)  # fmt: skip
"""Keys of `meta.json`: only what is a function of asset and config, never times or hosts."""


def check_meta(meta: dict[str, Any]) -> None:
    """Raise UserError unless `meta` is a sample's metadata in the conventions of this code."""
    missing = [key for key in META_KEYS if key not in meta]
    if missing:
        raise UserError(f"sample {meta.get('uid', '?')}: meta.json lacks {', '.join(missing)}")
    check_conventions(meta["conventions"], f"sample {meta['uid']}")


def check_conventions(version: object, where: str) -> None:
    """Raise UserError unless `version` is the conventions version of this code."""
    if version != CONVENTIONS_VERSION:
        raise UserError(
            f"{where} follows conventions version {version}, this code follows "
            f"{CONVENTIONS_VERSION}: make it again, or check out the code that made it"
        )

"""What a sample is: frames, cameras, encodings, names. The one thing that data and training share.

Imported by the Blender workers (numpy < 2) and by training code, hence standard library and numpy
only. docs/conventions.md says the same in prose; the golden tests hold both to it.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cameras import (
    CUBE_HALF_SIDE,
    ORTHO6_SCALE,
    ORTHO_CAMERA_DISTANCE,
    Camera,
    look_at_origin,
    ortho6,
    pinhole4,
    random_camera,
)

__all__ = ["CUBE_HALF_SIDE", "ORTHO6_SCALE", "ORTHO_CAMERA_DISTANCE", "Camera", "look_at_origin"]
"""Re-exported: a user of samples needs this module alone."""

MAX_RESOLUTION_PX = 8192

CONVENTIONS_VERSION = 1
"""Stored with every sample, latent cache and exported model; a mismatch is an error at load."""

MODALITIES = ("rgb", "normal", "coord")
"""Order of the modality axis `m` in every array."""

SAMPLE_MEMBERS = ("coord.png", "geometry.npz", "hit.png", "meta.json", "normal.png", "rgb.png")
"""Members of a sample in a shard, after `{uid}.`; images hold the views stacked top to bottom."""

LIT_MEMBERS = ("albedo.png",)
"""Members more where views are lit: the base colour of those views (RGB), in their order."""

LIGHTINGS = ("albedo", "studio", "hdri")
"""Lighting presets. Under `albedo` rgb is the base colour itself, unlit."""

DEVICES = ("cpu", "cuda", "optix", "hip")
"""What Cycles can render on; `auto` is resolved to one of them before anything is rendered."""

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

VIEW_LAYOUTS = {"ortho6": ortho6(), "pinhole4": pinhole4(), "random": ()}
"""View layouts by name: the cameras in storage order. `random` has none but the random views."""


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


def depth_of_coord(camera: Camera, coord: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the depth of world positions: why samples hold no depth images.

    Args:
        camera: of the view.
        coord: `(..., 3)`, world positions, meaningful where `hit`.

    Returns:
        `(...)`, world units along the viewing axis (not along the ray), positive in front.
    """
    matrix = camera.matrix
    return (matrix[:3, 3] - np.asarray(coord, dtype=np.float64)) @ matrix[:3, 2]


def srgb_to_linear(srgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, dtype=np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convert linear light in [0, 1] to sRGB (IEC 61966-2-1), in the precision of `linear`."""
    linear = np.maximum(linear, 0.0)
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
class QaLimits:
    """What a sound sample may measure at most (least, for `min_`); `render/quality.py` measures.

    Beyond one of the first four the asset fails; beyond another its sample keeps a flag.
    """

    min_hit_share: float = 2e-4  #      blank: share of pixels hit in the view that shows most
    max_border_share: float = 0.0  #    clipped: share of a view's border pixels that are covered
    max_abs_coord: float = 0.501  #     clipped: the cube, and what float32 costs
    max_missing_textures: int = 0  #    missing_texture: images that materials use and lack
    min_colour_spread: float = 2.0  #   levels of 255 between darkest and brightest, any channel
    max_pink_share: float = 0.02  #     magenta pixels: how Cycles shows a missing image
    max_away_share: float = 0.05  #     normals that look away from the camera
    max_reprojection_px: float = 0.01  # a position's distance from its own pixel's centre
    max_normal_angle_deg: float = 25.0  # median, shading normal against the gradient of coord
    max_flip_share: float = 0.05  #     normals opposed to the gradient of coord

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            most = 1.0 if key.endswith("_share") else math.inf
            if not 0.0 <= value <= most:  # NaN neither
                raise UserError(f"qa.{key}={value} must lie between 0 and {most:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdri:
    """Environment images for lighting `hdri`.

    Args:
        paths: EXR or HDR files, equirectangular; each asset draws one. None: a procedural sky.
    """

    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in self.paths:
            if not Path(path).is_file():
                raise UserError(f"hdri.paths: no file at {path}")

    def identity(self) -> list[dict[str, str]]:
        """Return name and SHA-256 of every file: what a config hash may depend on."""
        return [
            {"file": Path(p).name, "sha256": hashlib.sha256(Path(p).read_bytes()).hexdigest()}
            for p in self.paths
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSpec:
    """Everything, besides the asset, that changes a rendered sample.

    Args:
        layout: name of the view layout.
        random_views: perspective views more, of random pose and field of view, after the layout's.
        resolution_px: side of each view's square image.
        samples: anti-aliasing samples of the rgb pass; the other passes take exactly one.
        lighting: `albedo` (base colour, unlit), `studio` (three area lights) or `hdri` (a sky).
        random_lighting: of the random views; None: as `lighting`. Under `hdri` each random view
            draws a sky of its own, while the layout's views share one.
        bounces: of light between surfaces, in lit views.
        denoise: lit views, by Open Image Denoise; unlit ones hold no noise.
        hdri: environment images.
        device: `cpu`, `cuda`, `optix`, `hip`, or `auto`: a GPU where Blender finds one.
        surface_points: points in `geometry.npz` sampled on the surface, by area.
        sdf_points: points in `geometry.npz` with a signed distance.
        seed: mixed with the uid into each asset's own seed.
        qa: limits of the quality figures.
    """

    layout: str = "ortho6"
    random_views: int = 0
    resolution_px: int = 512
    samples: int = 16
    lighting: str = "albedo"
    random_lighting: str | None = None
    bounces: int = 1
    denoise: bool = True
    hdri: Hdri = field(default_factory=Hdri)
    device: str = "cpu"
    surface_points: int = 16384
    sdf_points: int = 16384
    seed: int = 0
    qa: QaLimits = field(default_factory=QaLimits)

    def __post_init__(self) -> None:
        view_layout(self.layout)
        if not 16 <= self.resolution_px <= MAX_RESOLUTION_PX or self.resolution_px % 8:
            raise UserError(
                f"resolution_px={self.resolution_px} must be a multiple of 8 (the image "
                f"autoencoders shrink images 8 times) from 16 to {MAX_RESOLUTION_PX}"
            )
        for key in ("lighting", "random_lighting"):
            if getattr(self, key) not in (*LIGHTINGS, *((None,) if key != "lighting" else ())):
                raise UserError(
                    f"{key}={getattr(self, key)!r} is not known: choose {', '.join(LIGHTINGS)}"
                )
        if self.device not in ("auto", *DEVICES):
            raise UserError(f"device={self.device} is not known: auto, {', '.join(DEVICES)}")
        for key, least in (
            ("samples", 1), ("surface_points", 1), ("sdf_points", 1), ("random_views", 0),
            ("bounces", 0),
        ):  # fmt: skip
            if getattr(self, key) < least:
                raise UserError(f"{key}={getattr(self, key)} must be at least {least}")
        if not self.lightings:
            raise UserError("layout=random has no views of its own: give random_views=N as well")

    @classmethod
    def from_mapping(cls, values: Any) -> "RenderSpec":
        """Return the spec of plain values: a config, or what `dataclasses.asdict` gives."""
        plain = {key: values[key] for key in cls.__dataclass_fields__ if key not in ("hdri", "qa")}
        return cls(
            **plain,
            hdri=Hdri(paths=tuple(str(path) for path in values["hdri"]["paths"])),
            qa=QaLimits(**{key: values["qa"][key] for key in QaLimits.__dataclass_fields__}),
        )

    @property
    def lightings(self) -> tuple[str, ...]:
        """The lighting of every view in storage order."""
        base = (self.lighting,) * len(view_layout(self.layout))
        return base + (self.random_lighting or self.lighting,) * self.random_views

    def cameras(self, uid: str) -> tuple[Camera, ...]:
        """Return the cameras of one asset in storage order: the layout's, then the random ones."""
        rng = np.random.default_rng([1, self.asset_seed(uid)])
        extra = tuple(random_camera(f"random{i:02d}", rng) for i in range(self.random_views))
        return view_layout(self.layout) + extra

    def asset_seed(self, uid: str) -> int:
        """Return the seed of one asset, a function of its uid and this spec's seed alone."""
        digest = hashlib.sha256(f"{self.seed}:{uid}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def light_seeds(self, uid: str) -> tuple[int, ...]:
        """Return the seeds of the views' lights: the layout's share one, random views do not."""
        seed = self.asset_seed(uid)
        num_base = len(view_layout(self.layout))
        return (seed,) * num_base + tuple((seed + i + 1) % 2**64 for i in range(self.random_views))

    def identity(self) -> dict[str, Any]:
        """Return the spec as plain JSON values that name no path of this machine."""
        return asdict(self) | {"hdri": self.hdri.identity()}

    def config_hash(self, blender_version: str, renderer_version: str) -> str:
        """Return 16 hex digits that name everything that changes a sample.

        Sets of different hashes never mix. The kind of device counts: GPUs round otherwise.

        Raises:
            ValueError: the device is still `auto`.
        """
        if self.device == "auto":
            raise ValueError("resolve device=auto first")
        content = self.identity() | {
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
        uid = "asset_" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return uid[:80]  # `{uid}.geometry.npz` must fit the 100 bytes of a USTAR name


META_KEYS = (
    "uid", "source", "licence", "author", "captions", "scale", "offset", "cameras", "lightings",
    "conventions", "config_hash", "render_spec", "blender", "device", "counts", "qa",
)  # fmt: skip
"""Keys of `meta.json`: only what is a function of asset and config, never times or hosts."""


def layout_cameras(meta: Mapping[str, Any]) -> list[Camera]:
    """Return the cameras of the layout's views, which are the first of a sample's views.

    The random views after them differ from asset to asset and may be lit: they are conditions, and
    no part of a 2.5D latent. Samples of `layout=random` have no others: then all are returned.
    """
    cameras = [Camera(**camera) for camera in meta["cameras"]]
    return cameras[: len(cameras) - meta["render_spec"]["random_views"]] or cameras


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

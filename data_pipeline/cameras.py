"""A camera, and where the layouts' cameras stand. Frames: docs/conventions.md."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CUBE_HALF_SIDE = 0.5
"""An asset's box is centred at 0 and its longest side is 1: it fits [-0.5, 0.5]^3 (Z up)."""

ORTHO6_SCALE = 1.1
"""World units that an orthographic image spans, edge to edge."""

ORTHO_CAMERA_DISTANCE = 2.0
"""Distance of an orthographic camera from the origin; it changes depth only, never the image."""

RANDOM_FOV_DEG = (20.0, 60.0)
"""Fields of view of random views, uniform."""

RANDOM_SINE_OF_ELEVATION = (-0.5, 0.98)
"""Random views stand evenly over the sphere between elevations of -30 and 78 degrees."""

RANDOM_DISTANCE = (1.0, 1.25)
"""Distance of random views, in units of that at which the cube's bounding sphere fits."""


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


def fitting_distance(fov_deg: float) -> float:
    """Return the distance from which the cube's bounding sphere just fits the image."""
    return math.sqrt(3.0) * CUBE_HALF_SIDE / math.sin(math.radians(fov_deg) / 2.0)


def ortho6() -> tuple[Camera, ...]:
    """Return the four sides, top and bottom, orthographic."""
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


def pinhole4() -> tuple[Camera, ...]:
    """Return four perspective views from slightly above."""
    fov_deg = 30.0
    distance = fitting_distance(fov_deg)
    return tuple(
        Camera(
            name=f"az{azimuth:03d}",
            camera_to_world=look_at_origin(azimuth, 5.0, distance),
            projection="perspective",
            fov_deg=fov_deg,
        )
        for azimuth in (0, 90, 180, 270)
    )


def random_camera(name: str, rng: np.random.Generator) -> Camera:
    """Return a perspective camera of random pose and field of view that sees the whole asset."""
    fov_deg = float(rng.uniform(*RANDOM_FOV_DEG))
    elevation_deg = math.degrees(math.asin(rng.uniform(*RANDOM_SINE_OF_ELEVATION)))
    distance = fitting_distance(fov_deg) * float(rng.uniform(*RANDOM_DISTANCE))
    return Camera(
        name=name,
        camera_to_world=look_at_origin(float(rng.uniform(0.0, 360.0)), elevation_deg, distance),
        projection="perspective",
        fov_deg=fov_deg,
    )

"""3D Gaussian splats: the file's layout and activations, and a picture by a readable renderer."""

from pathlib import Path

import numpy as np
import trimesh
from analytic import ORTHO6, flat_colored, observe
from scipy.spatial.transform import Rotation
from test_points import half_red_ball

from data_pipeline.contract import Camera, SourceFrame
from modules.geometry.lift import lift
from modules.geometry.point_files import save_splats

PROPERTIES = [
    "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2",
    *(f"f_rest_{i}" for i in range(45)),
    "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
]  # fmt: skip
"""What the reference implementation writes, in its order: its viewer reads rows blindly."""


def read(path: Path) -> np.ndarray:
    """Return the splats of a file, by the header's words alone."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[1] == "format binary_little_endian 1.0"
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    rows = np.frombuffer(body, [(name, "<f4") for name in names])
    assert lines[2] == f"element vertex {len(rows)}"  # where the reference viewer looks for it
    assert max(map(len, lines)) < 1000  # longer lines are refused by readers of PLY
    return rows


def columns(rows: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([rows[name] for name in names], axis=1).astype(np.float64)


def render(rows: np.ndarray, camera: Camera, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return colour and opacity of every pixel: 3DGS with an orthographic camera, without culling.

    Activations as in the reference implementation: exp, sigmoid, SH of degree 0 plus one half.
    """
    position = columns(rows, "x", "y", "z")
    quaternion = columns(rows, "rot_1", "rot_2", "rot_3", "rot_0")
    axes = Rotation.from_quat(quaternion).as_matrix()
    scale = np.exp(columns(rows, "scale_0", "scale_1", "scale_2"))
    covariance = np.einsum("nij,nj,nkj->nik", axes, scale**2, axes)
    opacity = 1.0 / (1.0 + np.exp(-rows["opacity"].astype(np.float64)))
    colour = 0.28209479177387814 * columns(rows, "f_dc_0", "f_dc_1", "f_dc_2") + 0.5
    pixels, depth = camera.project(position, side)
    to_pixels = side / camera.ortho_scale * camera.matrix[:3, :2] * [1.0, -1.0]
    flat = np.einsum("ji,njk,kl->nil", to_pixels, covariance, to_pixels)
    inverse = np.linalg.inv(flat + 1e-9 * np.eye(2))
    order = np.argsort(depth)
    image, cover = np.zeros((side, side, 3)), np.zeros((side, side))
    for row, column in np.ndindex(side, side):
        offset = pixels[order] - [column + 0.5, row + 0.5]
        power = np.einsum("ni,nij,nj->n", offset, inverse[order], offset)
        alpha = opacity[order] * np.exp(-0.5 * power)
        through = np.cumprod(np.append(1.0, 1.0 - alpha))
        image[row, column] = (colour[order] * (alpha * through[:-1])[:, None]).sum(axis=0)
        cover[row, column] = 1.0 - through[-1]
    return image, cover


def test_the_file_is_laid_out_as_viewers_expect(tmp_path: Path):
    observation = half_red_ball()
    save_splats(observation, tmp_path / "ball.ply", extras={"relief": {"prompt": "é"}})
    rows = read(tmp_path / "ball.ply")
    assert list(rows.dtype.names) == PROPERTIES
    assert len(rows) == observation.hit.sum()
    assert not columns(rows, *PROPERTIES[9:54]).any()
    quaternion = columns(rows, "rot_1", "rot_2", "rot_3", "rot_0")
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=1), 1.0, atol=1e-6)
    scale = np.exp(columns(rows, "scale_0", "scale_1", "scale_2"))
    thin = Rotation.from_quat(quaternion).as_matrix()[:, :, 2]
    np.testing.assert_allclose(thin, observation.normal, atol=1e-5)
    assert (scale[:, 2] < 0.1 * scale[:, :2].min(axis=1)).all()
    assert (scale[:, 1] < observation.spacing).all()
    assert (scale[:, 0] < 2.0 * observation.spacing).all()


def test_a_picture_of_the_splats_shows_the_body_closed_and_in_its_colours(tmp_path: Path):
    observation = half_red_ball()
    save_splats(observation, tmp_path / "ball.ply")
    rows = read(tmp_path / "ball.ply")
    camera, side = ORTHO6[0], 24
    image, cover = render(rows, camera, side)
    pixel = (np.arange(side) + 0.5) / side * 1.1 - 0.55
    x, z = np.meshgrid(pixel, -pixel)
    radius = np.hypot(x, z)
    assert cover[radius < 0.36].min() > 0.97
    assert cover[radius > 0.46].max() < 0.03
    sure = (radius < 0.34) & (np.abs(x) > 0.14)
    red, blue = image[..., 0][sure], image[..., 2][sure]
    bright, dark = np.where(x[sure] > 0, (red, blue), (blue, red))
    assert bright.min() > 0.68  # of 188 / 255: the rest shines through
    assert dark.max() < 0.02


def test_splats_grow_with_the_source_frame(tmp_path: Path):
    frame = SourceFrame(scale=0.25, offset=(0.0, 0.0, 0.0))
    save_splats(half_red_ball(), tmp_path / "world.ply")
    save_splats(half_red_ball(), tmp_path / "source.ply", frame)
    world, source = read(tmp_path / "world.ply"), read(tmp_path / "source.ply")
    np.testing.assert_allclose(source["x"], 4.0 * world["x"], rtol=1e-5)
    np.testing.assert_allclose(source["scale_1"], world["scale_1"] + np.log(4.0), atol=1e-5)


def test_a_plane_at_a_slant_is_covered_without_gaps(tmp_path: Path):
    sheet = trimesh.creation.box(extents=(0.8, 0.02, 0.8))
    sheet.apply_transform(trimesh.transformations.rotation_matrix(1.1, [1, 0, 0]))
    images, hit = observe(flat_colored(sheet), 32)
    front = lift(images[:, :1], ORTHO6[:1], hit[:1])
    save_splats(front, tmp_path / "sheet.ply")
    _, cover = render(read(tmp_path / "sheet.ply"), ORTHO6[4], 24)  # from above: 63 degrees off
    pixel = (np.arange(24) + 0.5) / 24 * 1.1 - 0.55
    x, y = np.meshgrid(pixel, -pixel)
    inner = (np.abs(x) < 0.3) & (np.abs(y) < 0.25)
    assert cover[inner].min() > 0.9

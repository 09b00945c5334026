"""Two classical methods beside ours: screened Poisson reconstruction and TSDF fusion.

Both read what ours reads: the true images' foreground pixels with exact positions and normals.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from modules.geometry.lift import Observation
from modules.geometry.mesh import ColoredMesh, smooth_normals

TSDF_HALF_SIDE = 0.54
TSDF_TRUNCATION = 4.0  # in voxels
MISSING = (
    "Poisson needs Open3D, which no part of Relief does: pip install open3d into an environment of "
    "its own, on PYTHONPATH beside this one (or leave Poisson out with --methods)"
)


def bare_mesh(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> ColoredMesh:
    """Return a mesh of vertices and faces alone: white, untextured, smooth."""
    return ColoredMesh(
        vertices=vertices,
        faces=faces,
        corner_normals=smooth_normals(vertices, faces)[faces],
        corner_uv=np.zeros((len(faces), 3, 2)),
        corner_tint=np.ones((len(faces), 3, 3)),
        face_texture=np.full(len(faces), -1),
        textures=(),
    )


def load_open3d() -> None:
    """Import Open3D, so that its loading is neither timed nor counted as memory."""
    try:
        import open3d  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{MISSING}\n({error})") from error


def poisson(observation: Observation, depth: int, trim: float) -> ColoredMesh:
    """Return the screened Poisson surface of the lifted points, by Open3D on one thread.

    Args:
        observation: lifted points with normals.
        depth: of the octree: 2 ** depth cells along a side.
        trim: the share of vertices, those of least sample density, that is cut away with its faces.
    """
    import open3d  # pyright: ignore[reportMissingImports]

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(observation.position))
    cloud.normals = open3d.utility.Vector3dVector(observation.normal)
    mesh, density = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=depth, n_threads=1
    )
    if trim > 0.0:
        density = np.asarray(density)
        mesh.remove_vertices_by_mask(density < np.quantile(density, trim))
    return bare_mesh(np.array(mesh.vertices), np.array(mesh.triangles, dtype=np.int64))


def tsdf(observation: Observation, cells: int) -> ColoredMesh:
    """Return the projective TSDF surface of the views' depth images.

    Open3D's volumes take pinhole cameras only. This is the same method in numpy: each voxel takes
    the depth of the nearest pixel; the mean over views of the distance along the ray, cut off at
    the truncation; no say for what lies deeper behind a surface, nor for the background. Cells with
    a voxel that nobody saw have no surface.
    """
    axis = np.linspace(-TSDF_HALF_SIDE, TSDF_HALF_SIDE, cells + 1)
    step = float(axis[1] - axis[0])
    truncation = TSDF_TRUNCATION * step
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    total, count = np.zeros(len(points)), np.zeros(len(points))
    for camera, depth in zip(observation.cameras, observation.depth, strict=True):
        side = depth.shape[-1]
        pixels, own = camera.project(points, side)
        column, row = np.floor(pixels).astype(np.int64).T
        inside = (column >= 0) & (row >= 0) & (column < side) & (row < side) & (own > 0)
        distance = np.full(len(points), -np.inf)
        distance[inside] = depth[row[inside], column[inside]] - own[inside]
        used = np.isfinite(distance) & (distance >= -truncation)
        total[used] += np.minimum(distance[used], truncation)
        count[used] += 1.0
    grid = [cells + 1] * 3
    seen = (count > 0).reshape(grid)
    volume = np.where(count > 0, total / np.maximum(count, 1.0), truncation).reshape(grid)
    whole = seen.copy()  # cells, named by their last corner, whose eight corners were all seen
    for axis_number in range(3):
        whole &= np.roll(whole, 1, axis=axis_number)
    whole[0], whole[:, 0], whole[:, :, 0] = False, False, False
    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(step,) * 3, mask=whole)
    return bare_mesh(vertices.astype(np.float64) - TSDF_HALF_SIDE, faces.astype(np.int64))

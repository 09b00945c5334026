"""Texture coordinates: complete, disjoint, padded, and always there in the end."""

import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from modules.geometry import atlas as atlas_module
from modules.geometry import atlas_worker
from modules.geometry.atlas import Atlas, AtlasWorkers, grid_atlas, unwrap
from modules.geometry.partition import partition
from modules.geometry.rasterize import RayScene


def bumpy(subdivisions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a sphere with bumps, which takes a dozen charts or more."""
    body = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.4)
    bumps = np.prod(np.sin(25.0 * body.vertices), axis=1, keepdims=True)
    return np.asarray(body.vertices * (1.0 + 0.4 * bumps)), np.asarray(body.faces, np.int64)


def assert_disjoint(atlas: Atlas) -> None:
    """Check by rays from both sides that no face lies on another."""
    corners = atlas.uv[atlas.faces]
    inner = 0.9 * corners + 0.1 * corners.mean(axis=1, keepdims=True)
    flat = np.concatenate([atlas.uv, np.zeros((len(atlas.uv), 1))], axis=1)
    for corner in range(3):
        origins = np.concatenate([inner[:, corner], np.ones((len(inner), 1))], axis=1)
        for height, down in ((1.0, -1.0), (-1.0, 1.0)):
            origins[:, 2] = height
            rays = np.tile([0.0, 0.0, down], (len(inner), 1))
            face, _ = RayScene(flat, atlas.faces).first_hit(origins, rays)
            np.testing.assert_array_equal(face, np.arange(len(inner)))


def assert_complete(atlas: Atlas, faces: np.ndarray) -> None:
    np.testing.assert_array_equal(atlas.source[atlas.faces], faces)
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1


def chart_image(atlas: Atlas, side: int) -> np.ndarray:
    """Return which chart every texel shows, 0 for none."""
    edges = np.concatenate([atlas.faces[:, [0, 1]], atlas.faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(atlas.uv),) * 2)
    label = connected_components(graph, directed=False)[1][atlas.faces[:, 0]] + 1
    flat = np.concatenate([atlas.uv, np.zeros((len(atlas.uv), 1))], axis=1)
    centre = (np.arange(side) + 0.5) / side
    u, v = np.meshgrid(centre, centre)
    origins = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    down = np.broadcast_to(np.array([0.0, 0.0, -1.0]), origins.shape)
    face = RayScene(flat, atlas.faces).first_face(origins, down)
    return np.where(face < 0, 0, np.append(label, 0)[face]).reshape(side, side)


@pytest.mark.parametrize("make", [lambda v, f: unwrap(v, f, 256), lambda v, f: grid_atlas(f, 256)])
def test_charts_do_not_overlap_and_keep_every_face(make):
    vertices, faces = bumpy()
    atlas = make(vertices, faces)
    assert_complete(atlas, faces)
    assert_disjoint(atlas)


@pytest.mark.parametrize(("side", "padding_px"), [(256, 2), (512, 4), (1024, 8)])
def test_charts_are_a_texel_apart_at_the_mip_level_of_128_px(side: int, padding_px: int):
    vertices, faces = bumpy()
    image = chart_image(unwrap(vertices, faces, side), side)
    assert len(np.unique(image)) > 8
    window = padding_px + 1
    most = ndimage.maximum_filter(image, window)
    least = ndimage.minimum_filter(np.where(image > 0, image, image.max() + 1), window)
    assert not ((least < most) & (most > 0)).any()
    assert (image > 0).mean() > 0.3


def test_padding_gives_way_where_charts_are_many():
    soup = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    soup.unmerge_vertices()  # 1280 charts of a face each
    faces = np.asarray(soup.faces, np.int64)
    atlas = unwrap(np.asarray(soup.vertices), faces, 256, padding_px=16)
    assert_complete(atlas, faces)
    assert (chart_image(atlas, 256) > 0).mean() > 0.1


def test_loose_triangles_are_laid_out_on_a_grid_with_room_for_each():
    soup = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    soup.unmerge_vertices()
    corners = soup.vertices.reshape(-1, 3, 3)
    vertices = (0.9 * corners + 0.1 * corners.mean(axis=1, keepdims=True)).reshape(-1, 3)
    faces = np.asarray(soup.faces, np.int64)
    with pytest.warns(UserWarning, match="charts of 1280 faces fill"):
        atlas = unwrap(vertices, faces, 160)
    assert_complete(atlas, faces)
    image = chart_image(atlas, 160)
    assert len(np.unique(image)) == 1 + len(faces)  # each has texels
    least = ndimage.minimum_filter(np.where(image > 0, image, image.max() + 1), 2)
    most = ndimage.maximum_filter(image, 2)
    assert not ((least < most) & (most > 0) & (least <= image.max())).any()


@pytest.mark.parametrize("threads", [1, 3])
def test_large_meshes_are_cut_into_parts_that_stay_in_order(
    threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(atlas_module, "PART_FACES", 200)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    vertices, faces = bumpy()
    atlas = unwrap(vertices, faces, 512)
    assert_complete(atlas, faces)
    assert_disjoint(atlas)
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    surface = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    (ux, uy), (vx, vy) = (
        atlas.uv[atlas.faces[:, k]].T - atlas.uv[atlas.faces[:, 0]].T for k in (1, 2)
    )
    texture = np.abs(ux * vy - uy * vx)
    parts = partition(vertices, faces, 200)
    density = [texture[part].sum() / surface[part].sum() for part in parts]
    assert len(parts) > 6
    assert max(density) < 1.2 * min(density)  # parts have the same scale


@pytest.mark.parametrize("fault", ["one point", "not a number", "a line", "slivers", "thrice"])
def test_meshes_that_no_one_can_unwrap_get_an_atlas_all_the_same(fault: str):
    vertices, faces = bumpy(1)
    if fault == "one point":
        vertices = np.zeros_like(vertices)
    elif fault == "not a number":
        vertices = np.where(np.arange(len(vertices))[:, None] % 7 == 0, np.nan, vertices)
    elif fault == "a line":
        vertices = vertices * [1.0, 0.0, 0.0]
    elif fault == "slivers":
        vertices = vertices * [1.0, 1.0, 1e-12]
    else:
        faces = np.concatenate([faces] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atlas = unwrap(vertices, faces, 64, timeout_s=20.0)
    assert_complete(atlas, faces)


def test_when_xatlas_takes_too_long_a_grid_stands_in():
    vertices, faces = bumpy()
    with pytest.warns(UserWarning, match="xatlas gave no atlas"):
        atlas = unwrap(vertices, faces, 128, timeout_s=0.001)
    assert_complete(atlas, faces)


def test_workers_that_were_started_early_are_used_and_ended():
    vertices, faces = bumpy(1)
    with AtlasWorkers() as workers, pytest.MonkeyPatch.context() as patch:
        patch.delattr(atlas_module, "AtlasWorkers")  # none is started besides
        early = unwrap(vertices, faces, 128, workers=workers)
    np.testing.assert_array_equal(early.uv, unwrap(vertices, faces, 128).uv)
    with AtlasWorkers() as unused:
        pass
    for each in (workers, unused):
        assert all(process.returncode is not None for process in each._processes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads of a process from /proc")
def test_waiting_workers_have_one_thread_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with AtlasWorkers() as workers:
        unwrap(*bumpy(3), 128, workers=workers)  # after which numpy's would be there
        running = [Path(f"/proc/{process.pid}/task") for process in workers._processes]
        assert [len(list(folder.iterdir())) for folder in running] == [1, 1]


def test_workers_that_cannot_be_started_are_done_without(monkeypatch: pytest.MonkeyPatch):
    start, allowed = subprocess.Popen, 1

    def refused(*arguments, **options):
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise OSError("too many processes")
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    vertices, faces = bumpy(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_complete(unwrap(vertices, faces, 128), faces)  # by the one that was started
    with pytest.warns(UserWarning, match="no process could be started: too many processes"):
        assert_complete(unwrap(vertices, faces, 128), faces)


SPINNING = """
import pathlib
from modules.geometry import atlas_worker
def spin(**message):
    pathlib.Path(__file__).with_suffix(".begun").touch()
    while True: pass
atlas_worker.cut_charts = spin
atlas_worker.main()
"""
"""A worker in which xatlas does not end."""


@pytest.fixture
def spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have workers find no end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    script = tmp_path / "spinning.py"
    script.write_text(SPINNING)
    monkeypatch.setattr(atlas_worker, "__file__", str(script))
    return script


@pytest.mark.usefixtures("spinning")
def test_an_interrupt_does_not_wait_for_xatlas():
    vertices, faces = bumpy(1)
    main = threading.main_thread().ident
    assert main is not None
    start = time.monotonic()
    interrupt = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        unwrap(vertices, faces, 128, timeout_s=60.0)
    assert time.monotonic() - start < 30.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_workers_end_with_a_program_that_is_killed(spinning: Path):
    program = f"""
import numpy as np
from modules.geometry import atlas
atlas.atlas_worker.__file__ = {str(spinning)!r}
with atlas.AtlasWorkers() as workers:
    print(workers._processes[0].pid, flush=True)
    atlas.unwrap(np.eye(3), np.arange(3)[None], 128, workers=workers)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = Path("/proc", parent.stdout.readline().decode().strip())
        limit = time.monotonic() + 60.0
        while not spinning.with_suffix(".begun").exists() and time.monotonic() < limit:
            time.sleep(0.1)
        assert runs(worker)
        parent.kill()
    while runs(worker) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not runs(worker)


def runs(process: Path) -> bool:
    """Return whether a process, a folder of /proc, has not ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_no_faces_have_an_empty_atlas():
    atlas = grid_atlas(np.zeros((0, 3), np.int64), 64)
    assert (atlas.source.shape, atlas.faces.shape, atlas.uv.shape) == ((0,), (0, 3), (0, 2))


def test_two_packings_fill_a_texture_on_the_mean(monkeypatch: pytest.MonkeyPatch):
    packings, make = [], atlas_worker.xatlas.Atlas

    def counted():
        packings.append(make())
        return packings[-1]

    vertices, faces = bumpy(4)
    charts = atlas_worker.cut_charts(vertices.astype(np.float32), faces.astype(np.uint32))
    monkeypatch.setattr(atlas_worker.xatlas, "Atlas", counted)
    for side in (256, 512, 1024, 2048):
        packed = atlas_worker.pack(charts, side, side // 128)
        assert packed.uv.max() > 0.93, side
    assert len(packings) <= 8

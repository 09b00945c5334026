"""The refiner-decoder from shards to a GLB: it trains, exports, and rebuilds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import trimesh
from khronos import khronos_errors
from sphere_shards import write_sphere_shards

from data_pipeline.contract import view_layout
from modules.geometry.mesh import ColoredMesh, load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.mesh_quality import mesh_quality
from modules.pipelines.reconstruction import Reconstructor

REPOSITORY = Path(__file__).resolve().parents[2]
ORTHO6 = view_layout("ortho6")


def images_of(mesh: ColoredMesh, resolution_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images in [-1, 1] and exact foreground of a mesh seen by ortho6."""
    views = render_mesh(mesh, ORTHO6, resolution_px)
    stack = np.stack([views.rgb * 2.0 - 1.0, views.normal, views.coord * 2.0])
    return torch.from_numpy(np.moveaxis(stack, -1, 2).astype(np.float32)), torch.from_numpy(
        views.hit
    )


def test_two_steps_of_training_export_a_refiner_that_rebuilds_a_valid_glb(tmp_path: Path):
    shards = write_sphere_shards(tmp_path / "shards")
    command = [
        sys.executable, "train.py", "experiment=tiny/refiner_decoder", f"shards={shards}",
        f"paths.run_dir={tmp_path}/run", f"paths.pipeline_dir={tmp_path}/pipeline", "logger=csv",
        "data.batch_size=2", "trainer.max_steps=2", "trainer.log_every_n_steps=1",
        "data.dataset.num_surface_points=128", "data.dataset.num_sdf_points=256",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    reconstruct = Reconstructor.from_pretrained(tmp_path / "pipeline")
    body = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    faces = np.asarray(body.faces, np.int64)
    sphere = ColoredMesh(
        vertices=np.asarray(body.vertices),
        faces=faces,
        corner_normals=np.asarray(body.vertex_normals)[faces],
        corner_uv=np.zeros((len(faces), 3, 2)),
        corner_tint=np.full((len(faces), 3, 3), 0.2),
        face_texture=np.full(len(faces), -1),
        textures=(),
    )
    images, hit = images_of(sphere, 48)
    mesh = reconstruct(images, ORTHO6, hit, grid=48, texture_px=128)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < 0.01
    save_mesh(mesh, tmp_path / "sphere.glb")
    loaded = load_mesh(tmp_path / "sphere.glb")
    quality = mesh_quality(loaded.vertices, loaded.faces)
    assert quality["watertight"] == quality["manifold"] == 1.0
    assert khronos_errors(tmp_path / "sphere.glb") == {"sphere.glb": []}

"""The refiner-decoder from shards to a GLB: it trains, learns, exports, rebuilds real assets."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import igl
import numpy as np
import pytest
import torch
import trimesh
from conftest import ASSETS
from khronos import khronos_errors
from sphere_shards import write_sphere_shards

from data_pipeline.contract import linear_to_srgb, unit_cube_frame, view_layout
from modules.geometry.corruption import Corruption
from modules.geometry.mesh import ColoredMesh, load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.appearance import compare_with_views
from modules.metrics.geometry import MeshSurface, compare_surfaces
from modules.metrics.mesh_quality import mesh_quality
from modules.networks.refiner import Refiner
from modules.pipelines.reconstruction import Reconstructor
from modules.systems.refiner_decoder import RefinerDecoderSystem

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


def bodies() -> list[trimesh.Trimesh]:
    """Eight closed bodies in the unit cube."""
    made = [
        trimesh.creation.box(extents=(1.0, 0.6, 0.4)),
        trimesh.creation.icosphere(subdivisions=4, radius=0.5),
        trimesh.creation.cylinder(radius=0.25, height=1.0, sections=48),
        trimesh.creation.cone(radius=0.5, height=1.0, sections=48),
        trimesh.creation.torus(major_radius=0.35, minor_radius=0.15),
        trimesh.creation.capsule(radius=0.2, height=0.6),
        trimesh.creation.annulus(r_min=0.25, r_max=0.5, height=0.4),
        trimesh.creation.box(extents=(0.3, 0.3, 1.0)),
    ]
    for i, body in enumerate(made):
        body.apply_translation(-body.bounds.mean(axis=0))
        body.apply_transform(trimesh.transformations.rotation_matrix(0.2 * i, [1, 1, 0]))
        body.apply_scale(1.0 / np.ptp(body.bounds, axis=0).max())
        body.apply_translation(-body.bounds.mean(axis=0))
    return made


def batch_of(made: list[trimesh.Trimesh], resolution_px: int) -> dict:
    """Return a batch as the data module gives it, of bodies whose six sides differ in colour."""
    rows = []
    rng = np.random.default_rng(0)
    palette = rng.uniform(0.0, 1.0, (8, 6, 3))
    for i, body in enumerate(made):
        axis = np.abs(body.face_normals).argmax(axis=1)
        colours = palette[i, 2 * axis + (body.face_normals[np.arange(len(axis)), axis] > 0)]
        split = body.copy()
        split.unmerge_vertices()
        faces = np.asarray(split.faces, np.int64)
        mesh = ColoredMesh(
            vertices=np.asarray(split.vertices),
            faces=faces,
            corner_normals=np.repeat(np.asarray(split.face_normals)[:, None], 3, axis=1),
            corner_uv=np.zeros((len(faces), 3, 2)),
            corner_tint=np.repeat(colours[:, None], 3, axis=1),
            face_texture=np.full(len(faces), -1),
            textures=(),
        )
        images, hit = images_of(mesh, resolution_px)
        surface, face = trimesh.sample.sample_surface(body, 512, seed=1)
        albedo = linear_to_srgb(colours[face])
        near = surface[:, None] + rng.normal(0, 0.03, (512, 2, 3))
        query = np.concatenate([near.reshape(-1, 3), rng.uniform(-0.55, 0.55, (512, 3))])
        distance = igl.signed_distance(query, np.asarray(body.vertices), np.asarray(body.faces))[0]
        rows.append(
            {
                "images": images,
                "hit": hit,
                "camera_to_world": torch.tensor([camera.camera_to_world for camera in ORTHO6]),
                "ortho_scale": torch.full((6,), 1.1),
                "fov_deg": torch.full((6,), float("nan")),
                "surface_position": torch.from_numpy(np.asarray(surface)).float(),
                "surface_normal": torch.from_numpy(body.face_normals[face].copy()).float(),
                "surface_albedo": torch.from_numpy(albedo).float(),
                "sdf_position": torch.from_numpy(query).float(),
                "sdf_distance": torch.from_numpy(distance).float(),
                "sdf_confidence": torch.ones(len(query)),
            }
        )
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return batch | {"uid": [str(i) for i in range(len(made))], "caption": [""] * len(made)}


@pytest.mark.slow
def test_the_refiner_learns_eight_spoilt_assets_by_heart():
    """Distance error falls to less than 0.3 of the classical one, colour error to 0.2."""
    torch.manual_seed(0)
    system = RefinerDecoderSystem(
        partial(Refiner, width=8, hidden=48, side=16),
        partial(torch.optim.AdamW, lr=4e-3),
        corruption=Corruption(clean_share=0.0, coord_noise=(0.02, 0.04), drop_share=0.5),
    )
    system.configure_model()
    optimizer = system.configure_optimizers()
    batch = batch_of(bodies(), 64)
    inputs = system.classical_inputs(batch, np.random.default_rng(0))
    for _ in range(400):
        figures = system.figures(batch, inputs)
        loss = figures["distance"] + figures["colour"] + 0.002 * figures["eikonal"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["distance"] < 0.3 * figures["classical_distance"]
    assert figures["colour"] < 0.2 * figures["classical_colour"]


@pytest.mark.assets
@pytest.mark.slow
def test_real_assets_are_rebuilt_from_true_images():
    """24 assets at 128 px: medians of F-score@0.02 >= 0.95 and of masked PSNR >= 20 dB."""
    scores, ratios = [], []
    for path in sorted(ASSETS.glob("*.glb"))[::17]:
        asset = load_mesh(path)
        frame = unit_cube_frame(asset.vertices.min(axis=0), asset.vertices.max(axis=0))
        asset = asset.transformed(frame)
        images, hit = images_of(asset, 128)
        mesh = Reconstructor.classical()(images, ORTHO6, hit, grid=128)
        assert mesh_quality(mesh.vertices, mesh.faces)["watertight"] == 1.0, path.name
        surfaces = [MeshSurface(each.vertices, each.faces) for each in (mesh, asset)]
        scores.append(compare_surfaces(*surfaces, num_samples=20_000)["f_score_0.02"])
        rgb = np.moveaxis(images[0].numpy().astype(np.float64), 1, -1) / 2.0 + 0.5
        figures = compare_with_views(mesh, ORTHO6, rgb, hit.numpy())
        ratios.append(figures["input_view_psnr_masked"])
    assert np.median(scores) >= 0.95, scores
    assert np.median(ratios) >= 20.0, ratios

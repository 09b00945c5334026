"""Rays per second of the rasterizer, and what images and losses made with it cost.

    python benchmarks/rasterizer.py MESH... [--device cuda] [--repeats 9]

On the CPU first 6 views of 512 px (`ortho6`), one ray a pixel: Embree alone (one call for face ids,
on rays made before) against `rasterize`, which makes its rays and leaves out those that cannot hit;
then the same for a mesh that has changed, so that both build its scene. Then, on either device, 6
views of masked rgb (a texture of 1024 px), normal and coord images, forward and backward, and a
training step: the same with losses against other images and a step of Adam on vertices and
texture. Medians of CPU time, on a GPU of wall time.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from torch import Tensor

from data_pipeline.contract import view_layout
from modules.geometry.mesh import load_mesh, merge_vertices
from modules.geometry.rasterizer import Rasterizer, rasterizer_for

CAMERAS = view_layout("ortho6")
TEXTURE_PX = 1024


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Return welded vertices in the unit cube, float32, and faces."""
    mesh = load_mesh(path)
    vertices, faces = merge_vertices(mesh.vertices, mesh.faces)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2.0) / (high - low).max()
    return torch.from_numpy(vertices).float(), torch.from_numpy(faces)


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the CPU time of one call, or the wall time until the GPU is done."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_rays(vertices: Tensor, faces: Tensor, repeats: int, size: int = 512) -> None:
    """Print rays per second of Embree alone and of `rasterize`, taken in turns."""
    rays = [camera.rays(size) for camera in CAMERAS]
    origins, directions = (
        np.concatenate([ray[part].reshape(-1, 3) for ray in rays]).astype(np.float32)
        for part in (0, 1)
    )
    points, indices = vertices.numpy(), faces.numpy().astype(np.int32)
    scene, rasterizer = EmbreeScene(), rasterizer_for("cpu")
    _geometry = TriangleMesh(scene, points, indices)  # the scene holds no reference to it
    leaf = vertices.clone().requires_grad_()

    def build_and_run() -> None:
        fresh = EmbreeScene()
        _geometry = TriangleMesh(fresh, points, indices)
        fresh.run(origins, directions)

    calls: dict[str, Callable[[], object]] = {
        "Embree alone": lambda: scene.run(origins, directions),
        "rasterize": lambda: rasterizer.rasterize(vertices, faces, CAMERAS, size),
        "rasterize, with gradients": lambda: rasterizer.rasterize(leaf, faces, CAMERAS, size),
        "Embree alone, changed mesh": build_and_run,
        "rasterize, changed mesh": lambda: rasterizer_for("cpu").rasterize(
            leaf, faces, CAMERAS, size
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            times[name].append(seconds(call, "cpu"))
    hit = rasterizer.rasterize(vertices, faces, CAMERAS, size).hit.float().mean()
    print(f"  pixels hit {float(hit):.2f}")
    alone = 0.0
    for name, all_times in times.items():
        took = median(all_times[1:])
        alone = took if name.startswith("Embree") else alone
        print(f"  {name}: {len(origins) / took / 1e6:.1f} M rays/s, ratio {alone / took:.2f}")


def draw(
    rasterizer: Rasterizer, vertices: Tensor, faces: Tensor, texture: Tensor, size: int
) -> Tensor:
    """Return antialiased images of mask, rgb, normal and coord: `v h w 10`."""
    corners = vertices[faces]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.zeros_like(vertices).index_add(
        0, faces.flatten(), across.repeat_interleave(3, 0)
    )
    normals = torch.nn.functional.normalize(normals, dim=1)
    seen = rasterizer.rasterize(vertices, faces, CAMERAS, size)
    attributes = torch.cat([normals, vertices, vertices[:, :2].detach() + 0.5], dim=1)
    image = rasterizer.interpolate(attributes, faces, seen)
    rgb = rasterizer.texture(texture, image[..., 6:], seen)
    mask = seen.hit[..., None].to(vertices.dtype)
    return rasterizer.antialias(torch.cat([mask, rgb, image[..., :6]], dim=-1), seen)


def time_losses(vertices: Tensor, faces: Tensor, device: str, repeats: int, size: int) -> None:
    """Print the time of images, their gradients, and a training step, at this size."""
    rasterizer = rasterizer_for(device)
    vertices, faces = vertices.to(device), faces.to(device)
    texture = torch.rand(TEXTURE_PX, TEXTURE_PX, 3, device=device)
    goal = draw(rasterizer, vertices * 1.02, faces, texture.flip(0), size)
    vertices.requires_grad_()
    texture.requires_grad_()
    optimizer = torch.optim.Adam([vertices, texture], lr=1e-5)
    losses: list[Tensor] = []

    def forward() -> None:
        losses[:] = [(draw(rasterizer, vertices, faces, texture, size) - goal).abs().mean()]

    def step() -> None:
        optimizer.zero_grad()
        image = draw(rasterizer, vertices, faces, texture, size)
        cosine = (image[..., 4:7] * goal[..., 4:7]).sum(dim=-1)
        loss = (image[..., :4] - goal[..., :4]).square().mean() - 0.2 * cosine.mean()
        (loss + (image[..., 7:] - goal[..., 7:]).abs().mean()).backward()
        optimizer.step()

    times: dict[str, list[float]] = {"forward": [], "backward": [], "training step": []}
    for _ in range(repeats + 2):
        times["forward"].append(seconds(forward, device))
        times["backward"].append(seconds(lambda: losses[0].backward(), device))
        times["training step"].append(seconds(step, device))
    for name, all_times in times.items():
        print(f"  {name}, 6 x {size} px: {1e3 * median(all_times[2:]):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("meshes", nargs="+", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for path in options.meshes:
        vertices, faces = load(path)
        print(f"{path.name}: {len(faces):,} faces")
        if options.device == "cpu":
            compare_rays(vertices, faces, options.repeats)
        for size in (256, 512):
            time_losses(vertices.clone(), faces, options.device, options.repeats, size)


if __name__ == "__main__":
    main()

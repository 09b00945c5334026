"""Re-render textures from 12 views that no layout uses, at 256 px, and compare base colours.

    python benchmarks/texture.py shards/128 shards/256 --reference ORIGINALS --out texture.jsonl \
        --picture texture.png --show furniture_book_single

Every sample's true images give three textured results, each rendered unlit by `render_mesh` beside
the original asset (the file of REFERENCE whose name gives the uid):

- `rebuilt`: mesh and texture by the Reconstructor, as generate.py makes them;
- `baked`: our baking onto the original mesh (`GivenMesh`: what generate.py mesh= does);
- `projected`: nearest-view projection onto the original mesh, without any texture: a point takes
  its colour from the view that sees it most head-on, or from the nearest point that a view sees.

PSNR over both silhouettes, grown by a pixel, as in docs/metrics.md; `common` is over the pixels
that both show, so it leaves errors of shape out. OUT takes one line a sample, and is gone on with.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from data_pipeline.contract import Camera, SourceFrame, layout_cameras, make_uid
from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.manifest import ShardSet
from modules.geometry.lift import Observation, lift
from modules.geometry.mesh import ColoredMesh, Mesh, load_mesh, merge_vertices, save_mesh
from modules.geometry.rasterize import RayScene, Views, render_mesh
from modules.metrics.appearance import image_figures, over, psnr, unseen_cameras
from modules.metrics.geometry import MeshSurface
from modules.metrics.mesh_quality import face_components, mesh_quality
from modules.metrics.scoring import summarise
from modules.pipelines.reconstruction import Reconstructor
from modules.pipelines.texturing import GivenMesh
from modules.reporting.mesh_files import SUFFIXES
from modules.reporting.rebuild_cases import sample_truth, spread

NUM_VIEWS, RESOLUTION_PX = 12, 256
METHODS = ("rebuilt", "baked", "projected")
SHOWN_VIEWS = (0, 3)
FAR_OFF = 0.02  # world units: what lies farther from the truth is no part of it


def main() -> None:
    """Texture, render, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grid", type=int, default=96)
    parser.add_argument("--texture-px", type=int, default=512)
    parser.add_argument("--refine-steps", type=int, default=0)
    parser.add_argument("--count", type=int, help="so many samples of each set, spread over it")
    parser.add_argument("--meshes", type=Path, help="folder that takes every rebuilt mesh as GLB")
    parser.add_argument("--picture", type=Path, help="PNG of the assets named by --show")
    parser.add_argument("--show", nargs="*", default=())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = (p for p in sorted(arguments.reference.rglob("*")) if p.suffix.lower() in SUFFIXES)
    originals = {make_uid(path.stem): path for path in files}
    sizes = {key: getattr(arguments, key) for key in ("grid", "texture_px", "refine_steps")}
    rows, pictures = _read(arguments.out), []
    for shards in arguments.shards:
        shard_set = ShardSet(shards, "samples")
        for i in spread(len(shard_set.uids), arguments.count):
            uid = shard_set.uids[i]
            if (shards.name, uid) in rows and uid not in arguments.show:
                continue
            path = arguments.meshes and arguments.meshes / shards.name / f"{uid}.glb"
            figures, picture = one_asset(shard_set.read(i), originals[uid], sizes, path)
            if uid in arguments.show:
                pictures.append(picture)
            if (shards.name, uid) not in rows:
                rows[shards.name, uid] = figures
                with arguments.out.open("a") as file:
                    line = {"set": shards.name, "uid": uid, "figures": figures}
                    file.write(json.dumps(line) + "\n")
            print(shards.name, uid, figures, flush=True)
    for shards in arguments.shards:
        print_table(shards.name, [row for (name, _), row in rows.items() if name == shards.name])
    if arguments.picture is not None:
        high = max(len(picture) for picture in pictures)
        pads = [((0, high - len(picture)), (0, 24), (0, 0)) for picture in pictures]
        padded = [np.pad(*each, constant_values=255) for each in zip(pictures, pads, strict=True)]
        Image.fromarray(np.concatenate(padded, axis=1)).save(arguments.picture, optimize=True)


def one_asset(
    members: dict[str, bytes], original: Path, sizes: dict[str, int], path: Path | None
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return the figures of every method by name, and a picture of them.

    A sample whose original, as it is read here, is not what was rendered has no figures.
    """
    sample, meta = decode_sample(members), json.loads(members["meta.json"])
    frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
    truth = sample_truth(sample, frame, original).mesh
    if truth is None:
        return {}, np.zeros((0, 0, 3), np.uint8)
    assert isinstance(truth, ColoredMesh)
    cameras, hit = layout_cameras(meta), sample["hit"]
    unseen = unseen_cameras(NUM_VIEWS)
    expected = render_mesh(truth, unseen, RESOLUTION_PX)
    start = time.process_time()
    rebuilt = Reconstructor.classical()(sample["images"], cameras, hit, **sizes)
    seconds = time.process_time() - start
    given = GivenMesh(load_mesh(original))
    start = time.process_time()
    baked = given(sample["images"], cameras, texture_px=sizes["texture_px"])
    baking_seconds = time.process_time() - start
    observation = lift(sample["images"].double().numpy(), cameras, hit.numpy())
    shown = {
        "rebuilt": render_mesh(rebuilt, unseen, RESOLUTION_PX),
        "baked": render_mesh(baked, unseen, RESOLUTION_PX),
        "projected": projected(expected, truth, observation, unseen),
    }
    figures: dict[str, Any] = {name: compare(views, expected) for name, views in shown.items()}
    quality = mesh_quality(rebuilt.vertices, rebuilt.faces)
    figures["rebuilt"] |= {
        "cpu_s": seconds,
        "sound": quality["watertight"] * quality["manifold"],
        "spurious": spurious_components(rebuilt, truth),
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mesh(rebuilt, path, frame)
    figures["baked"] |= {"cpu_s": baking_seconds}
    return figures, _picture([expected, shown["projected"], shown["baked"], shown["rebuilt"]])


def compare(views: Views, expected: Views) -> dict[str, float]:
    """Return `psnr_masked` and `mask_iou` of `image_figures`, and `psnr_common`."""
    figures = image_figures(views.rgb, views.hit, expected.rgb, expected.hit)
    common = views.hit & expected.hit
    error = ((views.rgb - expected.rgb)[common] ** 2).mean()
    return {key: figures[key] for key in ("psnr_masked", "mask_iou")} | {
        "psnr_common": psnr(float(error))
    }


def projected(
    expected: Views, truth: ColoredMesh, observation: Observation, cameras: tuple[Camera, ...]
) -> Views:
    """Return the expected views with each pixel's colour taken from the nearest input view."""
    scene = RayScene(truth.vertices, truth.faces)
    point, hit = expected.coord[expected.hit], expected.hit
    corners = truth.vertices[truth.faces[expected.face[hit]]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    looking = np.concatenate(
        [camera.rays(RESOLUTION_PX)[1][hit[view]] for view, camera in enumerate(cameras)]
    )
    normal *= -np.copysign(1.0, (normal * looking).sum(axis=1, keepdims=True))
    best = np.full(len(point), 0.05)
    colour = observation.colour[cKDTree(observation.position).query(point)[1]]
    for view, camera in enumerate(observation.cameras):
        toward = np.broadcast_to(camera.matrix[:3, 2], point.shape)
        if camera.projection == "perspective":
            toward = camera.matrix[:3, 3] - point
            toward = toward / np.linalg.norm(toward, axis=1, keepdims=True)
        cosine = (normal * toward).sum(axis=1)
        better = np.flatnonzero(cosine > best)
        start = point[better] + 1e-3 * (normal[better] + toward[better])
        better = better[scene.first_face(start, toward[better]) < 0]
        best[better] = cosine[better]
        pixels, _ = camera.project(point[better], observation.rgb.shape[1])
        colour[better] = _bilinear(observation.rgb[view], pixels)
    rgb = expected.rgb.copy()
    rgb[hit] = colour
    return Views(hit=hit, coord=expected.coord, normal=expected.normal, rgb=rgb, face=expected.face)


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Print median and worse decile of every method."""
    rows = [row for row in rows if row]
    print(f"\n{name}: {len(rows)} assets\n")
    print("| method | PSNR, dB | over common pixels | mask IoU | CPU s |\n|---|---|---|---|---|")
    for method in METHODS:
        summary = summarise([row[method] for row in rows])
        cells = []
        for key, worse in (
            ("psnr_masked", "p10"), ("psnr_common", "p10"), ("mask_iou", "p10"), ("cpu_s", "p90"),
        ):  # fmt: skip
            values = summary.get(key)
            cells.append(f"{values['median']:.2f}, {values[worse]:.2f}" if values else "")
        print(f"| `{method}` | {' | '.join(cells)} |")
    for method in ("rebuilt", "baked"):
        behind = (
            np.median([row["projected"][key] - row[method][key] for row in rows])
            for key in ("psnr_masked", "psnr_common")
        )
        print(
            f"\n{method} behind projected, median, dB: {', '.join(f'{gap:.2f}' for gap in behind)}"
        )
    sound = np.mean([row["rebuilt"]["sound"] for row in rows])
    spurious = sum(row["rebuilt"]["spurious"] for row in rows)
    print(f"\nwatertight and manifold: {sound:.0%}; spurious components: {spurious}")


def spurious_components(mesh: Mesh, truth: Mesh) -> int:
    """Return the parts of a mesh, of at least 1 % of its area, that mostly lie off the truth."""
    _, welded = merge_vertices(mesh.vertices, mesh.faces)
    part, corners = face_components(welded), mesh.vertices[mesh.faces]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    off = MeshSurface(truth.vertices, truth.faces).nearest(corners.mean(axis=1))[0] > FAR_OFF
    total, lost = np.bincount(part, area), np.bincount(part, area * off)
    return int(((total >= 0.01 * total.sum()) & (lost > 0.5 * total)).sum())


def _bilinear(image: NDArray[Any], pixels: NDArray[Any]) -> NDArray[Any]:
    x, y = np.clip(pixels - 0.5, 0, image.shape[0] - 1).T
    column = np.minimum(x.astype(np.int64), image.shape[0] - 2)
    row = np.minimum(y.astype(np.int64), image.shape[0] - 2)
    fx, fy = (x - column)[:, None], (y - row)[:, None]
    top = image[row, column] * (1 - fx) + image[row, column + 1] * fx
    bottom = image[row + 1, column] * (1 - fx) + image[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy


def _picture(columns: list[Views]) -> NDArray[np.uint8]:
    """Return a row for each of SHOWN_VIEWS, a column for each of the results, cropped."""
    seen = np.any([views.hit[list(SHOWN_VIEWS)] for views in columns], axis=(0, 1))
    rows, cols = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    cells = [[over(v.rgb, v.hit, 1.0)[i][box] for v in columns] for i in SHOWN_VIEWS]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in cells])
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(each["set"], each["uid"]): each["figures"] for each in lines}


if __name__ == "__main__":
    main()

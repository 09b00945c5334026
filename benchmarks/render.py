"""Seconds per asset of the renderer, by stage, beside two published Blender scripts.

    python benchmarks/render.py FOLDER --count 24 --objaverse-xl SCRIPT.py --trellis SCRIPT.py

Renders COUNT GLB files of FOLDER, evenly chosen: 6 views, 512 px, 16 samples, one bounce, denoised,
on one core; then the same files by the peers, see peer_renderers.py, from our views or
(`--own-views`) from theirs. CPU seconds are compared: they hardly depend on what else the machine
does. `--no-denoise` takes the denoisers away. `--psnr N` measures, on N of the assets, each
renderer's rgb against its own picture of 1024 samples, not denoised, under its own lighting, from
our views at 128 px. `--isolation N` renders N assets as small as possible instead, and prints what
a worker process of its own costs each.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from peer_renderers import run_peer

from data_pipeline.codec import decode_views
from data_pipeline.contract import RenderSpec, make_uid
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

STAGES = ("import", "render", "cycles", "geometry", "write", "total", "cpu")
SPEC = RenderSpec(resolution_px=512, samples=16)
MANY = 1024  # samples of the reference
LIGHTINGS = ("albedo", "studio")


def main() -> None:
    """Render and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--objaverse-xl", type=Path)
    parser.add_argument("--trellis", type=Path)
    parser.add_argument("--psnr", type=int, default=0)
    parser.add_argument("--isolation", type=int, default=0)
    parser.add_argument("--own-views", action="store_true")
    parser.add_argument("--no-denoise", action="store_true")
    arguments = parser.parse_args()
    # One core: figures that can be compared.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    paths = sorted(arguments.folder.glob("*.glb"))
    chosen = paths[:: max(1, len(paths) // arguments.count)][: arguments.count]
    assets = [Asset(uid=make_uid(path.stem), path=path, captions=("",)) for path in chosen]
    if arguments.isolation:
        time_isolation(paths[: arguments.isolation])
        return
    scripts = {"objaverse-xl": arguments.objaverse_xl, "TRELLIS": arguments.trellis}
    scripts = {name: path for name, path in scripts.items() if path is not None}
    denoise = not arguments.no_denoise
    seconds = {f"ours, {light}": time_ours(assets, light, denoise) for light in LIGHTINGS}
    for name, script in scripts.items():
        how = {"own_views": arguments.own_views, "denoise": denoise}
        seconds[name] = time_peer(name, script, chosen, how)
    print_ratios(seconds)
    if arguments.psnr:
        every = max(1, len(assets) // arguments.psnr)
        print_psnr(assets[::every][: arguments.psnr], scripts, denoise)


def time_ours(assets: list[Asset], lighting: str, denoise: bool) -> NDArray[np.float64]:
    """Render all assets, print the stages, and return CPU seconds per asset."""
    spec = dataclasses.replace(SPEC, lighting=lighting, denoise=denoise)
    with tempfile.TemporaryDirectory() as folder:
        summary = render_assets(assets, Path(folder) / "out", spec, workers=1)
        records = {r["uid"]: r for r in Staging(Path(folder) / "out").records()}
    print(f"\n{lighting}: {summary}")
    done = [records[asset.uid] for asset in assets]
    print(f"peak memory {max(record['rss_mb'] for record in done):.0f} MB")
    print(f"{'stage':10} {'median s':>9} {'p90 s':>9}")
    for stage in STAGES:
        values = [record["seconds"][stage] for record in done]
        print(f"{stage:10} {np.median(values):9.2f} {np.quantile(values, 0.9):9.2f}")
    shares = [1.0 - r["seconds"]["cycles"] / r["seconds"]["total"] for r in done]
    print(f"not Cycles' own: {np.median(shares):.1%} of an asset's wall clock (median)", flush=True)
    return np.array([record["seconds"]["cpu"] for record in done])


def time_isolation(paths: list[Path]) -> None:
    """Print the wall clock per asset that is not the worker's own work on it.

    That is: starting a worker, again after `recycle_after` assets, sending jobs and replies,
    watching limits, publishing samples, the ledger, and starting and ending the run.
    """
    assets = [Asset(uid=make_uid(path.stem), path=path, captions=("",)) for path in paths]
    spec = RenderSpec(resolution_px=16, samples=1, surface_points=64, sdf_points=64)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        render_assets(assets, Path(folder) / "out", spec, workers=1)
        wall_s = time.monotonic() - start
        own_s = [r["seconds"]["total"] for r in Staging(Path(folder) / "out").records()]
    print(f"{len(assets)} assets: {wall_s:.2f} s, of which in the worker {sum(own_s):.2f} s")
    print(f"isolation: {(wall_s - sum(own_s)) / len(assets):.4f} s per asset")


def time_peer(
    name: str, script: Path, paths: list[Path], how: dict[str, bool]
) -> NDArray[np.float64]:
    """Render all assets by a peer's script and return CPU seconds per asset."""
    python = find_blender_python(None)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            run = run_peer(
                name, script, python, path, Path(folder) / str(number),
                samples=SPEC.samples, resolution_px=SPEC.resolution_px, **how,
            )  # fmt: skip
            seconds.append(run.cpu_s)
            print(f"{name} {path.stem}: {run.cpu_s:.1f} s of CPU, {run.wall_s:.1f} s", flush=True)
    return np.array(seconds)


def print_ratios(seconds: dict[str, NDArray[np.float64]]) -> None:
    """Print CPU seconds per asset, and how many times as long as ours the others take."""
    ours = {name: s for name, s in seconds.items() if name.startswith("ours")}
    print(f"\n{'renderer':24} {'median CPU s':>13} " + " ".join(f"{'/ ' + n:>15}" for n in ours))
    for name, values in seconds.items():
        ratios = " ".join(f"{np.median(values / mine):15.2f}" for mine in ours.values())
        print(f"{name:24} {np.median(values):13.2f} {ratios}")


def print_psnr(assets: list[Asset], scripts: dict[str, Path], denoise: bool) -> None:
    """Print every renderer's median PSNR of rgb at 16 samples against 1024, where covered."""
    print("\nrgb PSNR of 16 samples against 1024, 128 px, our views, each under its own lighting")
    for lighting in LIGHTINGS:
        spec = dataclasses.replace(
            SPEC, lighting=lighting, resolution_px=128, surface_points=64, sdf_points=64
        )
        few, many = (
            render_rgb(assets, dataclasses.replace(spec, samples=n, denoise=denoise and n < MANY))
            for n in (SPEC.samples, MANY)
        )
        values = [psnr(a, b) for a, b in zip(few, many, strict=True)]
        print(f"{'ours, ' + lighting:14} {np.median(values):.2f} dB", flush=True)
    python = find_blender_python(None)
    for name, script in scripts.items():
        values = []
        for asset in assets:
            with tempfile.TemporaryDirectory() as folder:
                runs = [
                    run_peer(
                        name, script, python, asset.path, Path(folder) / str(samples),
                        samples=samples, resolution_px=128, own_views=False,
                        denoise=denoise and samples < MANY,
                    )
                    for samples in (SPEC.samples, MANY)
                ]  # fmt: skip
                few, many = (
                    np.stack([cv2.imread(str(r.folder / f"{i:03d}.png"), -1) for i in range(6)])
                    for r in runs
                )
            values.append(psnr(few, many))
        print(f"{name:14} {np.median(values):.2f} dB", flush=True)


def render_rgb(assets: list[Asset], spec: RenderSpec) -> list[NDArray[np.uint8]]:
    """Return the rgb views of every asset, `(v, h, w, 4)`."""
    with tempfile.TemporaryDirectory() as folder:
        render_assets(assets, Path(folder) / "out", spec, workers=1)
        staging = Staging(Path(folder) / "out")
        return [decode_views(staging.read(a.uid)["rgb.png"], len(spec.lightings)) for a in assets]


def psnr(few: NDArray[np.uint8], many: NDArray[np.uint8]) -> float:
    """Return the PSNR over white, in dB, of the pixels that the reference covers at all."""
    white = [
        v[..., :3] * (v[..., 3:] / 255.0) + 255.0 - v[..., 3:].astype(np.float64)
        for v in (few, many)
    ]
    error = np.mean((white[0] - white[1])[many[..., 3] > 0] ** 2)
    return float(10.0 * np.log10(255.0**2 / max(error, 1e-9)))


if __name__ == "__main__":
    main()

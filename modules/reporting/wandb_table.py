"""A report in Weights & Biases: its summary, and a table of pairs with pictures and 3D objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from jaxtyping import Float
from numpy import ndarray

from modules.geometry.mesh import load_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.appearance import unseen_cameras
from modules.reporting.pictures import in_unit_cube
from modules.reporting.report import TOLD

SHOWN_SUFFIXES = (".glb", ".gltf", ".obj", ".stl")
"""What W&B's viewer opens (`wandb.Object3D.SUPPORTED_TYPES`)."""

CLOUD_VIEWS, CLOUD_PX = 8, 48


def log_report(report: Mapping[str, Any], out: Path, *, project: str, offline: bool) -> None:
    """Log a report as a run of its own.

    The summary's statistics become the run's summary (`chamfer_l1.median`), the pairs the table
    `pairs`: name, reason of the failure, every figure, picture, and a coloured point cloud (W&B
    puts no mesh into a table). The meshes themselves are under `meshes`, worst first.

    Args:
        report: what `report.write_report` returns.
        out: its folder; the run's files go to `wandb/` there.
        project: of W&B.
        offline: keep the run there until `wandb sync` sends it.
    """
    keys = sorted({key for pair in report["pairs"] for key in pair["metrics"]})
    table = wandb.Table(columns=["name", "failed", *keys, "picture", "points"])
    meshes = []
    for pair in report["pairs"]:
        figures = [pair["metrics"].get(key) for key in keys]
        picture = pair["picture"] and wandb.Image(str(out / pair["picture"]))
        points = None
        if pair["mesh"]:
            path = Path(pair["mesh"])
            points = wandb.Object3D(point_cloud(path))
            if path.suffix.lower() in SHOWN_SUFFIXES:
                meshes.append(wandb.Object3D(str(path), caption=pair["name"]))
        table.add_data(pair["name"], pair["failed"], *figures, picture, points)
    # no user, host, command line or git remote in the record, as in conf/logger/default.yaml
    settings = wandb.Settings(
        host="unnamed",
        x_disable_meta=True,
        x_disable_machine_info=True,
        disable_git=True,
        disable_code=True,
        console="off",
    )
    with wandb.init(
        project=project,
        name=out.name,
        job_type="eval",
        dir=out,
        mode="offline" if offline else "online",
        config={key: report[key] for key in (*TOLD, "environment")},
        settings=settings,
    ) as run:
        run.log({"pairs": table} | ({"meshes": meshes} if meshes else {}))
        for key, statistics in report["summary"].items():
            run.summary.update({f"{key}.{name}": value for name, value in statistics.items()})
        run.summary.update({key: report[key] for key in ("num_pairs", "num_failed")})
        figures = (report.get("sets") or {}).get("figures", {})
        run.summary.update({f"sets.{key}": value for key, value in figures.items()})
        if "composition" in report:
            run.summary.update({"instrument": report["composition"]["instrument"]})


def point_cloud(path: Path) -> Float[ndarray, "p 6"]:
    """Return points that can be seen of a mesh file, in the unit cube, with sRGB from 0 to 255."""
    views = render_mesh(in_unit_cube(load_mesh(path)), unseen_cameras(CLOUD_VIEWS), CLOUD_PX)
    colours = np.rint(views.rgb[views.hit] * 255.0)
    return np.concatenate([views.coord[views.hit], colours], axis=1)

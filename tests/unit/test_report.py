"""Pictures, charts and pages of reports."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from modules.geometry.mesh import TexturedMesh
from modules.pipelines.text_to_mesh import draw_images
from modules.reporting.charts import Curve, line_chart, read_csv_logs
from modules.reporting.figure_notes import FIGURE_NOTES, table_rows
from modules.reporting.page import duration, write_page
from modules.reporting.pictures import shaded_views, turntable, turntable_cameras


def two_coloured_slab() -> TexturedMesh:
    """A thin upright slab: red above, blue below."""
    x, y = 0.4, 0.05
    corners = np.array(
        [[sx * x, sy * y, z] for z in (-0.5, 0.5) for sx in (-1, 1) for sy in (-1, 1)]
    )
    faces = np.array([
        [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5], [0, 1, 4], [1, 5, 4], [2, 6, 3], [3, 6, 7],
        [4, 5, 6], [5, 7, 6], [0, 2, 1], [1, 2, 3],
    ])  # fmt: skip
    uv = np.stack([np.full(8, 0.5), (corners[:, 2] + 0.5) * 0.98 + 0.01], axis=1)
    texture = np.zeros((64, 8, 3), dtype=np.uint8)
    texture[:32], texture[32:] = (220, 30, 30), (30, 30, 220)
    return TexturedMesh(corners, faces, uv, texture)


def test_a_turntable_stands_upright_and_turns():
    mesh = two_coloured_slab()
    strip = turntable(mesh, num_views=4, resolution_px=60)
    assert strip.shape == (60, 240, 4)
    above, below = strip[15, 30], strip[45, 30]
    assert above[0] > above[2] > 0
    assert below[2] > below[0] > 0
    assert strip[0, 0, 3] == 0  # transparent corner
    views = shaded_views(mesh, turntable_cameras(mesh, 2, start_deg=0.0), 60)
    edge_on = shaded_views(mesh, turntable_cameras(mesh, 2, start_deg=90.0), 60)
    assert (views[0, ..., 3] > 0).sum() > 2 * (edge_on[0, ..., 3] > 0).sum()


def test_the_light_comes_from_the_camera_so_no_view_is_black():
    strip = turntable(two_coloured_slab(), num_views=8, resolution_px=40)
    views = strip.reshape(40, 8, 40, 4)
    for i in range(8):
        seen = views[:, i][views[:, i, :, 3] == 255]
        assert seen[:, :3].max(axis=1).min() > 60


def test_images_are_drawn_with_a_row_a_modality_and_a_column_a_view(tmp_path):
    images = torch.zeros(3, 2, 3, 4, 4)
    images[0, 1], images[2, 0] = 1.0, -1.0
    draw_images(images, tmp_path / "views.png")
    drawn = np.asarray(Image.open(tmp_path / "views.png"))
    assert drawn.shape == (12, 8, 3)
    assert (drawn[:4, 4:] == 255).all()
    assert (drawn[8:, :4] == 0).all()
    assert (drawn[4:8] == 128).all()


def test_csv_logs_of_a_resumed_run_are_joined_by_step(tmp_path):
    for version, rows in (
        (0, "0,,1.0\n10,0.5,0.8\n20,0.4,0.7\n"),
        (1, "20,0.3,0.6\n30,0.2,nan\n40,0."),  # the last row was torn by a kill
    ):
        folder = tmp_path / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss/rgb,train/loss/total\n{rows}")
    logs = read_csv_logs(tmp_path)
    assert logs["train/loss/total"] == Curve((0.0, 10.0, 20.0), (1.0, 0.8, 0.6))
    assert logs["train/loss/rgb"] == Curve((10.0, 20.0, 30.0, 40.0), (0.5, 0.3, 0.2, 0.0))
    assert read_csv_logs(tmp_path / "nothing here") == {}


def test_a_chart_holds_every_curve_within_its_frame():
    steps = tuple(float(i) for i in range(0, 400, 10))
    falling = Curve(steps, tuple(2.0 * 0.97**i for i in range(len(steps))))
    svg = line_chart({"total": falling, "rgb <&>": Curve((0.0, 390.0), (0.0, 0.3))}, "a <title>")
    assert "&lt;title&gt;" in svg
    assert svg.count("<polyline") == 4
    width, height = (float(n) for n in re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    for points in re.findall(r'points="([^"]+)"', svg):
        for pair in points.split():
            x, y = (float(number) for number in pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert line_chart({"none": Curve((0.0,), (0.0,))}, "empty") == ""


def test_tables_follow_the_notes_and_leave_out_what_was_not_measured():
    statistics = {"median": 0.5, "mean": 0.25, "p10": 0.0, "p90": 1.0}
    rows = table_rows({"f_score_0.02": statistics, "unknown": statistics}, {})
    assert [row["note"].key for row in rows] == ["f_score_0.02"]
    assert (rows[0]["median"], rows[0]["floor"]) == ("0.500", "")
    assert len({note.key for note in FIGURE_NOTES}) == len(FIGURE_NOTES)


def test_a_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(tmp_path):
    pair = {"name": "<b>odd & name", "failed": "it is <broken>", "metrics": {}, "picture": None}
    report = {
        "about": {"task": "meshes"}, "num_pairs": 1, "num_failed": 1,
        "summary": {}, "pairs": [pair],
        "inputs": {}, "method": {"grid": 96},
        "protocol": {"num_samples": 1000, "num_views": 1, "resolution_px": 16, "seed": 0},
        "environment": {"git_sha": "x", "machine": "y", "system": "z", "python": "3"},
    }  # fmt: skip
    path = tmp_path / "report.html"
    notes = {note.key: note for note in FIGURE_NOTES}
    write_page("evaluation.html.j2", path, report=report, rows=[], notes=notes, pictures={})
    page = path.read_text()
    assert "&lt;b&gt;odd &amp; name" in page
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.42, "0.4 s"), (38.4, "38 s"), (59.7, "1 min 00 s"), (125.0, "2 min 05 s")],
)
def test_durations_read_like_speech(seconds, said):
    assert duration(seconds) == said

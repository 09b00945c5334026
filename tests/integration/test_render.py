"""Rendering with real Blender workers: bad files, formats, frames."""

import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from balls import asset, write_ball
from golden.glb import GlbBuilder, uv_sphere, y_up

from data_pipeline.codec import decode_views
from data_pipeline.contract import RenderSpec, UserError
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

pytestmark = pytest.mark.blender

SMALL = RenderSpec(resolution_px=32, samples=2, surface_points=64, sdf_points=64)
REPOSITORY = Path(__file__).parents[2]
DEVELOPMENT_ASSETS = REPOSITORY.parent / "shared" / "assets"


def write_triangles(path: Path, corners: list) -> Asset:
    builder = GlbBuilder()
    builder.add_mesh(np.array([corners], dtype=np.float32))
    return asset(builder.write(path))


def write_bad_files(folder: Path) -> dict[str, tuple[Asset, str]]:
    """Return by name: the asset and the reason for which it must fail."""
    ball = write_ball(folder / "ball.glb").path.read_bytes()
    length = struct.unpack_from("<I", ball, 12)[0]

    def file(name: str, content: bytes, reason: str) -> tuple[Asset, str]:
        (folder / name).write_bytes(content)
        return asset(folder / name), reason

    no_mesh = GlbBuilder()
    no_mesh.document["nodes"].append({"name": "lonely"})
    nan = float("nan")
    ply_head = "ply\nformat ascii 1.0\nelement vertex 3\n"
    ply_head += "".join(f"property float {axis}\n" for axis in "xyz")
    ply_head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    clear = GlbBuilder()
    material = clear.add_material(
        pbrMetallicRoughness={"baseColorFactor": [1, 1, 1, 0.1]}, alphaMode="BLEND"
    )
    clear.add_mesh(uv_sphere(1.0, 4)[0], material=material)
    packed = GlbBuilder()
    packed.document["extensionsRequired"] = ["EXT_meshopt_compression"]
    packed.add_mesh(uv_sphere(1.0, 4)[0])
    cases = [
        file("zero_bytes.glb", b"", "unreadable"),
        file("truncated.glb", ball[: len(ball) // 2], "unreadable"),
        file("garbage.glb", bytes(range(256)) * 9, "unreadable"),
        file("broken_json.glb", ball[:20] + b"{" * length + ball[20 + length :], "unreadable"),
        file("garbage.fbx", b"Kaydara nothing", "unreadable"),
        file("notes.txt", b"hello", "unsupported"),
        (asset(folder / "missing.glb"), "unreadable"),
        (asset(no_mesh.write(folder / "no_mesh.glb")), "empty"),
        (write_triangles(folder / "no_area.glb", [[0, 0, 0], [1, 0, 0], [2, 0, 0]]), "empty"),
        (write_triangles(folder / "one_point.glb", [[1, 2, 3]] * 3), "empty"),
        (write_triangles(folder / "nan.glb", [[0, 0, 0], [1, nan, 0], [0, 1, 0]]), "nonfinite"),
        file("nan.ply", f"{ply_head}0 0 0\n1 nan 0\n0 1 0\n3 0 1 2\n".encode(), "nonfinite"),
        file("nan.obj", b"v 0 0 0\nv 1 nan 0\nv 0 1 0\nf 1 2 3\n", "nonfinite"),
        (asset(clear.write(folder / "clear.glb")), "blank"),
        (asset(packed.write(folder / "packed.glb")), "unsupported"),
    ]
    return {case.uid: (case, reason) for case, reason in cases}


def test_bad_files_fail_by_name_and_the_run_goes_on(tmp_path):
    bad = write_bad_files(tmp_path)
    good = [write_ball(tmp_path / "first.glb"), write_ball(tmp_path / "zlast.glb", 2.0)]
    assets = sorted([*good, *(case for case, _ in bad.values())], key=lambda a: a.uid)
    summary = render_assets(assets, tmp_path / "out", SMALL, workers=1)
    staging = Staging(tmp_path / "out")
    assert staging.done_uids() == ["first_glb", "zlast_glb"]
    failures = staging.failures()
    assert {uid: record["reason"] for uid, record in failures.items()} == {
        uid: reason for uid, (_, reason) in bad.items()
    }
    for record in failures.values():
        assert record["message"]
        assert "\n" not in record["message"]
    assert summary.num_rendered == 2
    assert sum(summary.failures.values()) == len(bad)

    again = render_assets(assets, tmp_path / "out", SMALL, workers=1)
    assert (again.num_rendered, again.num_skipped, again.failures) == (0, len(assets), {})

    (tmp_path / "garbage.glb").write_bytes(good[0].path.read_bytes())  # the user mends one
    retried = render_assets(assets, tmp_path / "out", SMALL, workers=1, retry="unreadable")
    assert (retried.num_rendered, set(retried.failures)) == (1, {"unreadable"})
    assert "garbage_glb" in staging.done_uids()
    with pytest.raises(UserError, match="no reason of failure"):
        render_assets(assets, tmp_path / "out", SMALL, retry="bad luck")


def test_other_formats_keep_their_frame_and_their_vertex_colours(tmp_path):
    """A box of 3 x 2 x 1 (Z up), red above and blue below, as PLY; without colours as OBJ, STL."""
    corners = np.array([(x, y, z) for z in (0, 1) for y in (0, 2) for x in (0, 3)])
    faces = [
        (0, 2, 1), (1, 2, 3), (4, 5, 6), (5, 7, 6), (0, 1, 4), (1, 5, 4),
        (2, 6, 3), (3, 6, 7), (0, 4, 2), (2, 4, 6), (1, 3, 5), (3, 7, 5),
    ]  # fmt: skip
    ply = ["ply", "format ascii 1.0", f"element vertex {len(corners)}"]
    ply += [f"property float {axis}" for axis in "xyz"]
    ply += [f"property uchar {name}" for name in ("red", "green", "blue")]
    ply += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    ply += [f"{x} {y} {z} " + ("200 40 40" if z else "40 60 210") for x, y, z in corners]
    ply += [f"3 {a} {b} {c}" for a, b, c in faces]
    (tmp_path / "box.ply").write_text("\n".join(ply) + "\n")
    obj = [f"v {x} {z} {-y}" for x, y, z in corners]  # OBJ is Y up
    obj += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
    (tmp_path / "box.obj").write_text("\n".join(obj) + "\n")
    soup = corners[np.array(faces)].astype("<f4")
    stl = b"\0" * 80 + struct.pack("<I", len(soup))
    stl += b"".join(b"\0" * 12 + triangle.tobytes() + b"\0\0" for triangle in soup)
    (tmp_path / "box.stl").write_bytes(stl)
    assets = [asset(tmp_path / f"box.{suffix}") for suffix in ("obj", "ply", "stl")]
    assert render_assets(assets, tmp_path / "out", SMALL, workers=1).failures == {}
    staging = Staging(tmp_path / "out")
    for thing in assets:
        members = staging.read(thing.uid)
        with np.load(io.BytesIO(members["geometry.npz"])) as arrays:
            position = arrays["surface_position"]
        extent = np.abs(position).max(axis=0)
        np.testing.assert_allclose(extent, [0.5, 1 / 3, 1 / 6], atol=0.01)
        rgb = decode_views(members["rgb.png"], 6)
        top, bottom = rgb[4, 16, 16, :3], rgb[5, 16, 16, :3]
        coloured = thing.path.suffix == ".ply"
        np.testing.assert_allclose(top, (200, 40, 40) if coloured else (128,) * 3, atol=1)
        np.testing.assert_allclose(bottom, (40, 60, 210) if coloured else (128,) * 3, atol=1)


EXPORT = """
import sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1] + "/source.glb")
for thing in bpy.data.objects:
    thing.location.x += 2.0
bpy.ops.export_scene.gltf(filepath=sys.argv[1] + "/box.glb", export_format="GLB")
bpy.ops.export_scene.fbx(filepath=sys.argv[1] + "/box.fbx")
bpy.ops.wm.usd_export(filepath=sys.argv[1] + "/box.usdc", convert_orientation=True)
bpy.ops.wm.usd_export(filepath=sys.argv[1] + "/zup.usda")
bpy.ops.wm.collada_export(filepath=sys.argv[1] + "/box.dae")
bpy.ops.wm.obj_export(filepath=sys.argv[1] + "/box.obj")
"""


def test_every_importer_gives_the_same_sample_of_the_same_scene(tmp_path):
    """Two balls of different sizes and colours, written by Blender in six formats."""
    builder = GlbBuilder()
    for place, size, colour in ((0.0, 1.0, [0.6, 0.05, 0.05]), (1.5, 0.5, [0.05, 0.1, 0.7])):
        triangles, normals = uv_sphere(size, 24)
        material = builder.add_material(pbrMetallicRoughness={"baseColorFactor": [*colour, 1.0]})
        moved = triangles + np.array([place, 0.3 * place, place])
        builder.add_mesh(y_up(moved), normals=y_up(normals), material=material)
    builder.write(tmp_path / "source.glb")
    python = str(find_blender_python(None))
    subprocess.run([python, "-c", EXPORT, str(tmp_path)], check=True, capture_output=True)
    names = ("box.glb", "box.fbx", "box.usdc", "zup.usda", "box.dae", "box.obj")
    assets = [asset(tmp_path / name) for name in names]
    spec = RenderSpec(resolution_px=64, samples=2, surface_points=64, sdf_points=64)
    assert render_assets(assets, tmp_path / "out", spec, workers=1).failures == {}
    staging = Staging(tmp_path / "out")

    def member(thing: Asset, name: str) -> np.ndarray:
        return decode_views(staging.read(thing.uid)[name], 6).astype(float)

    # Silhouettes are anti-aliased with a seed of their own for every asset: compare within them.
    solid = [member(thing, "rgb.png")[..., 3] == 255 for thing in assets]
    for thing, inside in zip(assets[1:], solid[1:], strict=True):
        both = inside & solid[0]
        assert both.sum() > 0.97 * max(inside.sum(), solid[0].sum()), thing.uid
        for name, tolerance in (("rgb.png", 2), ("coord.png", 70), ("normal.png", 700)):
            difference = np.abs(member(thing, name) - member(assets[0], name))[both]
            assert np.quantile(difference, 0.99) <= tolerance, f"{thing.uid} {name}"


@pytest.mark.assets
def test_real_assets_of_every_kind_render(tmp_path):
    if not DEVELOPMENT_ASSETS.is_dir():
        pytest.skip(f"no development assets at {DEVELOPMENT_ASSETS}")
    kinds = {
        "skinned": "q_animals_horse",
        "draco": "market_ship_light",
        "vertex colours": "q_survival_shovel",
        "texture transform": "kenneycity_grass_trees_tall",
        "unlit, transparent": "market_glass_wine",
        "scan": "ycb_apple",
    }
    assets = [asset(DEVELOPMENT_ASSETS / f"{name}.glb") for name in kinds.values()]
    spec = RenderSpec(resolution_px=64, samples=4, surface_points=1024, sdf_points=1024)
    assert render_assets(assets, tmp_path / "out", spec).failures == {}
    staging = Staging(tmp_path / "out")
    for thing in assets:
        with np.load(io.BytesIO(staging.read(thing.uid)["geometry.npz"])) as arrays:
            assert (arrays["sdf_distance"] < 0).any()
            assert np.abs(arrays["surface_position"]).max() <= 0.5 + 1e-6
            spread = arrays["surface_albedo"].astype(float).std(axis=0).max()
        assert thing.uid == "market_glass_wine_glb" or spread > 1.0

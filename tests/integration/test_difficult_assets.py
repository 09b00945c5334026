"""However a scene is written, what is rendered is the scene; or it is refused with a reason."""

import subprocess

import numpy as np
import pytest
from difficult_assets import RED, REFUSED, RIGHT, box, colour, scene, write_all
from golden.glb import GlbBuilder
from rendering import Rendered, render

from data_pipeline.contract import RenderSpec
from data_pipeline.render.command import find_blender_python

pytestmark = pytest.mark.blender

SPEC = RenderSpec(resolution_px=64, samples=4, surface_points=256, sdf_points=256)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Rendered:
    folder = tmp_path_factory.mktemp("difficult")
    return render(write_all(folder), folder / "out", SPEC)


def assert_same(rendered: Rendered, uid: str, other: str) -> None:
    hit, true_hit = rendered.views(uid, "hit") > 0, rendered.views(other, "hit") > 0
    assert (hit != true_hit).mean() < 2e-3, uid  # pixel centres upon an edge fall either way
    both = hit & true_hit
    for name, tolerance in (("coord", 2e-3), ("normal", 1e-3)):
        error = np.abs(rendered.views(uid, name) - rendered.views(other, name))[both]
        assert np.quantile(error, 0.99) < tolerance, f"{uid} {name}"
    # Silhouettes are anti-aliased with a seed of their own for every uid: compare within them.
    solid = both & (rendered.views(uid, "rgb")[..., 3] == 255)
    solid &= rendered.views(other, "rgb")[..., 3] == 255
    error = np.abs(rendered.over_white(uid) - rendered.over_white(other))[solid]
    assert np.quantile(error, 0.97) <= 1.0, uid
    flags = [rendered.meta(key)["qa"]["flags"] for key in (uid, other)]
    assert flags[0] == flags[1]


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "plain"])
def test_a_difficult_asset_comes_out_as_the_plain_scene(rendered, name):
    assert name not in rendered.failures, rendered.failures.get(name)
    assert_same(rendered, name, "plain")


@pytest.mark.parametrize("name", REFUSED)
def test_what_blender_cannot_read_is_refused_with_the_reason(rendered, name):
    failure = rendered.failures[name]
    assert failure["reason"] == "unsupported"
    assert "rewrite the file" in failure["message"]


def test_the_plain_scene_is_what_the_file_says(rendered):
    """Red box left, blue box right and higher, seen from the front; nothing is flagged."""
    hit, rgb = rendered.views("plain", "hit")[0] > 0, rendered.views("plain", "rgb")[0]
    columns = np.nonzero(hit.any(axis=0))[0]
    assert columns[-1] - columns[0] + 1 == pytest.approx(64 / 1.1, abs=1.5)
    left, right = rgb[32, columns[0] + 8, :3].astype(int), rgb[26, columns[-1] - 5, :3].astype(int)
    assert left[0] > 2 * left[2]
    assert right[2] > 2 * right[0]
    assert rendered.meta("plain")["qa"]["flags"] == []


def test_a_sheet_faces_the_camera_from_both_sides(tmp_path):
    builder = GlbBuilder()
    sheet = box((0, 0, 0), (1.0, 1.0, 1.0))[0][-2:] - (0, 0, 1.0)  # two triangles facing +Z (glTF)
    builder.add_mesh(sheet, material=colour(builder, RED, doubleSided=True))
    done = render({"sheet": builder.write(tmp_path / "sheet.glb")}, tmp_path / "out", SPEC)
    normal, hit = done.views("sheet", "normal"), done.views("sheet", "hit") > 0
    for view, out in ((0, (0, -1, 0)), (2, (0, 1, 0))):
        assert hit[view].mean() > 0.7
        np.testing.assert_allclose(normal[view][hit[view]], [out] * hit[view].sum(), atol=1e-4)


DRACO = """
import sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
bpy.ops.export_scene.gltf(filepath=sys.argv[2], export_draco_mesh_compression_enable=True)
"""


def test_draco_comes_out_as_the_plain_scene(tmp_path):
    plain, packed = scene().write(tmp_path / "plain.glb"), tmp_path / "draco.glb"
    python = str(find_blender_python(None))
    command = [python, "-c", DRACO, str(plain), str(packed)]
    subprocess.run(command, check=True, capture_output=True)
    assert b"KHR_draco_mesh_compression" in packed.read_bytes()
    done = render({"plain": plain, "draco": packed}, tmp_path / "out", SPEC)
    assert_same(done, "draco", "plain")


BLEND = """
import sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
text = bpy.data.texts.new("evil.py")
text.write(f"open({sys.argv[3]!r}, 'w').write('ran')")
text.use_module = True  # "Register": runs at load where scripts may run
thing = bpy.data.objects[0]
driver = thing.driver_add("location", 0).driver
driver.expression = f"open({sys.argv[3]!r}, 'w').close() or 100"
hidden = thing.copy()
hidden.hide_render = True
hidden.location.z += 9
bpy.context.scene.collection.objects.link(hidden)
bpy.context.scene.render.resolution_x = 7
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[2])
import os
if os.path.exists(sys.argv[3]): os.remove(sys.argv[3])
os._exit(0)  # Blender's own end can hang after a failed driver
"""


def test_a_blend_file_is_rendered_and_none_of_its_scripts_runs(tmp_path):
    plain, blend = scene().write(tmp_path / "plain.glb"), tmp_path / "scene.blend"
    trace = tmp_path / "it_ran"
    command = [str(find_blender_python(None)), "-c", BLEND, str(plain), str(blend), str(trace)]
    subprocess.run(command, check=True, capture_output=True)
    done = render({"plain": plain, "blend": blend}, tmp_path / "out", SPEC)
    assert done.failures == {}
    assert not trace.exists()
    assert_same(done, "blend", "plain")


def test_an_image_outside_of_the_assets_folder_is_not_read(tmp_path):
    folder = tmp_path / "asset"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "thing.obj").write_text(
        "mtllib thing.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    )
    (folder / "thing.mtl").write_text("newmtl m\nmap_Kd ../secret.png\n")
    done = render({"thing": folder / "thing.obj"}, tmp_path / "out", SPEC)
    assert done.failures["thing"]["reason"] == "unsupported"
    assert "secret.png" in done.failures["thing"]["message"]


def test_a_texture_that_is_not_there_is_a_named_failure(tmp_path):
    (tmp_path / "thing.obj").write_text(
        "mtllib thing.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    )
    (tmp_path / "thing.mtl").write_text("newmtl m\nmap_Kd lost.png\n")
    done = render({"thing": tmp_path / "thing.obj"}, tmp_path / "out", SPEC)
    assert done.failures["thing"]["reason"] == "missing_texture"
    assert "lost.png" in done.failures["thing"]["message"]


def test_vertices_far_from_the_origin_keep_what_their_float32_holds(tmp_path):
    """Off by 1e4 in the vertices themselves: steps of 1e-3 of a unit, and no more than that."""
    paths = {
        "plain": scene().write(tmp_path / "plain.glb"),
        "far": scene(shift=(1e4, -1e4, 1e4)).write(tmp_path / "far.glb"),
    }
    done = render(paths, tmp_path / "out", SPEC)
    assert_same(done, "far", "plain")
    assert done.meta("far")["qa"]["max_abs_coord"] < 0.501

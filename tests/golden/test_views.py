"""Golden tests of the conventions: what Blender renders is what docs/conventions.md says.

Expectations are written out here from the text of the conventions, not taken from the code.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from golden.glb import GlbBuilder, uv_sphere, y_up
from numpy.typing import NDArray
from scipy.spatial import KDTree

from data_pipeline.codec import decode_views
from data_pipeline.contract import (
    Camera,
    RenderSpec,
    UserError,
    check_meta,
    decode_coord,
    decode_normal,
)
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

pytestmark = pytest.mark.blender

RESOLUTION_PX = 256
ORTHO_SCALE = 1.1

# View: letter, colour, the direction in which its camera stands, image right, image up.
FACES = {
    "az000": ("F", (200, 40, 40), (0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "az090": ("R", (40, 160, 60), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "az180": ("B", (50, 80, 210), (0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "az270": ("L", (230, 200, 40), (-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "top": ("T", (170, 60, 190), (0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "bottom": ("G", (240, 240, 240), (0, 0, -1), (1, 0, 0), (0, -1, 0)),
}


@dataclass(frozen=True)
class Sample:
    meta: dict
    cameras: list[Camera]
    rgb: NDArray[np.uint8]
    normal: NDArray[np.float32]
    coord: NDArray[np.float32]
    hit: NDArray[np.bool_]
    geometry: dict[str, NDArray]

    def view(self, name: str) -> int:
        return [camera.name for camera in self.cameras].index(name)


def read_sample(members: dict[str, bytes]) -> Sample:
    meta = json.loads(members["meta.json"])
    check_meta(meta)
    cameras = [
        Camera(**camera | {"camera_to_world": tuple(map(tuple, camera["camera_to_world"]))})
        for camera in meta["cameras"]
    ]

    def views(name: str) -> NDArray:
        return decode_views(members[name], len(cameras))

    with np.load(io.BytesIO(members["geometry.npz"])) as arrays:
        geometry = dict(arrays)
    return Sample(
        meta, cameras, views("rgb.png"), decode_normal(views("normal.png")),
        decode_coord(views("coord.png")), views("hit.png") > 0, geometry,
    )  # fmt: skip


def letter_image(letter: str, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return a 256 px picture of a black letter, upright and off centre, on `colour`."""
    image = np.empty((256, 256, 3), dtype=np.uint8)
    image[:] = colour
    cv2.putText(image, letter, (40, 200), cv2.FONT_HERSHEY_SIMPLEX, 6.0, (0, 0, 0), 24)
    image[:24, -24:] = (255, 255, 255)  # a mark at the top right: no letter is then symmetric
    return image


def quad(centre, right, up) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two triangles and glTF's texture coordinates: the image upright as seen."""
    centre, right, up = (np.asarray(v, dtype=np.float64) for v in (centre, right, up))
    corners = {(x, y): centre + x * right + y * up for x in (-1, 1) for y in (-1, 1)}
    order = [(-1, -1), (1, -1), (1, 1), (-1, -1), (1, 1), (-1, 1)]
    uv = [((x + 1) / 2, (1 - y) / 2) for x, y in order]
    triangles = np.array([corners[place] for place in order]).reshape(2, 3, 3)
    return triangles, np.array(uv).reshape(2, 3, 2)


def write_lettered_cube(path: Path) -> None:
    builder = GlbBuilder()
    for letter, colour, out, right, up in FACES.values():
        image = builder.add_image(letter_image(letter, colour))
        material = builder.add_material(
            pbrMetallicRoughness={"baseColorTexture": {"index": image}, "metallicFactor": 0.3}
        )
        triangles, uv = quad(3.0 * np.array(out), 3.0 * np.array(right), 3.0 * np.array(up))
        # Off the origin and six units wide: rendering must bring it into the unit cube.
        builder.add_mesh(y_up(triangles + np.array((5.0, -2.0, 9.0))), uv=uv, material=material)
    builder.write(path)


def write_sphere(path: Path) -> None:
    triangles, normals = uv_sphere(1.0, 64)
    builder = GlbBuilder()
    builder.add_mesh(y_up(triangles), normals=y_up(normals))
    builder.write(path)


SKEW = np.array([[1.0, 0.3, 0.0], [0.0, 0.7, 0.25], [0.1, 0.0, 0.5]])


def write_skewed(path: Path) -> None:
    """A skewed ellipsoid and a small ball beside it: no symmetry is left."""
    triangles, normals = uv_sphere(1.0, 64)
    builder = GlbBuilder()
    skewed = normals @ np.linalg.inv(SKEW)
    skewed /= np.linalg.norm(skewed, axis=-1, keepdims=True)
    builder.add_mesh(y_up(triangles @ SKEW.T), normals=y_up(skewed))
    builder.add_mesh(y_up(0.4 * triangles + (0.9, -0.6, 0.7)), normals=y_up(normals))
    builder.write(path)


def checkered_alpha() -> NDArray[np.uint8]:
    """A green picture whose left half is clear."""
    image = np.zeros((64, 64, 4), dtype=np.uint8)
    image[:] = (30, 150, 70, 255)
    image[:, :32, 3] = 0
    return image


def flat(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), colour, dtype=np.uint8)


def linear(*srgb: int) -> list[float]:
    value = np.array(srgb) / 255.0
    return [*np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), 1.0]


# Panels side by side, facing az000: name and sRGB to be read back.
PANELS = {
    "texel": (200, 40, 40),
    "metal": (180, 120, 60),
    "mask": (30, 150, 70),
    "vertex": (60, 90, 200),
    "unlit": (120, 200, 220),
    "product": (0, 0, 0),  # computed in the test
    "none": (128, 128, 128),
    "glowing": (90, 20, 110),
    "glass": (10, 130, 140),
}


def write_panels(path: Path) -> None:
    builder = GlbBuilder()

    def textured(colour, **more):
        texture = {"index": builder.add_image(flat(colour))}
        return {"baseColorTexture": texture, **more}

    materials = {
        "texel": {"pbrMetallicRoughness": textured(PANELS["texel"])},
        "metal": {
            "pbrMetallicRoughness": {
                "baseColorFactor": linear(*PANELS["metal"]),
                "metallicFactor": 1.0,
                "roughnessFactor": 0.0,
            }
        },
        "mask": {
            "pbrMetallicRoughness": {
                "baseColorTexture": {"index": builder.add_image(checkered_alpha())}
            },
            "alphaMode": "MASK",
            "alphaCutoff": 0.4,
        },
        "vertex": {"pbrMetallicRoughness": {"metallicFactor": 0.0}},
        "unlit": {
            "pbrMetallicRoughness": textured(PANELS["unlit"]),
            "extensions": {"KHR_materials_unlit": {}},
        },
        "product": {
            "pbrMetallicRoughness": textured((200, 100, 250), baseColorFactor=[0.5, 0.25, 1, 1])
        },
        "glowing": {
            "pbrMetallicRoughness": {"baseColorFactor": linear(*PANELS["glowing"])},
            "emissiveFactor": [1.0, 1.0, 1.0],
        },
        "glass": {
            "pbrMetallicRoughness": {"baseColorFactor": [*linear(*PANELS["glass"])[:3], 0.25]},
            "alphaMode": "BLEND",
        },
    }
    builder.document["extensionsUsed"] = ["KHR_materials_unlit"]
    for place, name in enumerate(PANELS):
        material = builder.add_material(**materials[name]) if name in materials else None
        triangles, uv = quad((place, 0, 0), (0.4, 0, 0), (0, 0, 0.4))
        colours = np.tile(linear(*PANELS["vertex"]), (2, 3, 1)) if name == "vertex" else None
        builder.add_mesh(y_up(triangles), uv=uv, material=material, colours=colours)
    builder.write(path)


WRITERS = {
    "cube": write_lettered_cube,
    "sphere": write_sphere,
    "skewed": write_skewed,
    "panels": write_panels,
}


@pytest.fixture(scope="module", params=["ortho6", "pinhole4"])
def samples(request, tmp_path_factory) -> dict[str, Sample]:
    try:
        find_blender_python(None)
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp(request.param)
    assets = []
    for uid, write in WRITERS.items():
        write(root / f"{uid}.glb")
        assets.append(Asset(uid=uid, path=root / f"{uid}.glb", captions=(uid,)))
    spec = RenderSpec(
        layout=request.param,
        resolution_px=RESOLUTION_PX,
        samples=16,
        surface_points=4096,
        sdf_points=1024,
    )
    summary = render_assets(assets, root / "staging", spec, workers=1)
    assert summary.failures == {}
    staging = Staging(root / "staging")
    return {asset.uid: read_sample(staging.read(asset.uid)) for asset in assets}


ortho6 = pytest.mark.parametrize("samples", ["ortho6"], indirect=True)


@ortho6
def test_no_face_of_the_cube_is_mirrored_or_turned(samples):
    cube = samples["cube"]
    plane = ((np.arange(RESOLUTION_PX) + 0.5) / RESOLUTION_PX - 0.5) * ORTHO_SCALE
    x, y = np.meshgrid(plane, -plane)
    inside = np.maximum(np.abs(x), np.abs(y)) < 0.5 - 0.01
    texel_x = np.clip((x + 0.5) * 256, 0, 255).astype(int)
    texel_y = np.clip((0.5 - y) * 256, 0, 255).astype(int)
    for name, (letter, colour, *_) in FACES.items():
        seen = cube.rgb[cube.view(name)].astype(float)[..., :3]
        picture = letter_image(letter, colour)
        errors = {}
        for mirror in (False, True):
            for turns in range(4):
                posed = np.rot90(picture[:, ::-1] if mirror else picture, turns)
                difference = np.abs(seen - posed[texel_y, texel_x])[inside]
                errors[mirror, turns] = difference.mean()
        assert errors[False, 0] < 2.0, f"{name}: {errors}"
        assert min(errors.values()) == errors[False, 0]
        assert sorted(errors.values())[1] > 5 * errors[False, 0]


@ortho6
def test_each_view_shows_the_side_of_the_world_that_its_name_says(samples):
    cube = samples["cube"]
    for name, (_, _, out, right, up) in FACES.items():
        view = cube.view(name)
        np.testing.assert_allclose(
            cube.normal[view][cube.hit[view]], [out] * cube.hit[view].sum(), atol=1e-4
        )
        position = cube.coord[view]
        middle = RESOLUTION_PX // 2
        across = position[middle, -20] - position[middle, 20]
        upwards = position[20, middle] - position[-20, middle]
        assert np.dot(across, right) == pytest.approx(np.linalg.norm(across), rel=1e-3)
        assert np.dot(upwards, up) == pytest.approx(np.linalg.norm(upwards), rel=1e-3)


def test_the_cube_fills_the_unit_cube_and_maps_back_to_its_source(samples):
    meta = samples["cube"].meta
    assert meta["qa"]["max_abs_coord"] == pytest.approx(0.5, abs=1e-5)
    back = (np.array([0.5, 0.5, 0.5]) - meta["offset"]) / meta["scale"]
    np.testing.assert_allclose(back, [8.0, 1.0, 12.0], atol=1e-4)


@pytest.mark.parametrize("uid", ["cube", "sphere", "skewed"])
def test_positions_project_to_their_own_pixel_centres(samples, uid):
    sample = samples[uid]
    centre = np.arange(RESOLUTION_PX) + 0.5
    own = np.stack(np.meshgrid(centre, centre), axis=-1)
    for camera, position, hit in zip(sample.cameras, sample.coord, sample.hit, strict=True):
        pixels, depth = camera.project(position, RESOLUTION_PX)
        assert hit.any()
        assert np.abs(pixels - own)[hit].max() < 0.01
        assert (depth[hit] > 0).all()


@pytest.mark.parametrize("uid", list(WRITERS))
def test_normals_are_unit_on_every_hit_pixel_face_the_camera_and_vanish_elsewhere(samples, uid):
    sample = samples[uid]
    length = np.linalg.norm(sample.normal, axis=-1)
    assert np.abs(length[sample.hit] - 1.0).max() < 1e-4
    assert length[~sample.hit].max() < 1e-4
    for camera, normal, hit in zip(sample.cameras, sample.normal, sample.hit, strict=True):
        _, directions = camera.rays(RESOLUTION_PX)
        # A smooth-shaded silhouette may lean beyond the horizon, by no more than its facets' angle.
        assert (normal * directions).sum(-1)[hit].max(initial=0.0) < 0.05


@pytest.mark.parametrize("uid", list(WRITERS))
def test_the_background_of_normal_and_coord_is_mid_grey(samples, uid):
    sample = samples[uid]
    assert np.abs(sample.coord[~sample.hit]).max() < 1e-4
    assert (sample.rgb[sample.rgb[..., 3] == 0] == 0).all()


def test_normals_of_a_sphere_are_its_radii(samples):
    sphere = samples["sphere"]
    position = sphere.coord[sphere.hit]
    radial = position / np.linalg.norm(position, axis=-1, keepdims=True)
    cosine = (radial * sphere.normal[sphere.hit]).sum(-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.0


def test_normals_of_a_skewed_shape_are_the_analytic_ones_in_every_view(samples):
    sample = samples["skewed"]
    for position, normal, hit in zip(sample.coord, sample.normal, sample.hit, strict=True):
        source = (position[hit] - sample.meta["offset"]) / sample.meta["scale"]
        unit = source @ np.linalg.inv(SKEW).T
        on_ellipsoid = np.abs(np.linalg.norm(unit, axis=-1) - 1.0) < 0.003
        expected = (unit @ np.linalg.inv(SKEW))[on_ellipsoid]
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        cosine = (expected * normal[hit][on_ellipsoid]).sum(-1)
        assert on_ellipsoid.mean() > 0.5
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 2.0


def test_one_surface_point_has_one_world_normal_whichever_view_sees_it(samples):
    sample = samples["skewed"]
    points = [position[hit] for position, hit in zip(sample.coord, sample.hit, strict=True)]
    normals = [normal[hit] for normal, hit in zip(sample.normal, sample.hit, strict=True)]
    num_pairs = 0
    for first in range(len(points)):
        for second in range(first):
            distance, nearest = KDTree(points[first]).query(points[second])
            same = distance < 0.002
            num_pairs += same.sum()
            cosine = (normals[second][same] * normals[first][nearest[same]]).sum(-1)
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            assert (
                angle.max(initial=0.0) < 2.0
            )  # two thousandths apart on a ball of radius 0.15: 0.8
    assert num_pairs > 1000


@pytest.mark.parametrize("uid", ["cube", "sphere", "skewed"])
def test_alpha_and_hit_differ_at_silhouettes_only(samples, uid):
    sample = samples[uid]
    alpha = sample.rgb[..., 3]
    assert (alpha[sample.hit] > 0).all()  # the centre is one of the anti-aliasing samples
    assert sample.hit[alpha == 255].all()
    partial = (alpha > 0) & (alpha < 255)
    kernel = np.ones((3, 3), np.uint8)
    for edge, hit in zip(partial, sample.hit.astype(np.uint8), strict=True):
        silhouette = cv2.dilate(hit, kernel) != cv2.erode(hit, kernel)
        assert not (edge & ~silhouette).any()
    assert partial.any()


def panel_pixels(sample: Sample) -> dict[str, tuple[int, slice, slice]]:
    """Return for every panel the rows and columns of az000 within its right half."""
    view = sample.view("az000")
    camera = sample.cameras[view]
    boxes = {}
    for place, name in enumerate(PANELS):
        corners = np.array([[place + 0.08, 0, -0.25], [place + 0.3, 0, 0.25]])
        world = corners * sample.meta["scale"] + sample.meta["offset"]
        (left, bottom), (right, top) = camera.project(world, RESOLUTION_PX)[0]
        rows, columns = slice(int(np.ceil(top)), int(bottom)), slice(int(np.ceil(left)), int(right))
        assert rows.start < rows.stop
        assert columns.start < columns.stop
        boxes[name] = (view, rows, columns)
    return boxes


@ortho6
@pytest.mark.parametrize("name", list(PANELS))
def test_base_colours_read_back_within_one_level(samples, name):
    sample = samples["panels"]
    box = panel_pixels(sample)[name]
    expected = np.array(PANELS[name])
    if name == "product":
        light = np.array(linear(200, 100, 250)[:3]) * (0.5, 0.25, 1.0)
        expected = 255 * np.where(
            light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
        )
    seen = sample.rgb[box].astype(float)
    assert np.abs(seen[..., :3] - expected).max() <= 1.0
    opacity = 0.25 if name == "glass" else 1.0
    assert np.abs(seen[..., 3] - 255 * opacity).max() <= 1.0
    assert sample.hit[box].all() == (name != "glass")  # below the alpha threshold: no surface


@ortho6
def test_clear_texels_of_a_mask_are_no_surface(samples):
    sample = samples["panels"]
    view, rows, columns = panel_pixels(sample)["mask"]
    width = columns.stop - columns.start
    left_half = slice(columns.start - 2 * width, columns.start - width)
    assert not sample.hit[view, rows, left_half].any()
    assert (sample.rgb[view, rows, left_half, 3] == 0).all()


@ortho6
def test_surface_samples_carry_the_colours_of_the_panels(samples):
    sample = samples["panels"]
    position = sample.geometry["surface_position"].astype(np.float64)
    source = (position - sample.meta["offset"]) / sample.meta["scale"]
    names = np.array(list(PANELS))[np.rint(source[:, 0]).astype(int)]
    for name, colour in PANELS.items():
        found = sample.geometry["surface_albedo"][names == name].astype(float)
        if name == "glass":
            assert not len(found)
        elif name != "product":
            assert len(found) > 100
            assert np.abs(found - colour).max() <= 1.0
    # Textures repeat: at the very left the interpolation meets the opaque right edge again.
    inner = source[names == "mask"][:, 0] - 2
    assert (inner[inner > -0.37] > -0.01).all()
    assert sample.meta["qa"]["unsupported_nodes"] == []


@ortho6
def test_surface_samples_carry_the_colours_that_the_views_show(samples):
    sample = samples["cube"]
    position, normal = (sample.geometry[f"surface_{key}"] for key in ("position", "normal"))
    assert np.abs(np.abs(position).max(axis=1) - 0.5).max() < 1e-5
    for name, (_, _, out, *_) in FACES.items():
        of_face = normal @ np.array(out) > 0.99
        assert of_face.sum() == pytest.approx(4096 / 6, abs=2)
        camera = sample.cameras[sample.view(name)]
        pixels = np.floor(camera.project(position[of_face], RESOLUTION_PX)[0]).astype(int)
        seen = sample.rgb[sample.view(name)][pixels[:, 1], pixels[:, 0], :3].astype(float)
        difference = np.abs(seen - sample.geometry["surface_albedo"][of_face]).max(axis=1)
        assert np.quantile(difference, 0.8) <= 2.0  # the rest lie on the letters' edges


@ortho6
def test_signed_distances_of_the_cube_and_sphere_are_exact(samples):
    points = samples["cube"].geometry["sdf_position"].astype(np.float64)
    beyond = np.abs(points) - 0.5
    truth = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
    np.testing.assert_allclose(samples["cube"].geometry["sdf_distance"], truth, atol=1e-5)
    points = samples["sphere"].geometry["sdf_position"].astype(np.float64)
    truth = np.linalg.norm(points, axis=1) - 0.5
    np.testing.assert_allclose(samples["sphere"].geometry["sdf_distance"], truth, atol=1e-3)
    assert samples["sphere"].geometry["sdf_confidence"].min() == 1.0

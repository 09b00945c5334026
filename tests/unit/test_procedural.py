import io
from collections import Counter

import numpy as np
import pytest
import trimesh

from data_pipeline.contract import UserError
from data_pipeline.sources.glb import read_extras
from data_pipeline.sources.patterns import COLOURS, PATTERNS, pattern_colour, pattern_texture
from data_pipeline.sources.procedural import ProceduralSource, Recipe, recipe
from data_pipeline.sources.shapes import CATEGORIES, Part
from data_pipeline.sources.shapes.part import MAIN

EVERY_CATEGORY = pytest.mark.parametrize("category", list(CATEGORIES))


def build(category: str, pattern: str = "dots", seed: int = 0, index: int = 0) -> list[Part]:
    return Recipe(seed, index, category, "red", pattern).parts()


def corners(parts: list[Part]) -> np.ndarray:
    return np.concatenate([part.surface.position.reshape(-1, 3) for part in parts])


def named(parts: list[Part], *names: str) -> np.ndarray:
    found = [part for part in parts if part.name in names]
    assert found, f"no part is called {names}"
    return corners(found)


def load_glb(data: bytes) -> trimesh.Scene:
    scene = trimesh.load(io.BytesIO(data), file_type="glb", process=False)
    assert isinstance(scene, trimesh.Scene)
    return scene


# ---------------------------------------------------------------------------------- geometry


@EVERY_CATEGORY
@pytest.mark.parametrize("index", range(3))
def test_every_part_is_closed_and_faces_outwards(category: str, index: int) -> None:
    for part in build(category, index=index):
        a, b, c = np.moveaxis(part.surface.position, 1, 0)
        volume = np.einsum("ij,ij->", a, np.cross(b, c)) / 6
        assert volume > 0, f"{part.name} is inside out"
        keys = np.round(part.surface.position.reshape(-1, 3), 7)
        face = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1, 3)
        edges = np.concatenate([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]])
        times = Counter(map(tuple, edges.tolist()))
        open_edges = [edge for edge, n in times.items() if times[edge[::-1]] != n]
        assert not open_edges, f"{part.name} has {len(open_edges)} open edges"


@EVERY_CATEGORY
def test_shading_normals_are_unit_and_stay_near_their_face(category: str) -> None:
    for part in build(category):
        a, b, c = np.moveaxis(part.surface.position, 1, 0)
        face = np.cross(b - a, c - a)
        face /= np.linalg.norm(face, axis=1, keepdims=True)
        normal = part.surface.normal
        np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-9)
        assert np.einsum("fx,fcx->fc", face, normal).min() > 0.5, part.name


def test_round_things_shade_smooth_and_boxes_keep_hard_edges() -> None:
    ball = next(part for part in build("snowman") if part.name == "belly").surface
    middle = (ball.position.min((0, 1)) + ball.position.max((0, 1))) / 2
    true = ball.position - middle
    true /= np.linalg.norm(true, axis=-1, keepdims=True)
    assert np.degrees(np.arccos((true * ball.normal).sum(-1).clip(-1, 1))).max() < 3
    top = next(part for part in build("bench") if part.name == "seat").surface
    assert (np.abs(top.normal).max(axis=-1) > 1 - 1e-9).all()


@EVERY_CATEGORY
@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_every_category_builds_in_every_pattern_at_a_sensible_size(
    category: str, pattern: str
) -> None:
    parts = build(category, pattern)
    points = corners(parts)
    assert np.isfinite(points).all()
    assert 0.85 < np.ptp(points, axis=0).max() < 1.45
    assert any(part.colour == MAIN for part in parts)
    assert all(np.isfinite(part.surface.uv).all() for part in parts)


@EVERY_CATEGORY
def test_proportions_differ_from_asset_to_asset(category: str) -> None:
    boxes = {tuple(np.ptp(corners(build(category, index=i)), axis=0).round(4)) for i in range(3)}
    assert len(boxes) == 3


@pytest.mark.parametrize(
    ("category", "part", "axis", "sign"),
    [
        ("airplane", "propeller", 1, -1),
        ("bench", "back", 1, 1),
        ("boat", "jib", 1, -1),
        ("car", "headlight", 1, -1),
        ("car", "tail light", 1, 1),
        ("chair", "back", 1, 1),
        ("hammer", "claw", 0, -1),
        ("house", "door", 1, -1),
        ("house", "chimney", 0, 1),
        ("ice cream cone", "wafer", 0, 1),
        ("mug", "handle", 0, 1),
        ("rocket", "porthole", 1, -1),
        ("snowman", "nose", 1, -1),
        ("teapot", "spout", 0, 1),
        ("teapot", "handle", 0, -1),
    ],
)
def test_what_belongs_in_front_or_at_the_right_is_there(
    category: str, part: str, axis: int, sign: int
) -> None:
    for index in range(4):
        parts = build(category, index=index)
        assert sign * named(parts, part)[:, axis].mean() > 0.02


def test_the_front_is_plus_z_in_the_file_and_up_is_plus_y() -> None:
    asset = Recipe(0, 0, "snowman", "red", "plain")
    shapes = load_glb(asset.glb()).geometry
    hat, carrot = shapes["snowman_1"], shapes["snowman_2"]  # trimesh: one geometry per primitive
    assert carrot.bounds[1][2] == pytest.approx(-named(asset.parts(), "nose")[:, 1].min(), abs=1e-5)
    top = max(hat.bounds[1][1], shapes["snowman"].bounds[1][1])
    assert top == pytest.approx(corners(asset.parts())[:, 2].max(), abs=1e-5)


# ------------------------------------------------------------------------- colours and patterns


def shares_on_surface(asset: Recipe) -> dict[str, float]:
    """Share of the main parts' area whose colour in the file is nearest to each named colour."""
    scene = load_glb(asset.glb())
    mesh = next(m for m in scene.geometry.values() if m.visual.material.baseColorTexture)
    points, face, *_ = trimesh.sample.sample_surface(mesh, 4000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    uv = np.einsum("nc,ncx->nx", weights, mesh.visual.uv[mesh.faces[face]])
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), dtype=float)
    size = len(texture)
    column, row = np.floor(np.stack([uv[:, 0], 1 - uv[:, 1]]) % 1 * size).astype(int) % size
    distance = texture[row, column][:, None] - np.array(list(COLOURS.values()))
    nearest = np.linalg.norm(distance, axis=-1).argmin(axis=1)
    return {name: float((nearest == i).mean()) for i, name in enumerate(COLOURS)}


@EVERY_CATEGORY
@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_the_caption_tells_the_truth_about_the_main_parts(category: str, pattern: str) -> None:
    place = list(CATEGORIES).index(category) + list(PATTERNS).index(pattern)
    colour = list(COLOURS)[place % len(COLOURS)]
    asset = Recipe(0, place, category, colour, pattern)
    shares = shares_on_surface(asset)
    second = pattern_colour(colour, pattern)
    assert asset.caption.split(" ", 1)[1].startswith(f"{colour} {category}")
    if pattern == "plain":
        assert shares[colour] == 1.0
    else:
        assert asset.caption.endswith(f" with {second} {pattern}")
        assert shares[colour] == max(shares.values()), shares
        assert shares[colour] > 0.45
        assert shares[second] > 0.1, "the pattern can hardly be seen"


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("colour", list(COLOURS))
def test_more_than_half_of_a_texture_has_the_named_colour(colour: str, pattern: str) -> None:
    texture = pattern_texture(colour, pattern).reshape(-1, 3)
    assert (texture == COLOURS[colour]).all(axis=1).mean() > 0.5
    edges = pattern_texture(colour, pattern)[0]
    assert pattern == "plain" or (edges == COLOURS[colour]).all(axis=-1).mean() > 0.3


def test_named_colours_can_be_told_apart() -> None:
    import skimage.color

    lab = skimage.color.rgb2lab(np.array([list(COLOURS.values())]) / 255.0)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(len(lab))
    assert distance.min() > 30


def test_captions_use_the_right_article_and_a_dark_pattern_on_light_colours() -> None:
    assert Recipe(0, 7, "mug", "blue", "stripes").caption == "a blue mug with white stripes"
    assert Recipe(0, 7, "chair", "orange", "plain").caption == "an orange chair"
    assert Recipe(0, 7, "lamp", "white", "dots").caption == "a white lamp with black dots"


# ------------------------------------------------------------------------------------- the source


def test_uids_are_unique_and_tell_what_the_asset_is() -> None:
    assert Recipe(3, 7, "ice cream cone", "blue", "dots").uid == "ice_cream_cone_blue_dots_s3_0007"
    uids = {recipe(seed, index).uid for seed in (0, 1) for index in range(500)}
    assert len(uids) == 1000


def test_every_combination_comes_once_before_any_comes_twice() -> None:
    total = len(CATEGORIES) * len(COLOURS) * len(PATTERNS)
    seen = {(r.category, r.colour, r.pattern) for r in (recipe(5, i) for i in range(total))}
    assert len(seen) == total
    assert len({recipe(5, i).category for i in range(len(CATEGORIES))}) == len(CATEGORIES)


def test_equal_seeds_write_equal_bytes_whatever_the_count(tmp_path) -> None:
    few = ProceduralSource(tmp_path / "few", count=5, seed=3).assets()
    many = ProceduralSource(tmp_path / "many", count=12, seed=3).assets()
    of = {asset.uid: asset.path.read_bytes() for asset in many}
    assert all(asset.path.read_bytes() == of[asset.uid] for asset in few)
    other = ProceduralSource(tmp_path / "other", count=5, seed=4).assets()
    assert not {asset.uid for asset in other} & {asset.uid for asset in few}


def test_assets_are_sorted_and_carry_what_evaluation_reads(tmp_path) -> None:
    assets = ProceduralSource(tmp_path, count=20).assets()
    assert [a.uid for a in assets] == sorted(a.uid for a in assets)
    for asset in assets:
        look = asset.attributes
        assert asset.captions[0].split(" ", 1)[1].startswith(f"{look['colour']} {look['category']}")
        assert look["pattern"] in PATTERNS
        assert asset.licence == "CC0-1.0"
        extras = read_extras(asset.path.read_bytes())
        assert extras is not None
        assert extras.items() >= look.items()


def test_finished_files_are_kept_and_damaged_ones_are_made_again(tmp_path) -> None:
    assets = ProceduralSource(tmp_path, count=4).assets()
    whole = [asset.path.read_bytes() for asset in assets]
    short, altered, foreign, kept = (asset.path for asset in assets)
    short.write_bytes(whole[0][:1000])
    altered.write_bytes(whole[1][:-50] + bytes([whole[1][-50] ^ 1]) + whole[1][-49:])
    foreign.write_bytes(whole[3])
    before = kept.stat().st_mtime_ns
    again = ProceduralSource(tmp_path, count=4).assets()
    assert [asset.path.read_bytes() for asset in again] == whole
    assert kept.stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(a.path.name for a in assets)


@pytest.mark.parametrize("junk", [b"", b"glTF", b"not a glb at all" * 10])
def test_junk_is_no_sealed_glb(junk: bytes) -> None:
    assert read_extras(junk) is None


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"source\.root=.*file"):
        ProceduralSource(tmp_path / "file", count=1).assets()
    with pytest.raises(UserError, match=r"source\.count=0"):
        ProceduralSource(tmp_path, count=0)

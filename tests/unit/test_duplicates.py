"""Duplicates: found among thousands without comparing all pairs, and groups that stay put."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.__main__ import duplicates
from data_pipeline.codec import encode_views
from data_pipeline.command_line import compose
from data_pipeline.contract import CONVENTIONS_VERSION, UserError, view_layout
from data_pipeline.duplicates.command import of_files, of_samples
from data_pipeline.duplicates.features import read_features
from data_pipeline.duplicates.groups import name_groups, read_groups, write_groups
from data_pipeline.duplicates.near import FeatureTable, Limits, components, similar_pairs
from data_pipeline.sources.folder import FolderSource
from data_pipeline.staging import Staging
from data_pipeline.staging.sample_files import archive

CAMERAS = view_layout("ortho6")
PX = 48


def write_sample(
    staging: Staging,
    uid: str,
    radii: tuple[float, float, float],
    colour: tuple[int, int, int],
    *,
    noise: int = 0,
    sha256: str = "",
) -> None:
    """Write a sample of an ellipsoid, seen by six orthographic cameras, without Blender."""
    rng = np.random.default_rng(noise)
    axis = (np.arange(PX) + 0.5) / PX - 0.5
    right, up = np.meshgrid(axis * 1.1, -axis * 1.1)
    shape = np.array(radii)
    coord, hit = np.full((6, PX, PX, 3), 0.5), np.zeros((6, PX, PX), bool)
    for view, camera in enumerate(CAMERAS):
        pose = np.asarray(camera.camera_to_world)
        plane = right[..., None] * pose[:3, 0] + up[..., None] * pose[:3, 1]
        forward = pose[:3, 2]
        depth = 1.0 - ((plane / shape) ** 2).sum(axis=-1)
        hit[view] = depth > 0
        position = plane + np.sqrt(depth.clip(0))[..., None] * forward * np.abs(forward @ shape)
        coord[view][hit[view]] = position[hit[view]] + 0.5
    coord = np.rint(coord * 65535) + rng.integers(-noise, noise + 1, coord.shape)
    rgb = np.concatenate([np.full((6, PX, PX, 3), colour), hit[..., None] * 255], axis=-1)
    meta = {
        "uid": uid,
        "cameras": [camera.to_json() for camera in CAMERAS],
        "source": {"sha256": sha256 or uid},
        "conventions": CONVENTIONS_VERSION,
        "render_spec": {"random_views": 0},
    }
    members = {
        "rgb.png": encode_views(rgb.astype(np.uint8)),
        "coord.png": encode_views(coord.clip(0, 65535).astype(np.uint16)),
        "hit.png": encode_views((hit * 255).astype(np.uint8)),
        "meta.json": json.dumps(meta).encode(),
    }
    publish(staging, uid, members)


def publish(staging: Staging, uid: str, members: dict[str, bytes]) -> None:
    """Put a file of members where `render` puts a sample; not all of a sample's are needed here."""
    path = staging.samples.path(uid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive(uid, members))


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path / "staging")
    write_sample(made, "ball", (0.5, 0.5, 0.5), (200, 30, 30))
    write_sample(made, "ball_again", (0.5, 0.5, 0.5), (200, 30, 30), noise=20)
    write_sample(made, "ball_blue", (0.5, 0.5, 0.5), (30, 30, 200))
    write_sample(made, "cigar", (0.5, 0.1, 0.1), (200, 30, 30))
    write_sample(made, "lens", (0.5, 0.5, 0.1), (200, 30, 30))
    write_sample(made, "twin_a", (0.2, 0.5, 0.3), (9, 9, 9), sha256="same")
    write_sample(made, "twin_b", (0.2, 0.5, 0.3), (9, 9, 9), sha256="same")
    return made


def test_copies_and_recoloured_variants_are_told_apart(staging) -> None:
    found = of_samples(staging.root)
    assert found.identical == [["twin_a", "twin_b"]]
    assert found.copies == [["ball", "ball_again"], ["twin_a", "twin_b"]]
    assert found.groups == [["ball", "ball_again", "ball_blue"], ["twin_a", "twin_b"]]
    assert found.to_drop == ["ball_again", "twin_b"]


def test_features_measure_what_is_seen(staging) -> None:
    cigar = read_features(staging.read("cigar"))
    np.testing.assert_allclose(cigar.box, (1.0, 0.2, 0.2), atol=0.05)
    front, end = cigar.depth[0], cigar.depth[1]
    assert (front > 0).sum() > 2 * (end > 0).sum()
    assert cigar.colour[0, 0, 0].tolist() == [255, 255, 255]


def test_a_broken_sample_is_one_clear_line(staging) -> None:
    publish(staging, "lens", staging.read("lens") | {"coord.png": b""})
    with pytest.raises(UserError, match=r"sample lens: no whole sample.*render it again"):
        of_samples(staging.root)
    with pytest.raises(UserError, match="holds no finished sample"):
        of_samples(staging.root / "nowhere")


def test_no_pair_is_missed_that_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**63, (60, 6), dtype=np.uint64)[rng.integers(0, 60, 900)]
    for _ in range(10):
        rows = np.flatnonzero(rng.random(900) < 0.7)
        flips = np.uint64(1) << rng.integers(0, 63, len(rows)).astype(np.uint64)
        bits[rows, rng.integers(0, 6, len(rows))] ^= flips
    box = (0.5 + 0.05 * rng.random((900, 3))).astype(np.float32)
    depth, colour = np.zeros((900, 6, 8, 8), np.uint8), np.zeros((900, 6, 8, 8, 3), np.uint8)
    limits = Limits(shape_bits=23)
    pairs, copies = similar_pairs(FeatureTable(box, bits, depth, colour), limits)
    distance = np.bitwise_count(bits[:, None] ^ bits[None]).sum(axis=-1)
    near = np.abs(box[:, None] - box[None]).max(axis=-1) <= limits.box
    wanted = np.argwhere(np.triu((distance <= 23) & near, 1))
    assert len(wanted) > 5000
    assert {tuple(pair) for pair in np.sort(pairs, axis=1).tolist()} <= set(map(tuple, wanted))
    assert (components(pairs, 900) == components(wanted, 900)).all()
    assert 0 < len(copies) < len(pairs)


def test_thousands_of_equal_assets_cost_no_more_than_their_number() -> None:
    rows = 30_000
    bits = np.full((rows, 6), 0xF0F0, np.uint64)
    depth, colour = np.zeros((rows, 6, 8, 8), np.uint8), np.zeros((rows, 6, 8, 8, 3), np.uint8)
    features = FeatureTable(np.ones((rows, 3), np.float32), bits, depth, colour)
    pairs, copies = similar_pairs(features, Limits())
    assert len(pairs) == len(copies) == rows - 1
    assert components(pairs, rows).max() == 0


# --------------------------------------------------------------------------------- before rendering


def test_identical_files_are_found_before_anything_is_rendered(tmp_path) -> None:
    for name, content in {"a": b"one", "b": b"two", "c": b"one", "d": b"three"}.items():
        (tmp_path / f"{name}.glb").write_bytes(content)
    found = of_files(FolderSource(tmp_path).assets())
    assert found.identical == found.groups == [["a", "c"]]
    assert found.to_drop == ["c"]


def test_a_file_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, caplog) -> None:
    for name in "ab":
        (tmp_path / f"{name}.glb").write_bytes(b"one")
    (tmp_path / "c.glb").symlink_to(tmp_path / "gone")
    assert of_files(FolderSource(tmp_path).assets()).identical == [["a", "b"]]
    assert "c.glb cannot be read: left out" in caplog.text


def test_what_is_dropped_is_not_listed_any_more(tmp_path, capsys) -> None:
    for name in "abc":
        (tmp_path / f"{name}.glb").write_bytes(b"x")
    keys = ["source=folder", f"source.root={tmp_path}", f"drop={tmp_path}/drop.txt", "format=json"]
    duplicates(compose("data_pipeline", keys))
    assert json.loads(capsys.readouterr().out)["drop"] == ["b", "c"]
    left = FolderSource(tmp_path, exclude=tmp_path / "drop.txt").assets()
    assert [asset.uid for asset in left] == ["a"]


# -------------------------------------------------------------------------------- groups and splits


def test_the_command_writes_groups_that_keep_their_names(staging, tmp_path, capsys) -> None:
    keys = [f"out={staging.root}", f"groups={tmp_path}/groups.csv"]
    duplicates(compose("data_pipeline", keys))
    text = capsys.readouterr().out
    assert "ball, ball_again, ball_blue" in text
    first = read_groups(tmp_path / "groups.csv")
    assert first["ball_blue"] == "ball"
    assert first["cigar"] == "cigar"
    write_sample(staging, "a_ball", (0.5, 0.5, 0.5), (1, 200, 1))
    duplicates(compose("data_pipeline", keys))
    second = read_groups(tmp_path / "groups.csv")
    assert second == first | {"a_ball": "ball"}


def test_two_groups_that_a_new_asset_ties_take_one_name_and_this_is_told() -> None:
    earlier = {"b": "b", "c": "b", "d": "d", "e": "d"}
    groups, moved = name_groups([["a", "c", "d"]], ["a", "b", "c", "d", "e", "f"], earlier)
    assert groups == {"a": "b", "b": "b", "c": "b", "d": "b", "e": "b", "f": "f"}
    assert moved == ["d", "e"]


def test_groups_survive_their_file_and_another_file_is_refused(tmp_path) -> None:
    groups = {"b": "a", "a": "a", "c,d": "c"}
    write_groups(tmp_path / "g.csv", groups)
    assert read_groups(tmp_path / "g.csv") == groups
    cv2.imwrite(str(tmp_path / "g.png"), np.zeros((2, 2), np.uint8))
    for wrong in ("g.png", "none.csv"):
        with pytest.raises(UserError, match="groups="):
            read_groups(tmp_path / wrong)

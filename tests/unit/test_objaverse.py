"""Objaverse through its own package, on a cache and a server of this machine: no network."""

import csv
import gzip
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Hub, serve
from hydra.utils import instantiate

from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from data_pipeline.sources import Asset, FetchError, objaverse_package
from data_pipeline.sources.fetching import Fetching
from data_pipeline.sources.objaverse import ObjaverseSource
from data_pipeline.sources.procedural import recipe

UIDS = [f"{i:032x}" for i in (0xA1, 0xB2, 0xC3, 0xD4)]
LICENCES = ["by", "cc0", "by-nc", None]
GLBS = [recipe(0, index).glb() for index in range(4)]
NOWHERE = "http://127.0.0.1:9"


def annotation(index: int) -> dict[str, Any]:
    """Return what Objaverse's metadata says of object `index`, in its own words."""
    uid = UIDS[index]
    return {
        "uid": uid,
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "name": f"Thing, no. {index}",
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
        "license": LICENCES[index],
        "faceCount": 100 * (index + 1),
        "user": {"username": f"user{index}", "displayName": f"Ann {index}", "profileUrl": "https://sketchfab.com/ann"},
        "archives": {"glb": {"size": len(GLBS[index]), "faceCount": 100 * (index + 1)}},
        "tags": [{"name": "Toy", "slug": "toy"}],
    }  # fmt: skip


def object_path(index: int) -> str:
    return f"glbs/000-00{index % 2}/{UIDS[index]}.glb"


def data_set() -> dict[str, bytes]:
    """Return the files of a small data set by name, GLBs included."""

    def packed(content: object) -> bytes:
        return gzip.compress(json.dumps(content).encode(), mtime=0)

    files = {object_path(i): GLBS[i] for i in range(4)}
    files["object-paths.json.gz"] = packed({UIDS[i]: object_path(i) for i in range(4)})
    files["lvis-annotations.json.gz"] = packed({"mug": UIDS[:2], "coffee_table": UIDS[2:]})
    for folder in (0, 1):
        rows = {UIDS[i]: annotation(i) for i in range(4) if i % 2 == folder}
        files[f"metadata/000-00{folder}.json.gz"] = packed(rows)
    return files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A whole cache, as the package lays it out."""
    for name, content in data_set().items():
        path = tmp_path / "home" / "hf-objaverse-v1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "home"


@pytest.fixture
def empty_home(tmp_path: Path) -> Path:
    return tmp_path / "empty"


def source(home: Path, **settings: Any) -> ObjaverseSource:
    made = ObjaverseSource(home, **{"endpoint": NOWHERE} | settings)
    made._download.pause_s = 0.0
    return made


def uids_of(assets: list[Asset]) -> list[str]:
    return [asset.uid for asset in assets]


def fetched(assets: list[Asset]) -> Iterator[tuple[Asset, str | None]]:
    """Yield the assets as `render` draws them: each at hand, or with the reason why it is not."""
    with Fetching() as fetching:
        for index, asset in enumerate(assets):
            fetching.start(assets[index + 1 :])
            yield asset, fetching.wait_for(asset)


def bring(assets: list[Asset]) -> dict[str, str | None]:
    return {asset.uid: problem for asset, problem in fetched(assets)}


# ------------------------------------------------------------------------------------ what it lists


def test_licence_author_and_url_travel_with_every_asset(home) -> None:
    first, second = source(home).assets()
    assert uids_of([first, second]) == UIDS[:2]
    assert (first.licence, second.licence) == ("CC-BY-4.0", "CC0-1.0")
    assert first.author == "Ann 0 (https://sketchfab.com/ann)"
    assert first.source == f"https://sketchfab.com/3d-models/{UIDS[0]}"
    assert first.captions == ("Thing, no. 0",)
    assert first.path == home / "hf-objaverse-v1" / object_path(0)


def test_only_licences_that_permit_derived_works_pass_unless_others_are_named(home) -> None:
    assert uids_of(source(home, licences="all").assets()) == UIDS
    assert uids_of(source(home, licences=["by-nc"]).assets()) == [UIDS[2]]
    assert uids_of(source(home, licences=["CC0-1.0"]).assets()) == [UIDS[1]]
    with pytest.raises(UserError, match="'bye' is no licence"):
        source(home, licences=["bye"])


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"categories": ["mug"]}, [0, 1]),
        ({"categories": "coffee_table"}, [2, 3]),
        ({"min_faces": 200}, [1, 2, 3]),
        ({"max_faces": 200}, [0, 1]),
        ({"max_bytes": min(map(len, GLBS))}, [min(range(4), key=lambda i: len(GLBS[i]))]),
        ({"categories": ["mug"], "min_faces": 150}, [1]),
    ],
)
def test_filters_leave_what_they_say(home, settings, left) -> None:
    found = source(home, licences="all", **settings).assets()
    assert uids_of(found) == [UIDS[i] for i in left]


def test_an_unknown_category_names_those_that_are_close(home) -> None:
    with pytest.raises(UserError, match=r"'table' is no LVIS category: perhaps coffee_table"):
        source(home, categories=["table"]).assets()


def test_uid_lists_choose_and_exclude_and_strangers_are_told(home, tmp_path, caplog) -> None:
    (tmp_path / "uids.txt").write_text(f"# mine\n{UIDS[3]}\n\n{UIDS[1]},a caption\nunknown\n")
    (tmp_path / "not.txt").write_text(UIDS[1])
    chosen = source(home, licences="all", uids=tmp_path / "uids.txt")
    with caplog.at_level(logging.WARNING):
        assert uids_of(chosen.assets()) == [UIDS[1], UIDS[3]]
    assert "1 uids of source.uids are not in Objaverse, such as unknown" in caplog.text
    fewer = source(home, licences="all", uids=tmp_path / "uids.txt", exclude=tmp_path / "not.txt")
    assert uids_of(fewer.assets()) == [UIDS[3]]
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(UserError, match="no object passes"):
        source(home, uids=tmp_path / "none.txt").assets()


def test_captions_in_cap3ds_format_are_joined_by_uid(home, tmp_path) -> None:
    (tmp_path / "captions.csv").write_text(f'{UIDS[1]},"a mug, blue"\n{UIDS[1]},a cup\nx,y\n')
    captions = {
        a.uid: a.captions for a in source(home, captions=tmp_path / "captions.csv").assets()
    }
    assert captions == {UIDS[0]: ("Thing, no. 0",), UIDS[1]: ("a mug, blue", "a cup")}
    only = source(home, captions=tmp_path / "captions.csv", only_captioned=True)
    assert uids_of(only.assets()) == [UIDS[1]]
    (tmp_path / "captions.csv").write_text(f"{UIDS[1]},a mug, blue\n")
    with pytest.raises(UserError, match="line 1 has 3 cells"):
        source(home, captions=tmp_path / "captions.csv").assets()


def test_a_count_is_a_stable_subset(home) -> None:
    def pick(count: int) -> set[str]:
        return set(uids_of(source(home, licences="all", count=count).assets()))

    assert len(pick(2)) == 2
    assert pick(1) < pick(2) < pick(3)


def test_the_packages_own_state_is_left_as_it_was(home) -> None:
    package = objaverse_package.load_package()
    before = package.BASE_PATH, package._VERSIONED_PATH, package._load_object_paths
    source(home).assets()
    assert (package.BASE_PATH, package._VERSIONED_PATH, package._load_object_paths) == before


def test_a_damaged_index_is_one_clear_line(home) -> None:
    index = home / "hf-objaverse-v1" / "metadata" / "000-000.json.gz"
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"000-000\.json\.gz is damaged: delete it"):
        source(home).assets()


def test_an_index_cannot_name_a_place_outside_of_the_cache(home) -> None:
    index = home / "hf-objaverse-v1" / "object-paths.json.gz"
    index.write_bytes(gzip.compress(json.dumps({UIDS[0]: "glbs/../../../etc/x.glb"}).encode()))
    with pytest.raises(UserError, match="delete this index"):
        source(home).assets()


def test_without_the_package_the_error_names_the_extra(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "objaverse", None)
    with pytest.raises(UserError, match=r"pip install -e \.\[objaverse\]"):
        ObjaverseSource(tmp_path)


def test_the_config_instantiates(home) -> None:
    config = compose("data_pipeline", ["source=objaverse", f"source.root={home}", "source.count=1"])
    assert len(instantiate(config.source).assets()) == 1


# -------------------------------------------------------------------------------------- XL's tables


def xl_rows() -> list[dict[str, str | None]]:
    def row(identifier: str, place: str, licence: str | None, kind: str) -> dict[str, str | None]:
        return {"fileIdentifier": identifier, "source": place, "license": licence,
                "fileType": kind, "sha256": "", "metadata": "{}"}  # fmt: skip

    mine = "https://github.com/ann/shapes/blob/abc123"
    stl = "https://www.thingiverse.com/thing:12/files?fileId=34"
    return [
        row(f"https://sketchfab.com/3d-models/{UIDS[1]}", "sketchfab", None, "glb"),
        row(f"{mine}/m/red_chair.obj", "github", "MIT License", "obj"),
        row(f"{mine}/../../../../x.obj", "github", "MIT License", "obj"),
        row(stl, "thingiverse", "Creative Commons - Attribution", "stl"),
        row("https://3d-api.si.edu/x/y.glb", "smithsonian", "CC0", "glb"),
        row(f"{mine}/scene.max", "github", "MIT License", "max"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_objaverse_xl_are_lists(home, tmp_path, kind, caplog) -> None:
    rows, table = xl_rows(), tmp_path / f"xl.{kind}"
    if kind == "csv":
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    for name in ("github/repos/ann/shapes/m/red_chair.obj", "thingiverse/thing-12-file-34.stl"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"v 0 0 0\n")
    (home.parent / "x.obj").write_bytes(b"v 0 0 0\n")
    with caplog.at_level(logging.WARNING):
        found = source(home, annotations=table, licences="all").assets()
    by_name = {asset.path.name: asset for asset in found}
    assert set(by_name) == {f"{UIDS[1]}.glb", "red_chair.obj", "thing-12-file-34.stl"}
    chair = by_name["red_chair.obj"]
    assert chair.uid == str(uuid.uuid5(uuid.NAMESPACE_DNS, chair.source))
    assert (chair.licence, chair.author, chair.captions) == ("MIT", "ann", ("red chair",))
    assert by_name[f"{UIDS[1]}.glb"].author.startswith("Ann 1")
    assert "1 by format .max" in caplog.text
    assert "2 by file not in the cache" in caplog.text
    free = source(home, annotations=table).assets()
    assert {a.path.suffix for a in free} == {".glb", ".stl"}


def test_a_table_of_another_kind_is_one_clear_line(home, tmp_path) -> None:
    (tmp_path / "xl.csv").write_text("uid,licence\na,b\n")
    with pytest.raises(UserError, match="lacks the columns fileIdentifier"):
        source(home, annotations=tmp_path / "xl.csv").assets()
    (tmp_path / "xl.parquet").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="no valid Parquet file"):
        source(home, annotations=tmp_path / "xl.parquet").assets()


# ---------------------------------------------------------------------------------------- downloads


def test_an_empty_cache_is_filled_and_used_again_without_the_server(empty_home) -> None:
    with serve(data_set()) as hub:
        assets = source(empty_home, endpoint=hub.endpoint).assets()
        assert bring(assets) == dict.fromkeys(UIDS[:2])
    assert [asset.path.read_bytes() for asset in assets] == GLBS[:2]
    assert bring(source(empty_home).assets()) == dict.fromkeys(UIDS[:2])
    assert not list(empty_home.rglob(".incoming-*"))


def fetch_one(home: Path, hub: Hub) -> str | None:
    wanted = source(home, endpoint=hub.endpoint, licences=["by"])
    return bring(wanted.assets())[UIDS[0]]


def test_an_error_page_is_never_accepted_as_an_asset(home) -> None:
    path = home / "hf-objaverse-v1" / object_path(0)
    path.unlink()
    page = b"<!DOCTYPE html><html>Too many requests</html>"
    with serve({object_path(0): page}) as hub:
        problem = fetch_one(home, hub)
        assert hub.downloads[object_path(0)] == 3
    assert problem is not None
    assert "an HTML page" in problem
    assert not path.exists()
    assert not list(home.rglob(".incoming-*"))


def test_a_damaged_file_in_the_cache_is_fetched_again(home) -> None:
    path, whole = home / "hf-objaverse-v1" / object_path(0), data_set()[object_path(0)]
    path.write_bytes(whole[:100])
    with serve({object_path(0): whole}) as hub:
        hub.answers[object_path(0)] = [whole[:-7], 503]
        assert fetch_one(home, hub) is None
    assert path.read_bytes() == whole


def test_an_object_that_the_server_lacks_fails_alone(home) -> None:
    for index in (0, 1):
        (home / "hf-objaverse-v1" / object_path(index)).unlink()
    with serve({object_path(1): data_set()[object_path(1)]}) as hub:
        problems = bring(source(home, endpoint=hub.endpoint).assets())
    assert problems[UIDS[1]] is None
    assert problems[UIDS[0]] is not None
    assert "holds no glbs/000-000" in problems[UIDS[0]]


def test_without_a_network_the_error_says_what_is_missing_and_what_to_do(
    home, empty_home, monkeypatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub package's attempts
    with pytest.raises(UserError, match=r"object-paths\.json\.gz is not in the cache.*check the"):
        source(empty_home).assets()
    (home / "hf-objaverse-v1" / object_path(0)).unlink()
    with pytest.raises(UserError, match="is not in the cache and cannot be downloaded"):
        bring(source(home).assets())


def test_a_file_that_is_not_the_announced_one_is_refused(home, tmp_path) -> None:
    rows = [row | {"sha256": "0" * 64} for row in xl_rows()[:1]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "xl.parquet")
    with serve(data_set()) as hub:
        listed = source(home, endpoint=hub.endpoint, annotations=tmp_path / "xl.parquet")
        (asset,) = listed.assets()
        assert asset.store is not None
        with pytest.raises(FetchError, match="SHA-256"):
            asset.store.fetch(asset)


def test_files_are_deleted_after_their_turn_and_the_quota_bounds_those_at_hand(empty_home) -> None:
    quota = max(map(len, GLBS)) / (1 << 30)
    with serve(data_set()) as hub:
        wanted = source(empty_home, endpoint=hub.endpoint, licences="all", keep_files=False,
                        quota_gb=quota)  # fmt: skip
        most = 0
        for asset, problem in fetched(wanted.assets()):
            assert problem is None
            assert asset.path.is_file()
            # os.walk: folders of downloads come and go meanwhile
            held = [name for _, _, names in os.walk(empty_home) for name in names]
            most = max(most, sum(name.endswith(".glb") for name in held))
            assert asset.store is not None
            asset.store.release(asset)
    assert most <= 2  # the one that is rendered, and the next
    assert not list(empty_home.rglob("*.glb"))
    with pytest.raises(UserError, match=r"source\.keep_files=false"):
        source(empty_home, quota_gb=1.0)

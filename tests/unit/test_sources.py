import json
import logging
import re
import unicodedata
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data_pipeline.command_line import CONFIG_DIR
from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset
from data_pipeline.sources.captions import readable_name
from data_pipeline.sources.file_kind import SUFFIXES
from data_pipeline.sources.folder import FolderSource

SHARED_ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names(root: Path, assets: list[Asset]) -> set[str]:
    return {asset.path.relative_to(root).as_posix() for asset in assets}


def test_every_kind_of_file_is_found_at_any_depth_and_in_any_case(tmp_path) -> None:
    wanted = [f"a/b/thing{i}{suffix}" for i, suffix in enumerate(SUFFIXES)] + ["TOP.GLB"]
    touch(tmp_path, *wanted, "notes.txt", ".hidden.glb", ".trash/old.glb", "tex.png")
    assets = FolderSource(tmp_path).assets()
    assert names(tmp_path, assets) == set(wanted)
    assert [a.uid for a in assets] == sorted(a.uid for a in assets)


def test_difficult_names_become_safe_uids_and_readable_captions(tmp_path) -> None:
    difficult = [
        "a chair, red.glb",
        "café crème.glb",
        "漢字.glb",
        "v1.2 (final) = ok.glb",
        "it's.obj",
    ]
    touch(tmp_path, *difficult)
    assets = FolderSource(tmp_path).assets()
    assert names(tmp_path, assets) == set(difficult)
    assert all(re.fullmatch(r"[a-z0-9_-]+", asset.uid) for asset in assets)
    captions = {asset.path.name: asset.captions for asset in assets}
    assert captions["a chair, red.glb"] == ("a chair, red",)
    assert captions["漢字.glb"] == ("漢字",)


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("city_car_taxi", "city car taxi"),
        ("OfficeChair-02", "office chair"),
        ("007", "007"),
        ("___", "___"),
    ],
)
def test_a_file_name_reads_as_a_caption(stem: str, caption: str) -> None:
    assert readable_name(stem) == caption


def test_files_of_one_name_get_distinct_uids_that_never_change_hands(tmp_path) -> None:
    touch(tmp_path, "a/chair.glb", "b/chair.glb", "b/chair.obj", "table.glb")
    first = {a.path: a.uid for a in FolderSource(tmp_path).assets()}
    assert len(set(first.values())) == 4
    assert first[tmp_path / "table.glb"] == "table"
    touch(tmp_path, "0/chair.glb")
    second = {a.path: a.uid for a in FolderSource(tmp_path).assets()}
    assert all(second[path] == uid for path, uid in first.items())


def test_long_names_that_collide_stay_distinct_and_short(tmp_path) -> None:
    touch(tmp_path, f"a/{'x' * 200}.glb", f"b/{'x' * 200}.glb")
    uids = [asset.uid for asset in FolderSource(tmp_path).assets()]
    assert len(set(uids)) == 2
    assert all(len(uid) <= 120 for uid in uids)


def test_a_count_is_a_stable_spread_and_a_larger_one_keeps_the_smaller(tmp_path) -> None:
    touch(tmp_path, *(f"thing_{i:03d}.glb" for i in range(60)))

    def pick(count: int, seed: int = 0) -> set[str]:
        return {asset.uid for asset in FolderSource(tmp_path, count=count, seed=seed).assets()}

    assert len(pick(10)) == 10
    assert pick(10) == pick(10)
    assert pick(10) < pick(30)
    assert pick(10) != pick(10, seed=1)
    assert pick(10) != {f"thing_{i:03d}" for i in range(10)}


def test_asking_for_more_than_there_is_warns(tmp_path, caplog) -> None:
    touch(tmp_path, "a.glb")
    with caplog.at_level(logging.WARNING):
        assert len(FolderSource(tmp_path, count=5).assets()) == 1
    assert "source.count=5" in caplog.text


# -------------------------------------------------------------------------------------- captions


def test_captions_come_from_the_folders_csv_by_path_or_by_name(tmp_path) -> None:
    touch(tmp_path, "a/x.glb", "b/y.glb", "z_z.glb")
    rows = 'file,caption\na/x.glb,"a chair, red"\ny.glb,a table\na/x.glb,a red seat\n'
    (tmp_path / "captions.csv").write_text("\ufeff" + rows, encoding="utf-8")
    captions = {asset.uid: asset.captions for asset in FolderSource(tmp_path).assets()}
    assert captions == {"x": ("a chair, red", "a red seat"), "y": ("a table",), "z_z": ("z z",)}


def test_captions_come_from_jsonl_whichever_way_accents_are_stored(tmp_path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "café.glb"))
    row = {"file": unicodedata.normalize("NFC", "café.glb"), "captions": ["une tasse", "a cup"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n\n")
    assert FolderSource(tmp_path).assets()[0].captions == ("une tasse", "a cup")


def test_captions_of_no_asset_warn(tmp_path, caplog) -> None:
    touch(tmp_path, "a.glb")
    (tmp_path / "captions.csv").write_text("file,caption\nb.glb,a ghost\n")
    with caplog.at_level(logging.WARNING):
        FolderSource(tmp_path).assets()
    assert "b.glb" in caplog.text


# ----------------------------------------------------------------------------------------- lists


def test_a_csv_list_gives_uid_captions_and_licence(tmp_path) -> None:
    touch(tmp_path, "files/a b.glb", "files/c.obj", "files/unlisted.glb")
    listed = tmp_path / "list.csv"
    listed.write_text(
        "file,uid,captions,licence,author,source,extra\n"
        'files/a b.glb,First One,"[""one, two"", ""three""]",CC0-1.0,Ann,shop,1\n'
        "files/c.obj,,,,,,\n"
    )
    c, first = FolderSource(list=listed).assets()
    assert (first.uid, first.captions) == ("first_one", ("one, two", "three"))
    assert (first.licence, first.author, first.source) == ("CC0-1.0", "Ann", "shop")
    assert (c.uid, c.captions, c.licence) == ("c", ("c",), "unknown")


def test_a_jsonl_list_looks_in_the_root_before_its_own_folder(tmp_path) -> None:
    touch(tmp_path, "root/a.glb", "lists/a.glb", "lists/b.glb")
    listed = tmp_path / "lists" / "list.jsonl"
    listed.write_text('{"file": "a.glb", "caption": "x"}\n{"file": "b.glb", "uid": 12}\n')
    b, a = FolderSource(root=tmp_path / "root", list=listed).assets()
    assert a.path == tmp_path / "root" / "a.glb"
    assert (b.path, b.uid) == (tmp_path / "lists" / "b.glb", "12")


def test_licences_are_named_alike_and_texts_stay_on_their_line(tmp_path) -> None:
    touch(tmp_path, "a.glb", "b.glb")
    listed = tmp_path / "list.jsonl"
    listed.write_text(
        '{"file": "a.glb", "license": " CC0 ", "author": "Ann\\nand\\u0000Bob", "url": ""}\n'
        '{"file": "b.glb", "licence": "by-sa", "source": 7}\n'
    )
    a, b = FolderSource(list=listed).assets()
    assert (a.licence, a.author, a.source) == ("CC0-1.0", "Ann and Bob", "unknown")
    assert (b.licence, b.author, b.source) == ("CC-BY-SA-4.0", "unknown", "7")


def test_a_captions_file_without_rows_warns(tmp_path, caplog) -> None:
    touch(tmp_path, "a.glb")
    (tmp_path / "captions.csv").write_text("")
    with caplog.at_level(logging.WARNING):
        FolderSource(tmp_path).assets()
    assert "captions.csv holds no rows" in caplog.text


@pytest.mark.assets
@pytest.mark.skipif(not SHARED_ASSETS.is_dir(), reason="no shared assets beside the checkout")
def test_the_manifest_of_the_development_assets_is_a_list() -> None:
    assets = FolderSource(list=SHARED_ASSETS / "manifest.csv").assets()
    assert len(assets) == 400
    bundle = next(asset for asset in assets if asset.uid == "adventure_arrow_bundle")
    assert bundle.captions == ("a low-poly fantasy bundle of arrows",)
    assert (bundle.licence, bundle.author) == ("CC0-1.0", "Kay Lousberg")
    assert bundle.source.startswith("KayKit-Game-Assets/")


# ---------------------------------------------------------------------------------- what is wrong


def test_an_empty_or_missing_folder_is_one_clear_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds no asset.*\.glb"):
        FolderSource(tmp_path).assets()
    with pytest.raises(UserError, match=r"source\.root=.*nowhere does not exist"):
        FolderSource(tmp_path / "nowhere").assets()
    touch(tmp_path, "a.glb")
    with pytest.raises(UserError, match="is not a folder"):
        FolderSource(tmp_path / "a.glb").assets()
    with pytest.raises(UserError, match=r"source\.root=DIR or source\.list=FILE"):
        FolderSource()
    with pytest.raises(UserError, match=r"source\.count=0"):
        FolderSource(tmp_path, count=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            "file\na.glb\ngone.glb\n",
            r"names 1 files that are not there, such as gone\.glb",
        ),
        ("l.csv", "name,caption\na.glb,x\n", "no column `file`"),
        ("l.csv", "file,caption\na.glb,a chair, red\n", "line 2 has 3 cells for 2 columns"),
        ("l.csv", 'file,caption\na.glb,"open\n', "line 2 is not valid CSV"),
        ("l.csv", "file,caption\n,x\n", "line 2 names no `file`"),
        ("l.csv", 'file,captions\na.glb,"[x"\n', "no valid JSON list"),
        ("l.csv", "", "lists no asset"),
        ("l.csv", "file\na.glb\na.glb\n", r"lists a\.glb more than once"),
        ("l.csv", "file\nnotes.txt\n", r"notes\.txt is no asset"),
        ("l.csv", "file,uid\na.glb,Same\nb.glb,same\n", r"a\.glb and b\.glb have the same uid"),
        ("l.csv", "file\na.glb\n./a.glb\n", r"a\.glb and \./a\.glb are one file"),
        ("l.jsonl", '{"file": "a.glb", "caption": "\\ud83d"}\n', "line 1 holds half of a char"),
        ("l.csv", 'file,captions\na.glb,"[""\\ud83d""]"\n', "no valid JSON list"),
        ("l.jsonl", '{"file": "a.glb", "author": {"name": "Ann"}}\n', "author of a.glb must be"),
        ("l.jsonl", '{"file": "a.glb"}\n{"file": \n', "line 2 is not valid JSON"),
        ("l.jsonl", '["a.glb"]\n', "line 1 is not a JSON object"),
        ("l.jsonl", '{"file": "a.glb", "captions": [1]}\n', "text or a list of texts"),
        ("l.txt", "a.glb\n", r"neither \.csv nor \.jsonl"),
    ],
)
def test_a_wrong_list_is_one_clear_line(tmp_path, name: str, content: str, message) -> None:
    touch(tmp_path, "a.glb", "b.glb", "notes.txt")
    (tmp_path / name).write_text(content)
    source = FolderSource(list=tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        source.assets()
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_or_undecodable_list_is_one_clear_line(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        FolderSource(list=tmp_path / "gone.csv").assets()
    (tmp_path / "latin.csv").write_bytes("file\ncafé.glb\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        FolderSource(list=tmp_path / "latin.csv").assets()


# ------------------------------------------------------------------------------------------- Hydra


@pytest.mark.parametrize("name", ["folder", "procedural"])
def test_every_source_config_instantiates(name: str, tmp_path) -> None:
    config = OmegaConf.load(CONFIG_DIR / "source" / f"{name}.yaml")
    config = OmegaConf.merge(config, {"root": str(tmp_path), "count": 2})
    touch(tmp_path, "one.glb", "two.glb")
    assets = instantiate(config).assets()
    assert len(assets) == 2
    assert all(asset.uid == make_uid(asset.uid) for asset in assets)

"""Counts, rates and the page of a staging folder."""

import json
import re

import cv2
import numpy as np
import pytest

from data_pipeline.codec import encode_views
from data_pipeline.contract import SAMPLE_MEMBERS, UserError
from data_pipeline.render.rejected import keep_picture
from data_pipeline.staging import Staging
from data_pipeline.stats.command import print_stats

RECORD = {"config_hash": "0123456789abcdef", "render_spec": {"seed": 0}, "blender": "4.5"}


def members() -> dict[str, bytes]:
    views = np.zeros((6, 32, 32, 4), dtype=np.uint8)
    views[:, 8:24, 8:24] = (200, 40, 40, 255)
    return dict.fromkeys(SAMPLE_MEMBERS, b"{}") | {"rgb.png": encode_views(views)}


@pytest.fixture
def staging(tmp_path) -> Staging:
    """A folder with two finished samples, three failures and one asset not yet tried."""
    staging = Staging(tmp_path / "out")
    with staging.open_for_render(RECORD, num_assets=6) as session:
        for i, uid in enumerate(("apple", "boat")):
            session.publish_members(members(), uid)
            figures = {"seconds": {"total": 2.0 + i}, "rss_mb": 400.0 + i, "time": 100.0 + i}
            session.append({"uid": uid, "status": "done", "attempts": 1} | figures)
        failure = {"status": "failed", "attempts": 1, "give_up_at": 2, "time": 102.0}
        session.append(failure | {"uid": "c", "reason": "timeout", "message": "not done"})
        session.append(failure | {"uid": "d", "reason": "clipped", "message": "<b>out</b>"})
        session.append(
            failure | {"uid": "e", "reason": "crash", "message": "died", "log_tail": "Segfault"}
            | {"attempts": 2}
        )  # fmt: skip
        folder = session.scratch / "d"
        folder.mkdir()
        (folder / "rgb.png").write_bytes(members()["rgb.png"])
        keep_picture(folder, staging.rejected_picture("d"), session.scratch)
    return staging


def test_json_tells_every_asset_and_keeps_further_keys_apart(staging, capsys):
    print_stats(staging.root, "json")
    said = json.loads(capsys.readouterr().out)
    assert said["total"] == 5
    assert said["done"] == 2
    assert said["failed"] == {"timeout": 1, "clipped": 1, "crash": 1}
    assert said["assets"] == {
        "apple": "done", "boat": "done", "c": "timeout", "d": "clipped", "e": "crash",
    }  # fmt: skip
    assert said["expected"] == 6
    assert said["attempts"] == {"e": 2}
    assert said["to_retry"] == 1  # c: its second attempt is still to come
    assert said["rate"] == 2.0
    assert said["eta_s"] == 1.0  # one untried and one to retry, at two a second
    assert said["rss_mb"]["max"] == 401.0


def test_the_table_lists_reasons_with_some_uids(staging, capsys):
    print_stats(staging.root, "text")
    said = capsys.readouterr().out
    assert re.search(r"^done +2$", said, re.MULTILINE)
    assert re.search(r"^clipped +1 .*border of a view: d$", said, re.MULTILINE)
    assert re.search(r"^not yet tried +1 +of 6", said, re.MULTILINE)


def test_the_page_shows_the_worst_with_pictures_and_needs_no_other_file(staging, tmp_path, capsys):
    page = tmp_path / "deep" / "page.html"
    print_stats(staging.root, "text", page)
    text = page.read_text()
    assert str(page) in capsys.readouterr().out
    assert "&lt;b&gt;out&lt;/b&gt;" in text
    assert "<b>out" not in text
    assert "Segfault" in text
    pictures = re.findall(r'src="data:image/jpeg;base64,[^"]+" alt="views of (\w+)"', text)
    assert pictures == ["d", "boat", "apple", "boat", "apple"]
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_a_damaged_sample_costs_the_page_its_picture_alone(staging, tmp_path, capsys):
    path = staging.samples.path("boat")  # the slowest
    path.write_bytes(path.read_bytes()[:-1000])
    print_stats(staging.root, "text", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "boat" in page
    whole = page.count("data:image/jpeg")
    staging.samples.path("apple").unlink()
    print_stats(staging.root, "text", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") < whole


def test_a_kept_picture_shows_the_views_side_by_side_on_white(staging):
    picture = cv2.imread(str(staging.rejected_picture("d")))
    assert picture.shape == (96, 6 * 96, 3)
    np.testing.assert_allclose(picture[2, 2], 255, atol=6)
    np.testing.assert_allclose(picture[48, 48, ::-1], (200, 40, 40), atol=12)


def test_no_picture_is_kept_of_what_was_not_rendered(staging, tmp_path):
    (tmp_path / "rgb.png").write_bytes(b"no image")
    keep_picture(tmp_path, staging.rejected_picture("c"), tmp_path)
    assert not staging.rejected_picture("c").exists()


def test_a_page_that_cannot_be_written_and_an_unknown_format_say_so(staging, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="html=FILE"):
        print_stats(staging.root, "text", tmp_path / "file" / "page.html")
    with pytest.raises(UserError, match="format=xml"):
        print_stats(staging.root, "xml")
    with pytest.raises(UserError, match="render into it first"):
        print_stats(tmp_path / "none", "text")

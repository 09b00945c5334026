"""The staging folder keeps what is finished, whatever happens to what is not."""

import json
from pathlib import Path

import pytest

from data_pipeline.contract import SAMPLE_MEMBERS, UserError
from data_pipeline.staging import Staging

RECORD = {"config_hash": "0123456789abcdef", "render_spec": {"seed": 0}, "blender": "4.5"}


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "staging")


def write_sample(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for member in SAMPLE_MEMBERS:
        (folder / member).write_bytes(member.encode())
    return folder


def test_published_samples_are_listed_in_order(staging):
    with staging.open_for_render(RECORD):
        for uid in ("chair", "apple", "boat"):
            staging.publish(write_sample(staging.scratch / uid), uid)
    assert staging.done_uids() == ["apple", "boat", "chair"]
    assert (staging.sample_dir("boat") / "rgb.png").read_bytes() == b"rgb.png"
    assert staging.render_record() == RECORD
    assert not staging.scratch.exists()


def test_an_incomplete_sample_is_never_published(staging):
    with staging.open_for_render(RECORD):
        folder = write_sample(staging.scratch / "apple")
        (folder / "coord.png").unlink()
        with pytest.raises(ValueError, match=r"holds \('geometry.npz'"):
            staging.publish(folder, "apple")
    assert staging.done_uids() == []


def test_what_a_killed_run_left_in_scratch_is_cleared(staging):
    write_sample(staging.scratch / "half")
    with staging.open_for_render(RECORD):
        assert list(staging.scratch.iterdir()) == []
    assert staging.done_uids() == []


def test_another_config_is_refused_by_name(staging):
    with staging.open_for_render(RECORD):
        pass
    other = RECORD | {"config_hash": "fedcba9876543210", "render_spec": {"seed": 1}}
    with (
        pytest.raises(UserError, match=r"another config \(render_spec differ"),
        staging.open_for_render(other),
    ):
        pass
    assert staging.render_record() == RECORD


def test_two_renders_into_one_folder_are_refused(staging):
    with (
        staging.open_for_render(RECORD),
        pytest.raises(UserError, match="being written by another render"),
        Staging(staging.root).open_for_render(RECORD),
    ):
        pass


def test_a_torn_last_line_of_the_ledger_is_dropped_and_the_next_one_is_whole(staging):
    with staging.open_for_render(RECORD):
        staging.append({"uid": "apple", "status": "failed", "reason": "empty"})
    with staging.ledger_path.open("ab") as ledger:
        ledger.write(b'{"uid": "boat", "sta')
    assert [record["uid"] for record in staging.records()] == ["apple"]
    with staging.open_for_render(RECORD):
        staging.append({"uid": "chair", "status": "done"})
    assert [record["uid"] for record in staging.records()] == ["apple", "chair"]


def test_a_damaged_line_within_the_ledger_is_an_error_that_names_it(staging):
    staging.root.mkdir()
    staging.ledger_path.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(UserError, match=r"ledger.jsonl:2 is damaged"):
        staging.records()


def test_only_the_last_attempt_decides_whether_an_asset_failed(staging):
    with staging.open_for_render(RECORD):
        staging.append({"uid": "apple", "status": "failed", "reason": "timeout"})
        staging.append({"uid": "boat", "status": "failed", "reason": "timeout"})
        staging.append({"uid": "boat", "status": "failed", "reason": "crash"})
        staging.append({"uid": "chair", "status": "failed", "reason": "empty"})
        staging.publish(write_sample(staging.scratch / "chair"), "chair")
    failures = staging.failures()
    assert {uid: record["reason"] for uid, record in failures.items()} == {
        "apple": "timeout",
        "boat": "crash",
    }


def test_a_folder_that_is_no_staging_folder_says_so(staging):
    with pytest.raises(UserError, match="no staging folder"):
        staging.render_record()
    staging.root.mkdir()
    (staging.root / "render.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        staging.render_record()


def test_captions_in_any_script_survive_the_ledger(staging):
    with staging.open_for_render(RECORD):
        staging.append({"uid": "a", "status": "failed", "reason": "crash", "message": "é 漢 \n"})
    assert staging.records()[0]["message"] == "é 漢 \n"
    assert len(staging.ledger_path.read_bytes().splitlines()) == 1
    assert json.loads(staging.ledger_path.read_bytes())["uid"] == "a"

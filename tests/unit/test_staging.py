"""The staging folder keeps what is finished, whatever happens to what is not."""

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
    with staging.open_for_render(RECORD) as session:
        for uid in ("chair", "apple", "boat"):
            session.publish(write_sample(session.scratch / uid), uid)
    assert staging.done_uids() == ["apple", "boat", "chair"]
    assert staging.read("boat") == {member: member.encode() for member in SAMPLE_MEMBERS}
    assert staging.render_record() == RECORD
    assert not session.scratch.exists()


def test_an_incomplete_sample_is_never_published(staging):
    with staging.open_for_render(RECORD) as session:
        folder = write_sample(session.scratch / "apple")
        (folder / "coord.png").unlink()
        with pytest.raises(ValueError, match=r"holds \('geometry.npz'"):
            session.publish(folder, "apple")
    assert staging.done_uids() == []


def test_what_a_killed_run_left_in_scratch_is_cleared_and_what_a_living_one_has_is_not(staging):
    write_sample(staging.root / "scratch" / "gone-1-abc" / "half")
    with staging.open_for_render(RECORD) as living:
        mine = write_sample(living.scratch / "apple")
        with staging.open_for_render(RECORD):
            assert mine.is_dir()
            assert not (staging.root / "scratch" / "gone-1-abc").exists()
    assert staging.done_uids() == []


def test_another_config_is_refused_by_name(staging):
    staging.open_for_render(RECORD)
    other = RECORD | {"config_hash": "fedcba9876543210", "render_spec": {"seed": 1}}
    with pytest.raises(UserError, match=r"another config \(seed is 0 there and 1 here"):
        staging.open_for_render(other)
    assert staging.render_record() == RECORD


def test_samples_without_a_render_record_are_refused(staging):
    with staging.open_for_render(RECORD) as session:
        session.publish(write_sample(session.scratch / "apple"), "apple")
    (staging.root / "render.json").unlink()
    with pytest.raises(UserError, match=r"no render.json"):
        staging.open_for_render(RECORD)


def test_each_attempt_is_noted_with_run_and_host_and_the_failed_are_told(staging):
    with staging.open_for_render(RECORD, run_id="r1", num_assets=3) as session:
        session.append({"uid": "apple", "status": "failed", "reason": "timeout"})
        session.append({"uid": "boat", "status": "failed", "reason": "é 漢 \n"})
        session.publish(write_sample(session.scratch / "chair"), "chair")
        session.append({"uid": "chair", "status": "done"})
    assert [r["uid"] for r in staging.records()] == ["apple", "boat", "chair"]
    assert {r["run_id"] for r in staging.records()} == {"r1"}
    assert all(r["host"] and r["time"] for r in staging.records())
    reasons = {uid: record["reason"] for uid, record in staging.failures().items()}
    assert reasons == {"apple": "timeout", "boat": "é 漢 \n"}
    assert [run["num_assets"] for run in staging.runs()] == [3]


def test_a_finished_sample_outweighs_a_record_of_failure(staging):
    with staging.open_for_render(RECORD) as session:
        session.append({"uid": "apple", "status": "failed", "reason": "timeout"})
        session.publish(write_sample(session.scratch / "apple"), "apple")
    assert staging.failures() == {}


def test_a_folder_that_is_no_staging_folder_says_so(staging):
    with pytest.raises(UserError, match="no staging folder"):
        staging.render_record()
    staging.root.mkdir()
    (staging.root / "render.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        staging.render_record()


def leave_word(staging: Staging, writer: str, uid: str, attempts: int) -> None:
    """Do what a process has done that is killed while it renders `uid`."""
    with staging.open_for_render(RECORD) as session:
        record = {"uid": uid, "status": "failed", "reason": "crash", "attempts": attempts}
        session.begin(uid, record)
        session.scratch.rename(session.scratch.with_name(writer))


def test_what_a_killed_process_was_at_is_noted_once(staging):
    leave_word(staging, "dead-1", "apple", 1)
    leave_word(staging, "dead-2", "boat", 1)
    for _ in range(2):
        with staging.open_for_render(RECORD):
            pass
    noted = sorted((r["uid"], r["reason"]) for r in staging.records())
    assert noted == [("apple", "crash"), ("boat", "crash")]
    assert list((staging.root / "scratch").iterdir()) == []


def test_a_torn_word_of_a_killed_process_stops_nobody(staging):
    leave_word(staging, "dead", "apple", 1)
    folder = staging.root / "scratch" / "dead"
    (folder / "apple.begun").write_text("")
    (folder / "begun.json").write_text('{"uid": ')
    with staging.open_for_render(RECORD):
        assert staging.records() == []
    assert list((staging.root / "scratch").iterdir()) == []


def test_what_is_finished_or_noted_is_not_held_against_an_asset(staging):
    with staging.open_for_render(RECORD) as session:
        session.begin("apple", {"uid": "apple", "status": "failed", "reason": "crash"})
        session.append({"uid": "apple", "status": "done"})
        session.scratch.rename(session.scratch.with_name("dead-1"))
    with staging.open_for_render(RECORD) as session:  # killed between its sample and its record
        session.publish(write_sample(session.scratch / "chair"), "chair")
    leave_word(staging, "dead-2", "chair", 1)
    with staging.open_for_render(RECORD):
        assert [(r["uid"], r["status"]) for r in staging.records()] == [("apple", "done")]

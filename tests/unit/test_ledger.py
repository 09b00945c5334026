"""The ledger keeps every attempt of every writer, and tells the newest, whatever is torn."""

import json

import pytest

from data_pipeline.staging.digest import DIGEST_NAME, Digest
from data_pipeline.staging.ledger import AssetState, LedgerReader, LedgerWriter


def failure(uid: str, reason: str, attempts: int = 1, **more) -> dict:
    return {"uid": uid, "status": "failed", "reason": reason, "attempts": attempts} | more


def done(uid: str, attempts: int = 1, **more) -> dict:
    return {"uid": uid, "status": "done", "attempts": attempts} | more


@pytest.fixture
def ledger(tmp_path):
    """Return a function that appends records in the name of a writer."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    writers: dict[str, LedgerWriter] = {}

    def append(writer: str, *records: dict) -> None:
        own = writers.setdefault(writer, LedgerWriter(folder / f"{writer}.jsonl"))
        for record in records:
            own.append(record)

    append.folder = folder
    yield append
    for writer in writers.values():
        writer.close()


def test_a_reader_goes_on_where_it_stopped_in_every_file(ledger):
    reader = LedgerReader(ledger.folder)
    ledger("n1", failure("a", "empty"))
    assert [r["uid"] for r in reader.new_records()] == ["a"]
    ledger("n2", done("b"))
    ledger("n1", done("c"))
    assert [r["uid"] for r in reader.new_records()] == ["c", "b"]
    assert list(reader.new_records()) == []


def test_a_torn_last_line_is_left_out_until_it_is_whole(ledger):
    ledger("n1", failure("a", "empty"))
    line = json.dumps(done("b")).encode() + b"\n"
    path = ledger.folder / "n1.jsonl"
    reader = LedgerReader(ledger.folder)
    with path.open("ab") as file:
        file.write(line[:9])
    assert [r["uid"] for r in reader.new_records()] == ["a"]
    with path.open("ab") as file:
        file.write(line[9:])
    assert [r["uid"] for r in reader.new_records()] == ["b"]
    assert reader.num_damaged == 0


def test_damaged_lines_are_counted_and_the_others_are_read(ledger):
    ledger("n1", failure("a", "empty"), done("b"))
    path = ledger.folder / "n1.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b'nonsense\n{"no": "uid"}\n\xff\xfe\n[1]\n' + second)
    digest = Digest(ledger.folder)
    assert digest.num_damaged == 4
    assert set(digest.states(["a", "b"])) == {"a", "b"}


def test_two_writers_never_share_a_file(ledger):
    ledger("n1", done("a"))
    with pytest.raises(FileExistsError):
        LedgerWriter(ledger.folder / "n1.jsonl").append(done("b"))


def test_the_record_with_most_attempts_is_the_newest_whatever_the_clocks_say(ledger):
    ledger("z", failure("a", "timeout", 1, time=9e9))
    ledger("b", failure("a", "crash", 2, time=1.0, give_up_at=3, run_id="r"))
    digest = Digest(ledger.folder)
    assert digest.states(["a", "unknown"]) == {"a": AssetState("crash", 2, 3, "r")}
    assert digest.failures()["a"]["time"] == 1.0


def test_of_two_records_of_one_attempt_the_finished_one_counts(ledger):
    ledger("n1", done("a", 1), failure("b", "oom", 1))
    ledger("n2", failure("a", "oom", 1), done("b", 1))
    assert Digest(ledger.folder).failures() == {}


def test_a_saved_digest_spares_reading_the_lines_again_and_loses_nothing(ledger, tmp_path):
    ledger("n1", *(failure(f"a{i}", "empty", message="é 漢\n") for i in range(20)))
    Digest(ledger.folder).save(tmp_path)
    (ledger.folder / "n1.jsonl").rename(tmp_path / "away")
    ledger("n2", done("a3", 2))
    digest = Digest(ledger.folder)
    assert set(digest.failures()) == {f"a{i}" for i in range(20)} - {"a3"}
    assert digest.failures()["a7"]["message"] == "é 漢\n"
    assert digest.num_unsaved == 1


@pytest.mark.parametrize("damage", [b"", b"not a database", None])
def test_a_damaged_digest_is_made_again_from_the_lines(ledger, tmp_path, damage):
    ledger("n1", *(failure(f"a{i}", "empty") for i in range(2000)))
    Digest(ledger.folder).save(tmp_path)
    path = ledger.folder / DIGEST_NAME
    path.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
    assert len(Digest(ledger.folder).failures()) == 2000


def test_a_ledger_that_is_not_there_is_empty(tmp_path):
    assert Digest(tmp_path / "none").failures() == {}


def test_names_that_are_no_utf8_are_kept(ledger):
    ledger("n1", failure("a", "empty", message="\udcff.glb"))
    assert Digest(ledger.folder).failures()["a"]["message"] == "\udcff.glb"

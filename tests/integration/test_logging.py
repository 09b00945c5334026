"""What W&B's offline record of a run holds, and what it must not hold."""

import getpass
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from test_training import command, shards  # noqa: F401  (a fixture)
from wandb.proto.wandb_internal_pb2 import Record

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "not-to-be-logged-0123456789abcdef0123456789"


BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, struct.Struct("<IHB")
LAST_KINDS = (1, 4)  # whole record, last part of one


def read_records(file: Path) -> list[dict]:
    """Read a `.wandb` file: protocol buffers in LevelDB's log format, after a header."""
    content, at, record, found = file.read_bytes(), FILE_HEADER, b"", []
    while at + CHUNK_HEADER.size <= len(content):
        if BLOCK - at % BLOCK < CHUNK_HEADER.size:
            at += BLOCK - at % BLOCK
        _, size, kind = CHUNK_HEADER.unpack_from(content, at)
        at += CHUNK_HEADER.size
        record += content[at : at + size]
        at += size
        if kind in LAST_KINDS:
            message = Record()
            message.ParseFromString(record)
            found.append(MessageToDict(message, preserving_proto_field_name=True))
            record = b""
    return found


@pytest.fixture(scope="module")
def run_dir(shards, tmp_path_factory):  # noqa: F811
    """A run of four steps with the default loggers, under secrets that a user may have set."""
    folder = tmp_path_factory.mktemp("logged")
    arguments = [a for a in command(shards, folder, "trainer.max_steps=4") if a != "logger=csv"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home"), "HF_TOKEN": SECRET}
    environment |= {"WANDB_API_KEY": SECRET, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_the_offline_record_holds_losses_and_the_resolved_config(run_dir):
    [file] = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    records = read_records(file)
    logged = {
        ".".join(item.get("nested_key") or [item.get("key", "")])
        for record in records
        for item in record.get("history", {}).get("item", [])
    }
    assert {"train/loss/total", "train/loss/rgb", "val/rgb/psnr_db"} <= logged
    text = str(records)
    assert "shards_manifest_sha256" in text
    assert "images_per_step" in text  # a key of the system, so the whole configuration is there
    assert "${" not in text  # resolved


def test_no_record_names_the_user_the_host_a_secret_or_a_foreign_path(run_dir):
    forbidden = {SECRET, socket.gethostname(), str(REPOSITORY), str(Path.home()) + "/"}
    if len(getpass.getuser()) > 4:  # shorter names turn up inside of other words
        forbidden.add(getpass.getuser())
    files = [path for path in (run_dir / "wandb").rglob("*") if path.is_file()]
    records = [path for path in files if path.suffix != ".log"]  # of W&B itself; never sent
    assert records
    for path in records:
        content = path.read_bytes()
        for word in forbidden:
            assert word.encode() not in content, (path, word)
    for path in files:
        assert SECRET.encode() not in path.read_bytes()


def test_the_csv_log_holds_the_same_losses(run_dir):
    header = next(run_dir.glob("csv/*/metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train/loss/total", "train/loss/rgb", "val/rgb/psnr_db"} <= set(header)

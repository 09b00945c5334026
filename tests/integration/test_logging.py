"""What W&B's offline record of a run holds, and what it must not hold."""

import getpass
import socket
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from test_training import command, shards  # noqa: F401  (a fixture)
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "not-to-be-logged-0123456789abcdef0123456789"


def read_records(file: Path) -> list[dict]:
    store = DataStore()
    store.open_for_scan(str(file))
    found = []
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        found.append(MessageToDict(record, preserving_proto_field_name=True))
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
    records = [path for path in files if "logs" not in path.relative_to(run_dir).parts]
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

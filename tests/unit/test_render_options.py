"""The keys of `render`, and what its progress looks like."""

import pytest

from data_pipeline.contract import UserError
from data_pipeline.render.options import RenderOptions
from data_pipeline.render.progress import Progress, span


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert RenderOptions(gpus=2).gpu_names() == ("0", "1")
    assert RenderOptions(gpus=2).num_workers(99) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7,6")
    assert RenderOptions(gpus=2).gpu_names() == ("4", "GPU-7")
    assert RenderOptions(gpus="all").gpu_names() == ("4", "GPU-7", "6")
    with pytest.raises(UserError, match="names only 3"):
        RenderOptions(gpus=4)


def test_all_gpus_need_to_be_named_by_someone(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="gpus=N"):
        RenderOptions(gpus="all")


def test_no_more_workers_run_than_there_are_assets_or_cpus_given_by_slurm(monkeypatch):
    assert RenderOptions(workers=8).num_workers(3) == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert RenderOptions().num_workers(99) == 1


def test_the_run_is_named_by_the_user_or_the_array_or_anew(monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert RenderOptions().run_name() != RenderOptions().run_name()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    assert RenderOptions().run_name() == "slurm-17"
    assert RenderOptions(run_id="mine").run_name() == "mine"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (3723, "1 h 2 min"), (2 * 86400 + 5, "2 d 0 h")],
)
def test_a_span_of_time_is_told_in_its_two_largest_units(seconds, text):
    assert span(seconds) == text


def test_a_log_gets_a_line_now_and_then_and_a_last_one(capsys):
    with Progress(10, 4, log_every_s=0.0) as progress:
        progress.count(None)
        progress.show(5)
        progress.count("oom")
        progress.note("b: oom: 9 MB")
        progress.show(6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("render: 5/10 assets, ")
    assert lines[1] == "b: oom: 9 MB"
    assert lines[-1].endswith("this process: 1 rendered, failed: 1 oom")
    with Progress(10, 4, log_every_s=60.0) as progress:
        progress.show(4)
    assert capsys.readouterr().err == ""

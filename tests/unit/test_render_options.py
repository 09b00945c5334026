"""The keys of `render`, and what its progress looks like."""

import pytest

from data_pipeline.contract import UserError
from data_pipeline.render.options import RenderOptions
from data_pipeline.render.progress import Progress, span


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7,6")
    assert RenderOptions(gpus=2).gpu_names("optix") == ("4", "GPU-7")
    assert RenderOptions().gpu_names("cuda") == ("4", "GPU-7", "6")
    assert RenderOptions(gpus="all").num_workers(99, "cuda") == 3
    with pytest.raises(UserError, match="gpus=4: this machine shows 3"):
        RenderOptions(gpus=4).gpu_names("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match="shows 0"):
        RenderOptions().gpu_names("cuda")


def test_rendering_on_cpus_uses_no_gpu_and_asking_for_both_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert RenderOptions().gpu_names("cpu") == ()
    with pytest.raises(UserError, match="device=auto"):
        RenderOptions(gpus=1).gpu_names("cpu")


def test_no_more_workers_run_than_there_are_assets_or_cpus_given_by_slurm(monkeypatch):
    assert RenderOptions(workers=8).num_workers(3, "cpu") == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert RenderOptions().num_workers(99, "cpu") == 1


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

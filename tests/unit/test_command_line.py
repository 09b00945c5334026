"""Commands take free text verbatim, tell errors in one line, and exit with the documented codes."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.command_line import compose, run
from data_pipeline.contract import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

AWKWARD = [
    "a red chair, with dots",
    'it\'s "quoted"',
    "key=value=other",
    "a b(1).glb",
    "é 漢 字",
    "  spaces around  ",
    "12",
    "1e3",
    "null",
    "true",
    "[a, b]",
    "{a: b}",
    "${oc.env:HOME}",
    "\\${x} \\\\${y}",
    "trailing backslash\\",
    'quote at the end"',
    '\\"',
    "C:\\dir\\new",
    "# no comment",
    "~!@%^&*()+|<>?`",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_free_text_arrives_verbatim(text):
    assert compose("generate", [f"prompt={text}", f"out={text}"]).prompt == text


@settings(max_examples=60, deadline=None)
@example('\\\\"${\\${"')
@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30))
def test_any_printable_text_arrives_verbatim(text):
    assert compose("generate", [f"prompt={text}"]).prompt == text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train.py", "experiment=tiny/nope", "shards=x"], 2, "tiny/autoencoder"),
        (["train.py", "no_such_key=1"], 2, "no_such_key"),
        (["train.py"], 2, "experiment="),
        (["train.py", "experiment=tiny/autoencoder"], 2, "shards=VALUE"),
        (["train.py", "experiment=tiny/latent_diffusion"], 2, "latents=VALUE"),
        (["generate.py", "prompt=x", "checkpoint=x"], 2, "out=VALUE"),
        (["generate.py", "prompt=x", "checkpoint=x", "out="], 2, "out= is empty"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "steps=abc"], 2, "steps=abc"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "num=1.5"], 2, "num=1.5"),
        (["train.py", "experiment=tiny/autoencoder", "trainer.max_steps=0"], 1, "max_steps=0"),
        (["eval.py", "task=rebuild", "shards=x", "count=1.5"], 2, "count=1.5"),
        (["-m", "data_pipeline", "render", "workers=x"], 2, "workers=x"),
        (["-m", "data_pipeline", "render", "source=folder", "source.count=x"], 2, "source.count=x"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "steps=0"], 1, "steps=0"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "solver=ddim"], 1, "solver=ddim"),
        (["generate.py", "prompt= ", "checkpoint=x", "out=x.glb"], 1, "prompt= is empty"),
        (["generate.py", "image=no.png", "checkpoint=x", "out=x.glb"], 1, "image=no.png: there is"),
        (["generate.py", "image=x", "sample=x", "out=x.glb"], 1, "or both; or sample=UID"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "guidance=nan"], 1, "guidance="),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "grid=7"], 1, "grid=7"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=x.glb", "views=x.glb"], 1, "views=x.glb"),
        (["train.py", "experiment=tiny/autoencoder", "trainer.max_steps=abc"], 2, "max_steps=abc"),
        (["generate.py", "prompt=x", "checkpoint=x", "out=/proc/x.glb"], 1, "/proc/x.glb"),
        (["-m", "data_pipeline", "render", "lightning=studio"], 2, "did you mean lighting"),
        (["-m", "data_pipeline", "render", "rss_limit_mb=x"], 2, "rss_limit_mb=x"),
        (["-m", "data_pipeline", "verify", "out=/no/staging"], 1, "/no/staging"),
        (["eval.py", "compare", "/no/a.json", "/no/b.json"], 1, "/no/a.json does not exist"),
        (["eval.py", "compare", "/no/a.json"], 2, "second=VALUE"),
        (["-m", "data_pipeline", "paint"], 2, "render"),
        (["-m", "data_pipeline", "pack", "out=/no/staging", "shards=/no/shards"], 1, "/no/staging"),
    ],
)  # fmt: skip
def test_a_wrong_command_ends_in_one_clear_line(arguments, code, said, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delitem(sys.modules, "data_pipeline.__main__", raising=False)
    script, *rest = arguments
    monkeypatch.setattr(sys, "argv", [script, *rest[1:]] if script == "-m" else arguments)
    start, name = (runpy.run_module, rest[0]) if script == "-m" else (runpy.run_path, script)
    with pytest.raises(SystemExit) as ended:
        start(name, run_name="__main__")
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize("script", [["train.py"], ["generate.py"], ["-m", "data_pipeline"]])
def test_a_process_ends_with_the_code_and_without_a_traceback(script):
    result = subprocess.run(
        [sys.executable, *script, "no_such_key=1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "no_such_key" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("guidance_rescale=2", "guidance_rescale=2 must lie in [0, 1]"),
        ("guidance=null", "guidance=None must be a number"),
    ],
)
def test_wrong_sampling_is_refused_before_anything_slow_is_imported(option: str, said: str):
    asked = ["generate.py", "prompt=a box", "checkpoint=x", "out=x.glb", option]
    code = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {asked}; "
    result = subprocess.run(
        [sys.executable, "-c", code + "runpy.run_path('generate.py', run_name='__main__')"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stderr == f"error: {said}\n"
    assert result.returncode == 1


def test_what_a_loaders_process_could_not_use_is_told_without_its_traceback(capsys, monkeypatch):
    class Bad(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            raise UserError("sample x stores 512 points, not 1536: lower num_sdf_points")

    def main(config: object) -> None:
        list(torch.utils.data.DataLoader(Bad(), num_workers=1))

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run("train", main)
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: sample x stores 512 points, not 1536: lower num_sdf_points"

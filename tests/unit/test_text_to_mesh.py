"""Several results of one prompt: each is made by itself, and one that fails costs no other."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
import trimesh
from PIL import Image

from data_pipeline.contract import UserError
from modules.pipelines import text_to_mesh
from modules.pipelines.export import ExportOptions, model_digest
from modules.pipelines.sampling_options import Sampling
from modules.pipelines.text_to_mesh import check_layout, check_pictures, generate_from_prompt


class Generator:
    """Makes images that hold their seed, of one prompt at a time."""

    codec = SimpleNamespace(spec=SimpleNamespace(num_views=6), image_px=8)
    text_encoder = SimpleNamespace(unknown_words=lambda prompt: [])

    def to(self, device: torch.device) -> "Generator":
        return self

    def __call__(self, prompts, seeds, **asked) -> torch.Tensor:
        assert len(prompts) == len(seeds) == 1
        self.asked = asked
        return torch.full((1, 3, 6, 3, 8, 8), float(seeds[0]))


def test_a_result_that_fails_is_told_and_the_others_are_written(monkeypatch, tmp_path, capsys):
    def export(images, cameras, hit, path, *more) -> str:
        if images[0, 0, 0, 0, 0] == 1.0:
            raise UserError("the images show no surface")
        path.write_text(str(images[0, 0, 0, 0, 0].item()))
        return "a report"

    monkeypatch.setattr(text_to_mesh.TextTo25D, "from_pretrained", lambda _: Generator())
    monkeypatch.setattr(text_to_mesh.Reconstructor, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(text_to_mesh, "model_digest", lambda _: "digest")
    monkeypatch.setattr(text_to_mesh, "export", export)
    outputs = {seed: tmp_path / f"{seed}.glb" for seed in range(3)}
    settings = {"sampling": Sampling(), "views": None, "options": ExportOptions()}
    with pytest.raises(UserError, match="1 of 3 results were not made; seed 1: the images show"):
        generate_from_prompt("a chair", outputs, tmp_path, device="cpu", **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"0.glb", "2.glb"}
    assert outputs[2].read_text() == "2.0"
    assert "1.glb was not made" in capsys.readouterr().err


def test_a_picture_reaches_the_sampler_with_or_without_a_prompt(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(text_to_mesh.Reconstructor, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(text_to_mesh, "model_digest", lambda _: "digest")
    monkeypatch.setattr(text_to_mesh, "export", lambda *given: written.append(given[6]) or "")
    (tmp_path / "photos").mkdir()
    for name, colour in (
        ("a, (é) 漢=1.png", "red"),
        ("photos/1.png", "red"),
        ("photos/2.jpg", "blue"),
    ):
        Image.new("RGB", (5, 9), colour).save(tmp_path / name)
    settings = {"views": None, "options": ExportOptions(), "device": "cpu"}
    sampling = Sampling(steps=3, solver="heun", guidance_interval=[0.2, 0.9], guidance_rescale=0.5)
    for prompt, image, count in (("a mug", "a, (é) 漢=1.png", 1), ("", "photos", 2)):
        generator = Generator()
        monkeypatch.setattr(text_to_mesh.TextTo25D, "from_pretrained", lambda _, g=generator: g)
        generate_from_prompt(
            prompt, {0: tmp_path / "a.glb"}, tmp_path, sampling=sampling,
            image=tmp_path / image, **settings,
        )  # fmt: skip
        [references] = generator.asked["references"]
        assert [each.shape for each in references] == [(3, 8, 8)] * count
        assert references[0][:, 4, 4].tolist() == [1.0, -1.0, -1.0]
        assert generator.asked["guidance_interval"] == (0.2, 0.9)
        assert {generator.asked[key] for key in ("steps", "solver", "guidance_rescale")} == {
            3, "heun", 0.5
        }  # fmt: skip
        about = written.pop()
        assert (about["prompt"], about["image"], about["solver"]) == (prompt, image, "heun")
        assert len(about["image_sha256"]) == 64


def test_a_given_mesh_is_named_in_what_is_made_of_it(monkeypatch, tmp_path):
    written = []
    trimesh.creation.box().export(tmp_path / "box.stl")
    monkeypatch.setattr(text_to_mesh.TextTo25D, "from_pretrained", lambda _: Generator())
    monkeypatch.setattr(text_to_mesh, "export", lambda *given: written.append(given[6]) or "")
    generate_from_prompt(
        "a box", {0: tmp_path / "a.glb"}, tmp_path, sampling=Sampling(), views=None,
        options=ExportOptions(), device="cpu", mesh=tmp_path / "box.stl",
    )  # fmt: skip
    [about] = written
    assert about["given_mesh"] == "box.stl"
    expected = hashlib.sha256((tmp_path / "box.stl").read_bytes()).hexdigest()
    assert about["given_mesh_sha256"] == expected


def test_the_models_digest_tells_pretrained_parts_apart_by_their_weights(tmp_path):
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser/experts.safetensors").write_bytes(b"experts")

    def digest(source, backbone, text=None):
        content = {
            "network": {"origin": {"source": source, "fingerprint": backbone}},
            "text_encoder": {"fingerprint": text}, "vision_encoder": None,
        }  # fmt: skip
        (tmp_path / "denoiser/denoiser.json").write_text(json.dumps(content))
        return model_digest(tmp_path)

    assert digest("/here", "aa") == digest("/there", "aa")
    assert len({digest("/here", "aa"), digest("/here", "bb"), digest("/here", "aa", "cc")}) == 3


def test_a_picture_that_would_overwrite_a_texture_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"where the texture of the \.obj goes"):
        check_pictures(str(tmp_path / "a.png"), {0: tmp_path / "a.obj"})
    assert check_pictures(str(tmp_path / "a.png"), {0: tmp_path / "a.glb"})


def test_a_pipeline_of_another_layout_is_refused_before_it_samples(tmp_path):
    check_layout(6, tmp_path)
    with pytest.raises(UserError, match="makes 4 views, meshes are made of the 6 of ortho6"):
        check_layout(4, tmp_path)

import pytest
import torch

from data_pipeline.contract import UserError
from modules.latents.codec import LatentCodec
from modules.latents.spec import LatentSpec, fingerprint
from modules.networks.denoiser import JointDenoiser
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.pipelines.generation import TextTo25D

VIEWS, CHANNELS, GRID = 2, 12, 2


class PixelCode(torch.nn.Module):
    """An autoencoder without loss: a latent is a pixel."""

    def encode(self, images):
        return type("Encoded", (), {"latents": images})

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents})


def make_pipeline(**options) -> TextTo25D:
    torch.manual_seed(0)
    spec = LatentSpec(
        packing=2,
        mean=[[0.1] * CHANNELS] * 3,
        std=[[0.5] * CHANNELS] * 3,
        origin="test",
        autoencoder=fingerprint(PixelCode()),
        num_views=VIEWS,
        grid=GRID,
    )
    denoiser = JointDenoiser.from_scratch(
        num_views=VIEWS, in_channels=CHANNELS, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    torch.nn.init.normal_(denoiser.backbone.transformer.proj_out.weight, std=0.2)
    encoder = TextEncoder(max_words=16, length=4, width=8, num_heads=2)
    vocabulary = Vocabulary.from_captions(["a red chair", "a blue mug"])
    codec = LatentCodec(PixelCode(), spec)
    return TextTo25D(codec, denoiser.eval(), encoder.eval(), vocabulary, **options)


def test_images_have_the_contract_shape_and_range():
    images = make_pipeline()(["a red chair"], [0], steps=3)
    assert images.shape == (1, 3, VIEWS, 3, 4, 4)
    assert images.abs().max() <= 1.0


def test_starting_noise_is_a_function_of_the_items_seed_alone():
    pipeline = make_pipeline()
    together = pipeline.starting_noise([3, 1, 2])
    for row, seed in enumerate([3, 1, 2]):
        assert torch.equal(pipeline.starting_noise([seed])[0], together[row])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_item_does_not_depend_on_its_batch(guidance):
    pipeline = make_pipeline()
    together = pipeline(["a red chair", "a blue mug", ""], [5, 6, 7], steps=4, guidance=guidance)
    alone = pipeline(["a blue mug"], [6], steps=4, guidance=guidance)
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


def test_permuting_and_duplicating_prompts_under_guidance_does_so_to_the_images():
    pipeline, prompts, seeds = make_pipeline(), ["a red chair", "a blue mug", ""], [5, 6, 7]
    order = [2, 0, 1, 0]
    images = pipeline(prompts, seeds, steps=3, guidance=4.0)
    moved = pipeline([prompts[i] for i in order], [seeds[i] for i in order], steps=3, guidance=4.0)
    torch.testing.assert_close(moved, images[order], rtol=1e-4, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 1e-2


def test_equal_calls_are_bit_equal_and_seeds_and_prompts_matter():
    pipeline = make_pipeline()
    first = pipeline(["a red chair"], [0], steps=3)
    assert torch.equal(pipeline(["a red chair"], [0], steps=3), first)
    assert (pipeline(["a red chair"], [1], steps=3) - first).abs().max() > 1e-2
    assert (pipeline(["a blue mug"], [0], steps=3) - first).abs().max() > 1e-4


def test_guidance_moves_from_null_to_caption():
    """Velocities are linear in guidance, so one Euler step of the batched form must be too."""
    pipeline = make_pipeline()
    text, null = pipeline.embed(["a red chair"]), pipeline.embed([""])
    noise = pipeline.starting_noise([0])
    results = {g: pipeline.sample(text, null, noise, steps=1, guidance=g) for g in (0.0, 1.0, 2.5)}
    expected = results[0.0] + 2.5 * (results[1.0] - results[0.0])
    torch.testing.assert_close(results[2.5], expected, rtol=1e-4, atol=1e-5)
    caption_is_null = pipeline.sample(null, null, noise, steps=1, guidance=7.0)
    torch.testing.assert_close(caption_is_null, results[0.0], rtol=1e-4, atol=1e-4)


def test_a_perfect_denoiser_is_followed_to_its_answer():
    answer = torch.randn(1, 3, VIEWS, CHANNELS, GRID, GRID)
    for prediction in ("clean", "velocity"):
        pipeline = make_pipeline(prediction=prediction, shift=2.0)
        noise = pipeline.starting_noise([0])
        output = answer if prediction == "clean" else noise - answer
        pipeline.denoiser = lambda latents, timesteps, text, output=output: output
        text = pipeline.embed([""])
        result = pipeline.sample(text, text, noise, steps=5, guidance=1.0)
        torch.testing.assert_close(result, answer, rtol=1e-4, atol=1e-5)


def test_held_geometry_stays_and_rgb_depends_on_it():
    pipeline = make_pipeline()
    geometry = torch.rand(1, 3, VIEWS, 3, 4, 4) * 2.0 - 1.0
    textured = pipeline(["a mug"], [0], steps=3, geometry=geometry)
    assert torch.equal(textured[:, 1:], geometry[:, 1:])
    other_rgb = geometry.clone()
    other_rgb[:, 0] = 0.0
    assert torch.equal(pipeline(["a mug"], [0], steps=3, geometry=other_rgb), textured)
    other_shape = pipeline(["a mug"], [0], steps=3, geometry=-geometry)
    assert (other_shape[:, 0] - textured[:, 0]).abs().max() > 1e-4


def test_held_modalities_are_at_timestep_zero_in_every_step():
    pipeline = make_pipeline()
    seen = []
    denoiser = pipeline.denoiser
    pipeline.denoiser = lambda latents, timesteps, text: (
        seen.append(timesteps.clone()) or denoiser(latents, timesteps, text)
    )
    pipeline([""], [0], steps=4, geometry=torch.zeros(1, 3, VIEWS, 3, 4, 4))
    assert torch.stack(seen)[:, :, 1:].max() == 0.0
    assert torch.stack(seen)[:, 0, 0].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_progress_is_told_after_every_step():
    calls = []
    make_pipeline()([""], [0], steps=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_prompts_and_seeds_must_match():
    with pytest.raises(UserError, match="2 prompts need as many seeds, not 1"):
        make_pipeline()(["a", "b"], [0])


def test_unknown_words_and_any_script_are_accepted():
    images = make_pipeline()(['é 漢 "x" = (1, 2)'], [0], steps=1)
    assert torch.isfinite(images).all()


def test_a_folder_that_is_no_pipeline_or_lacks_a_stage_is_named(tmp_path):
    with pytest.raises(UserError, match="is no pipeline folder: give the one that train"):
        TextTo25D.from_pretrained(tmp_path)
    (tmp_path / "autoencoder").mkdir()
    with pytest.raises(UserError, match="holds autoencoder, but no denoiser: train it with"):
        TextTo25D.from_pretrained(tmp_path)
    (tmp_path / "denoiser").mkdir()
    with pytest.raises(UserError, match="holds no complete denoiser"):
        TextTo25D.from_pretrained(tmp_path)

import itertools

import pytest
import torch

from data_pipeline.contract import UserError
from modules.latents.codec import LatentCodec
from modules.latents.spec import LatentSpec, fingerprint
from modules.networks.conditioner import Conditions
from modules.networks.denoiser import JointDenoiser
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.pipelines.generation import TextTo25D
from modules.pipelines.sampling_options import Sampling

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
    encoder.vocabulary = Vocabulary.from_captions(["a red chair", "a blue mug"])
    codec = LatentCodec(PixelCode(), spec)
    return TextTo25D(codec, denoiser.eval(), encoder.eval(), **options)


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
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
def test_an_item_does_not_depend_on_its_batch(guidance, solver):
    pipeline = make_pipeline(num_references=1)
    options = {"steps": 4, "guidance": guidance, "solver": solver}
    prompts, references = ["a red chair", "a blue mug", ""], [[make_reference()], [], []]
    together = pipeline(prompts, [5, 6, 7], references=references, **options)
    alone = pipeline(["a blue mug"], [6], **options)
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


def sample(pipeline, conditions, null, seeds=(0,), **options):
    return pipeline.sample(
        conditions, null, pipeline.starting_noise(list(seeds)), Sampling(**options)
    )


def ask(pipeline, *prompts, references=None) -> Conditions:
    return pipeline.conditions(list(prompts), references or [[]] * len(prompts))


def test_guidance_moves_from_null_to_caption():
    """Velocities are linear in guidance, so one Euler step of the batched form must be too."""
    pipeline = make_pipeline()
    asked, null = ask(pipeline, "a red chair"), ask(pipeline, "")
    results = {g: sample(pipeline, asked, null, steps=1, guidance=g) for g in (0.0, 1.0, 2.5)}
    expected = results[0.0] + 2.5 * (results[1.0] - results[0.0])
    torch.testing.assert_close(results[2.5], expected, rtol=1e-4, atol=1e-5)
    caption_is_null = sample(pipeline, null, null, steps=1, guidance=7.0)
    torch.testing.assert_close(caption_is_null, results[0.0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_batched_guidance_equals_two_separate_passes(rescale):
    """Its two halves must not meet: a peer's did, in its attention across modalities."""
    pipeline = make_pipeline(num_references=1)
    asked = ask(pipeline, "a red chair", "a blue mug", references=[[make_reference()], []])
    null = ask(pipeline, "", "")
    options = {"steps": 3, "guidance": 4.0, "guidance_rescale": rescale, "seeds": (1, 2)}
    batched = sample(pipeline, asked, null, **options)
    denoiser, sizes = pipeline.denoiser, []

    def separately(latents, timesteps, text, *, references):
        sizes.append(len(latents))
        half = len(latents) // 2
        given = [each.split(half) for each in (latents, timesteps, text, references)]
        passes = [denoiser(*each[:3], references=each[3]) for each in zip(*given, strict=True)]
        return torch.cat(passes)

    pipeline.denoiser = separately
    torch.testing.assert_close(
        sample(pipeline, asked, null, **options), batched, rtol=1e-4, atol=1e-5
    )
    assert sizes == [4, 4, 4]


def test_guidance_acts_within_its_interval_only():
    pipeline, sizes = make_pipeline(), []
    denoiser = pipeline.denoiser
    pipeline.denoiser = lambda latents, timesteps, text: (
        sizes.append((timesteps[0, 0].item(), len(latents))) or denoiser(latents, timesteps, text)
    )
    asked, null = ask(pipeline, "a red chair"), ask(pipeline, "")
    options = {"steps": 4, "guidance": 5.0}
    inside = sample(pipeline, asked, null, guidance_interval=(0.5, 0.75), **options)
    assert [size for _, size in sizes] == [1, 2, 2, 1]
    assert [level for level, _ in sizes] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    everywhere = sample(pipeline, asked, null, **options)
    nowhere = sample(pipeline, asked, null, steps=4, guidance=1.0)
    assert (inside - everywhere).abs().max() > 1e-3
    assert (inside - nowhere).abs().max() > 1e-3


def test_rescaled_guidance_keeps_the_deviation_of_the_prediction_without_guidance():
    """One step to t = 0 lands on the clean prediction itself."""
    pipeline = make_pipeline()
    asked, null = ask(pipeline, "a red chair", "a mug"), ask(pipeline, "", "")

    def deviations(**options):
        result = sample(pipeline, asked, null, seeds=(0, 1), steps=1, **options)
        return result.flatten(2).std(dim=2)

    plain, guided = deviations(guidance=1.0), deviations(guidance=40.0)
    assert (guided / plain - 1.0).abs().max() > 0.01
    fully = deviations(guidance=40.0, guidance_rescale=1.0)
    torch.testing.assert_close(fully, plain, rtol=1e-3, atol=1e-4)
    half = deviations(guidance=40.0, guidance_rescale=0.5)
    torch.testing.assert_close(half, (plain + guided) / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_a_perfect_denoiser_is_followed_to_its_answer(solver, prediction):
    answer = torch.randn(1, 3, VIEWS, CHANNELS, GRID, GRID)
    pipeline = make_pipeline(prediction=prediction, shift=2.0)
    output = answer if prediction == "clean" else pipeline.starting_noise([0]) - answer
    pipeline.denoiser = lambda latents, timesteps, text: output
    null = ask(pipeline, "")
    result = sample(pipeline, null, null, steps=5, guidance=1.0, solver=solver)
    torch.testing.assert_close(result, answer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
def test_geometry_stays_bit_by_bit_whatever_the_solver(solver):
    pipeline, seen = make_pipeline(), []
    clean = torch.randn(1, 3, VIEWS, CHANNELS, GRID, GRID)
    denoiser = pipeline.denoiser

    def watch(latents, timesteps, text):
        seen.append((latents[:1, 1:].clone(), timesteps[0].tolist()))
        return denoiser(latents, timesteps, text)

    pipeline.denoiser = watch
    result = pipeline.sample(
        ask(pipeline, "a mug"), ask(pipeline, ""), pipeline.starting_noise([0]),
        Sampling(steps=4, solver=solver), clean=clean, held=torch.tensor([[False, True, True]]),
    )  # fmt: skip
    assert torch.equal(result[:, 1:], clean[:, 1:])
    assert torch.isfinite(result).all()
    assert len(seen) == (7 if solver == "heun" else 4)
    for latents, (rgb, normal, coord) in seen:
        assert torch.equal(latents, clean[:, 1:])
        assert (normal, coord) == (0.0, 0.0)
        assert rgb > 0.0


def make_reference(brightness=0.8):
    return torch.full((3, 4, 4), brightness)


def test_reference_images_change_the_result_and_items_may_have_none():
    pipeline = make_pipeline(num_references=1)
    prompts, seeds = ["a mug"] * 3, [0, 0, 0]
    bright, none, dark = pipeline(
        prompts, seeds, steps=3, references=[[make_reference()], [], [make_reference(-0.8)]]
    )
    for first, second in ((bright, none), (none, dark), (bright, dark)):
        assert (first - second).abs().max() > 1e-3
    alone = pipeline(["a mug"], [0], steps=3)[0]
    torch.testing.assert_close(alone, none, rtol=1e-4, atol=1e-5)


def test_a_reference_reaches_the_denoiser_as_the_latents_of_an_rgb_image():
    pipeline = make_pipeline(num_references=1)
    images = torch.rand(1, 3, VIEWS, 3, 4, 4)
    found = ask(pipeline, "", references=[[images[0, 0, 1]]]).references
    torch.testing.assert_close(found[:, 0], pipeline.codec.encode(images)[:, 0, 1])


def test_references_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match="without reference images and cannot follow any: ask by text"
    ):
        make_pipeline()(["a"], [0], references=[[make_reference()]])
    with pytest.raises(UserError, match=r"with up to 1: give no more, or .*num_references=2"):
        make_pipeline(num_references=1)(["a"], [0], references=[[make_reference()] * 2])
    with pytest.raises(UserError, match="2 prompts need as many lists"):
        make_pipeline(num_references=1)(["a", "b"], [0, 1], references=[[]])
    with pytest.raises(UserError, match="resize it"):
        make_pipeline(num_references=1)(["a"], [0], references=[[torch.zeros(3, 8, 8)]])


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


def test_every_combination_of_conditions_may_stand_beside_any_other_in_a_batch():
    pipeline = make_pipeline(num_references=1)
    geometry = torch.rand(3, VIEWS, 3, 4, 4) * 2.0 - 1.0
    asked = list(itertools.product(["", "a red chair"], [[], [make_reference()]], [None, geometry]))
    prompts, references, geometries = (list(each) for each in zip(*asked, strict=True))
    together = pipeline(
        prompts, [7] * 8, steps=3, references=references, geometry=geometries
    )  # fmt: skip
    for i, (prompt, pictures, shape) in enumerate(asked):
        alone = pipeline([prompt], [7], steps=3, references=[pictures], geometry=[shape])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
        assert torch.equal(together[i, 1:], geometry[1:]) == (shape is not None)
    for first, second in itertools.combinations(together[:, 0], 2):
        assert (first - second).abs().max() > 1e-4
    with pytest.raises(UserError, match="2 prompts need as many geometries, not 1"):
        pipeline(["a", "b"], [0, 1], geometry=[geometry])
    with pytest.raises(UserError, match=r"geometry of shape \(2, 2, 3, 4, 4\) must be"):
        pipeline(["a"], [0], geometry=[geometry[:2]])
    with pytest.raises(UserError, match=r"must be \(3, 2, 3, 4, 4\): render it with the layout"):
        pipeline(["a"], [0], geometry=[torch.zeros(3, VIEWS, 3, 8, 8)])


def test_a_model_that_never_learned_to_texture_says_so():
    geometry = torch.zeros(1, 3, VIEWS, 3, 4, 4)
    pipeline = make_pipeline(textures=False)
    assert pipeline([""], [0], steps=1).shape == geometry.shape
    with pytest.raises(UserError, match=r"never learned to texture .* system\.mix\.texture"):
        pipeline([""], [0], steps=1, geometry=geometry)


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
    (tmp_path / "autoencoder").rmdir()
    with pytest.raises(UserError, match=r"no autoencoder: put there the one that .* vae folder"):
        TextTo25D.from_pretrained(tmp_path)
    (tmp_path / "autoencoder").mkdir()
    with pytest.raises(UserError, match="holds no complete denoiser"):
        TextTo25D.from_pretrained(tmp_path)

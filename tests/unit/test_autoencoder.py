import types
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_autoencoder import TinyDC

from modules.latents.patch_linear import start_patch_linear
from modules.losses.image import (
    gradient_loss,
    kl_loss,
    normal_angle_loss,
    peak_signal_to_noise,
    reconstruction_loss,
)
from modules.systems.autoencoder import AutoencoderSystem, _inside
from modules.systems.image_draw import draw_images
from modules.systems.schedule import warmup_hold_decay

KL = partial(AutoencoderKL, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)


def make_images(num_images: int = 6) -> torch.Tensor:
    """Smooth random images in [-1, 1]: sums of a few waves."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    frequency = torch.rand(num_images, 3, 2, 1, 1, generator=generator) * 6.0
    return torch.sin(frequency[:, :, 0] * x + frequency[:, :, 1] * y)


def make_batch() -> dict:
    images = make_images(2 * 3 * 2).unflatten(0, (2, 3, 2))
    cameras = torch.eye(4).expand(2, 2, 4, 4).clone()
    hit = torch.rand(2, 2, 16, 16) > 0.3
    return {"images": images, "hit": hit, "camera_to_world": cameras}


def make_system(network, **options) -> AutoencoderSystem:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=1e-4)
    system = AutoencoderSystem(network, optimizer, images_per_step=8, **options)
    system.configure_model()
    system.log = system.log_dict = lambda *_, **__: None
    return system


def test_patch_linear_start_is_the_best_linear_code_of_its_patches():
    torch.manual_seed(0)
    autoencoder, images = TinyDC(), make_images(40)
    start_patch_linear(autoencoder, images)
    decoded = autoencoder.decode(autoencoder.encode(images).latent).sample
    patches = torch.nn.functional.unfold(images, 4, stride=4).movedim(1, 2).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    left, size, right = torch.linalg.svd(centred, full_matrices=False)
    size[12:] = 0.0
    best = (left * size @ right - centred).square().mean()
    assert best > 0
    # The last RMSNorm bends values by less than 1 %, which is all that differs.
    assert ((decoded - images).square().mean() - best).abs() < 1e-4


def test_patch_linear_start_leaves_no_path_without_gradient():
    torch.manual_seed(0)
    autoencoder, images = TinyDC(), make_images(8)
    start_patch_linear(autoencoder, images)
    for _ in range(2):  # residual branches open in the first step
        autoencoder.zero_grad()
        decoded = autoencoder.decode(autoencoder.encode(images).latent).sample
        (decoded - images).square().mean().backward()
        with torch.no_grad():
            for parameter in autoencoder.parameters():
                parameter -= 1e-3 * parameter.grad.sign()
    idle = [n for n, p in autoencoder.named_parameters() if p.grad.abs().max() == 0]
    assert idle == []


def test_no_convolution_reads_the_constant_of_a_patch_linear_start():
    """One that did would be thrown about by every step of Adam, which knows no scale of inputs."""
    torch.manual_seed(0)
    autoencoder, images = TinyDC(), make_images(8)
    start_patch_linear(autoencoder, images)
    largest: dict[str, float] = {}
    for name, module in autoencoder.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: largest.update({name: inputs[0].abs().max().item()})
            )
    autoencoder.decode(autoencoder.encode(images).latent)
    assert len(largest) > 8
    assert max(largest.values()) < 5.0


def test_a_pixel_is_inside_when_its_whole_neighbourhood_is_hit():
    hit = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    hit[..., 1:8, 1:8] = True
    inside = _inside(hit)
    assert inside.sum() == 9
    assert inside[..., 3:6, 3:6].all()


def test_patch_linear_start_refuses_shapes_that_mix_channels():
    autoencoder = TinyDC(encoder_block_out_channels=(16, 16, 32))
    with pytest.raises(ValueError, match="encoder_block_out_channels"):
        start_patch_linear(autoencoder, make_images())


@pytest.mark.parametrize("network", [TinyDC, KL], ids=["dc", "kl"])
def test_a_training_step_gives_every_parameter_a_gradient(network):
    system = make_system(network)
    loss = system.training_step(make_batch(), 0)
    loss.backward()
    assert torch.isfinite(loss)
    idle = [n for n, p in system.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # Attention of a single latent cell's group and key biases cancel; all else must learn.
    assert [name for name in idle if "to_k.bias" not in name] == []


def test_the_loss_falls_on_one_batch():
    system, batch = make_system(TinyDC), make_batch()
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-3)
    losses = []
    for step in range(30):
        loss = system.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_step_without_any_normal_image_has_a_finite_loss():
    system = make_system(TinyDC)
    system.images_per_step = 1
    batch = make_batch()
    assert all(torch.isfinite(system.training_step(batch, 0)) for _ in range(6))


def test_drawn_masks_and_modalities_belong_to_the_drawn_images():
    batch = make_batch()
    sample, modality, view = torch.meshgrid(
        torch.arange(2), torch.arange(3), torch.arange(2), indexing="ij"
    )
    code = (100 * sample + 10 * modality + view).float()
    batch["images"] = code[..., None, None, None].expand(2, 3, 2, 3, 16, 16)
    views = (100 * sample[:, 0] + view[:, 0])[..., None, None].expand(2, 2, 16, 16)
    batch["hit"] = views >= 100
    images, hit, drawn, _ = draw_images(batch, torch.Generator(), num_images=8)
    assert torch.equal(images[:, 0, 0, 0] // 10 % 10, drawn.float())
    assert torch.equal(hit[:, 0, 0], images[:, 0, 0, 0] >= 100)


def test_configure_model_builds_once_and_on_the_meta_device():
    system = AutoencoderSystem(TinyDC, partial(torch.optim.AdamW, lr=1e-4))
    with torch.device("meta"):
        system.configure_model()
    built = system.autoencoder
    system.configure_model()
    assert system.autoencoder is built
    assert next(built.parameters()).device.type == "meta"


def test_patch_linear_start_is_for_autoencoder_dc_only():
    system = make_system(KL, patch_linear_start=True)
    system._trainer = types.SimpleNamespace(global_step=0)
    with pytest.raises(TypeError, match="AutoencoderDC"):
        system._start_from(make_images())


def test_image_losses_are_zero_for_equal_images_and_measure_known_errors():
    images = make_images(2)
    assert reconstruction_loss(images, images).max() == 0
    assert reconstruction_loss(images + 0.5, images).tolist() == pytest.approx([0.75, 0.75])
    assert gradient_loss(images + 0.5, images).max() < 1e-6
    x = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    y = x.roll(1, dims=1)
    hit = torch.ones(1, 4, 4, dtype=torch.bool)
    assert normal_angle_loss(2.0 * x, x, hit).item() == pytest.approx(0.0, abs=1e-6)
    assert normal_angle_loss(y, x, hit).item() == pytest.approx(1.0)
    assert normal_angle_loss(-x, x, hit).item() == pytest.approx(2.0)
    assert normal_angle_loss(-x, x, ~hit).item() == 0.0
    assert kl_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0.0
    assert peak_signal_to_noise(x - 0.2, x).item() == pytest.approx(20.0, abs=0.5)


def test_learning_rate_rises_holds_and_falls():
    options = {"total_steps": 100, "warmup_steps": 10, "decay_share": 0.2, "final": 0.1}
    factor = [warmup_hold_decay(step, **options) for step in range(101)]
    assert factor[0] == pytest.approx(0.1)
    assert factor[9] == factor[50] == factor[80] == 1.0
    assert factor[90] == pytest.approx(0.55)
    assert factor[100] == pytest.approx(0.1)

from unittest.mock import Mock

import gloo_average
import lightning
import pytest
import torch
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from data_pipeline.contract import UserError
from modules.callbacks.ema import WeightAverage, averaged_weights


class Line(lightning.LightningModule):
    """A point that is pulled to 1 by a fixed share of the way: w = 1 - 0.9 ** steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen = []

    def training_step(self, batch, batch_idx):
        return 0.5 * (self.weight - 1.0).square().sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(system, callback, tmp_path, steps, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **options,
    )
    loader = DataLoader(torch.zeros(1000, 1))
    trainer.fit(
        system, loader, DataLoader(torch.zeros(1, 1)), ckpt_path=ckpt_path, weights_only=True
    )
    return trainer


def reference(steps, decay):
    """The same average, written out."""
    average = None
    for n in range(steps):
        weight = 1.0 - 0.9 ** (n + 1)
        warm = min(decay, (1 + n) / (10 + n))
        average = weight if average is None else warm * average + (1 - warm) * weight
    return average


def test_average_follows_the_written_out_reference(tmp_path):
    callback = WeightAverage(decay=0.7)
    fit(Line(), callback, tmp_path, 30, limit_val_batches=0)
    assert list(callback.average) == ["weight"]
    assert callback.average["weight"].item() == pytest.approx(reference(30, 0.7), abs=1e-5)


def test_accumulated_gradients_count_as_one_update(tmp_path):
    callback = WeightAverage(decay=0.7)
    fit(Line(), callback, tmp_path, 5, limit_val_batches=0, accumulate_grad_batches=4)
    assert callback.num_updates == 5
    assert callback.average["weight"].item() == pytest.approx(reference(5, 0.7), abs=1e-5)


def test_validation_and_export_see_the_average_and_training_does_not(tmp_path):
    system, callback = Line(), WeightAverage(decay=0.7)
    trainer = fit(system, callback, tmp_path, 6, val_check_interval=6, check_val_every_n_epoch=None)
    assert system.seen == [pytest.approx(reference(6, 0.7), abs=1e-5)]
    assert system.weight.item() == pytest.approx(1.0 - 0.9**6, abs=1e-5)
    with averaged_weights(trainer, system):
        assert system.weight.item() == pytest.approx(reference(6, 0.7), abs=1e-5)
    assert system.weight.item() == pytest.approx(1.0 - 0.9**6, abs=1e-5)


def test_averaged_weights_are_put_back_after_an_error():
    system, callback = Line(), WeightAverage()
    callback.average = {"weight": torch.ones(1)}
    trainer = lightning.Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False
    )
    with pytest.raises(OSError, match="disk"), averaged_weights(trainer, system):
        raise OSError("disk full")
    assert system.weight.item() == 0.0


def test_a_resumed_run_has_the_average_of_an_uninterrupted_one(tmp_path):
    whole = WeightAverage(decay=0.7)
    fit(Line(), whole, tmp_path, 12, limit_val_batches=0)
    first = WeightAverage(decay=0.7)
    fit(Line(), first, tmp_path, 7, limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    second = WeightAverage(decay=0.7)
    fit(Line(), second, tmp_path, 12, tmp_path / "half.ckpt", limit_val_batches=0)
    assert torch.equal(second.average["weight"], whole.average["weight"])
    assert second.num_updates == 12


def test_the_average_of_bfloat16_weights_moves_by_less_than_their_precision(tmp_path):
    system, callback = Line(), WeightAverage(decay=0.999)
    system.to(torch.bfloat16)
    callback.average = {"weight": torch.ones(1)}
    for step in range(20_000, 22_000):  # long warmed up
        callback.num_updates = step - 1
        trainer = Mock(spec=lightning.Trainer, global_step=step)
        callback.on_train_batch_end(trainer, system, None, None, 0)
    assert callback.average["weight"].item() == pytest.approx(0.999**2000, rel=1e-4)
    exact = callback.average["weight"].clone()
    callback.swap(system)
    assert system.weight.dtype == torch.bfloat16
    assert system.weight.item() == pytest.approx(exact.item(), rel=1e-2)
    callback.swap(system)
    assert system.weight.item() == 0.0
    assert torch.equal(callback.average["weight"], exact)
    callback.load_state_dict({"num_updates": 1, "average": {"weight": torch.ones(1).bfloat16()}})
    assert callback.average["weight"].dtype == torch.float32


def test_shards_are_averaged_in_each_process_as_the_whole_would_be_in_one(tmp_path):
    network = gloo_average.Network()
    alone = gloo_average.train(network)
    start_processes(gloo_average.main, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["shards"]["first.weight"] == (3, 3)  # of 5 x 3
    assert second["shards"]["first.weight"] == (2, 3)
    weights = dict(network.named_parameters())
    assert (
        alone.average.keys()
        == first["average"].keys()
        == {"first.weight", "second.weight", "second.bias"}
    )
    for name, average in alone.average.items():
        assert (average - weights[name]).abs().max() > 1e-3
        for found in (first, second):
            torch.testing.assert_close(found["average"][name], average)
            assert torch.equal(found["held"][name], found["average"][name])
            assert torch.equal(found["after"][name], found["before"][name])


def test_weights_that_zero_3_empties_are_refused_at_the_start(tmp_path):
    system = Line()
    system.weight.ds_tensor = torch.zeros(1)  # as deepspeed.zero.Init leaves them
    with pytest.raises(UserError, match=r"does not work under ZeRO stage 3.*~callbacks\.ema"):
        fit(system, WeightAverage(), tmp_path, 1)

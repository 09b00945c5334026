"""Processes whose validation samples do not divide evenly log the same figures, and none waits."""

import json
import math
import os
import socket
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from test_condition_probes import CONDITIONS, Fitted, make_batch, make_system
from torch.multiprocessing.spawn import start_processes

from data_pipeline.loading.datamodule import ShardDataModule, share_of_rank
from modules.callbacks.condition_probes import ConditionProbes
from modules.callbacks.ema import WeightAverage

CAPTIONS = ["a red chair", "a blue mug", "a blue chair"]
CASES = [(3, 2), (3, 1), (1, 1)]
"""Validation samples, and samples per batch; the last gives the second process none of its own."""


class Latents(torch.utils.data.Dataset):
    shard_set = SimpleNamespace(uids=("a", "b", "c"))

    def __len__(self):
        return len(CAPTIONS)

    def __getitem__(self, key):
        batch = make_batch(CAPTIONS)
        return {name: values[key[1]] for name, values in batch.items()}


def fit(rank: int, port: int, folder: str) -> None:
    """Train one step and validate, as one of two processes, in each of the cases."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    for case, (num_val, batch_size) in enumerate(CASES):
        system = make_system()
        system.__class__ = Fitted
        data = ShardDataModule(
            Latents, batch_size=batch_size, num_workers=0, seed=0, num_val=num_val, hold_back=False
        )
        strategy = DDPStrategy(
            process_group_backend="gloo", timeout=timedelta(seconds=60),
            find_unused_parameters=True,
        )  # fmt: skip
        trainer = lightning.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, max_steps=1, logger=False,
            callbacks=[WeightAverage(), ConditionProbes(after_steps=1, error=True)],
            val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(system, data)
        figures = {name: float(x) for name, x in trainer.callback_metrics.items() if "val/" in name}
        (Path(folder) / f"{case}-{rank}.json").write_text(json.dumps(figures))


def test_two_processes_validate_three_samples_and_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(fit, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    for case, (num_val, _) in enumerate(CASES):
        first, second = (
            json.loads((tmp_path / f"{case}-{rank}.json").read_text()) for rank in (0, 1)
        )
        assert {f"val/probe/{name}" for name in CONDITIONS} <= first.keys()
        assert math.isnan(first["val/loss/true_minus_shuffled"]) == (num_val == 1)
        assert first == pytest.approx(second, nan_ok=True)
    assert math.isfinite(first["val/loss/total"])


@pytest.mark.parametrize(("num_samples", "world_size"), [(12, 8), (12, 16), (3, 2), (4, 2), (0, 2)])
def test_every_process_validates_equally_many_and_all_are_seen(num_samples, world_size):
    samples = list(range(100, 100 + num_samples))
    shares = [share_of_rank(samples, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {math.ceil(num_samples / world_size)}
    assert {sample for share in shares for sample in share} == set(samples)
    if num_samples % world_size == 0:
        assert sum(map(len, shares)) == num_samples  # nothing repeats

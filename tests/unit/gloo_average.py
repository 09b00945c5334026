"""One of two processes that average weights of which each holds a shard."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modules.callbacks.ema import WeightAverage

STEPS, DECAY = 12, 0.7


class Network(lightning.LightningModule):
    """Two layers; the first bias is not trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
        self.first.bias.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


def train(network: Network) -> WeightAverage:
    """Make some steps; both processes see the same data, as one process alone would."""
    average = WeightAverage(DECAY)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for step in range(STEPS):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()
        trainer = Mock(spec=lightning.Trainer, global_step=step + 1)
        average.on_train_batch_end(trainer, network, None, None, step)
    return average


def whole(values: Any) -> dict[str, torch.Tensor]:
    """Return tensors, gathered from all processes."""
    return {n: x.full_tensor() if hasattr(x, "full_tensor") else x for n, x in values.items()}


def main(rank: int, folder: str) -> None:
    """Train with shards, and write what all processes together hold."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    network = Network()
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    average = train(network)
    shards = {name: tuple(x.to_local().shape) for name, x in average.average.items()}  # pyright: ignore[reportAttributeAccessIssue]
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    before = whole({n: p.detach().clone() for n, p in trained.items()})
    found = whole(average.average)
    average.swap(network)
    held = whole({n: p.detach() for n, p in trained.items()})
    average.swap(network)
    after = whole({n: p.detach() for n, p in trained.items()})
    content = {"shards": shards, "average": found, "held": held, "before": before, "after": after}
    torch.save(content, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()

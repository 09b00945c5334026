"""The LightningDataModule of every system: which dataset, in which order, from which position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from torch.utils.data import DataLoader

from data_pipeline.contract import UserError
from data_pipeline.duplicates.groups import read_groups
from data_pipeline.loading.order import GlobalOrder
from data_pipeline.loading.samples import LatentDataset, SampleDataset, collate
from data_pipeline.loading.split import OrderOfChosen, held_back


class ShardDataModule(lightning.LightningDataModule):
    """Feeds a dataset of shards in one global order, and resumes at the exact sample.

    The train stream never ends (`max_steps` ends a run). Its state in a checkpoint is the number of
    consumed samples.

    Args:
        dataset: makes the dataset; called once, in every process.
        batch_size: samples per optimizer micro-batch and process.
        num_workers: loader processes.
        seed: of the order.
        num_val: samples that validation looks at, at most; fewer in a small set.
        hold_back: whether training never sees them; if not, validation looks at the first samples
            of the set, and its figures say how well a model learns by heart.
        groups: file of near-duplicates, which no split parts (`python -m data_pipeline duplicates
            groups=FILE`); None: groups follow from names.
    """

    def __init__(
        self,
        dataset: Callable[[], SampleDataset | LatentDataset],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        num_val: int,
        hold_back: bool,
        groups: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} must be at least 1")
        self.make_dataset = dataset
        self._dataset: SampleDataset | LatentDataset | None = None
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.num_val, self.hold_back = seed, num_val, hold_back
        self.groups_of = None if groups is None else read_groups(Path(groups))
        self._start_position = 0
        self._start_step = 0

    def setup(self, stage: str) -> None:
        if self._dataset is None:
            self._dataset = self.make_dataset()

    @property
    def dataset(self) -> SampleDataset | LatentDataset:
        """The dataset; made on first use."""
        self.setup("fit")
        assert self._dataset is not None
        return self._dataset

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest of the shards that are read."""
        return self.dataset.shard_set.sha256

    def _split(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the samples for training and for validation."""
        every = range(len(self.dataset))
        if not self.hold_back:
            return list(every), list(every[: self.num_val])
        validation = held_back(self.dataset.shard_set.uids, self.num_val, self.groups_of)
        return sorted(set(every) - set(validation)), validation

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        trainer = self._trainer()
        self._start_step = trainer.global_step
        training, _ = self._split()
        order = GlobalOrder(
            len(training),
            self.batch_size * trainer.world_size,
            seed=self.seed,
            start=self._start_position,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return self._loader(OrderOfChosen(order, training))

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        trainer = self._trainer()
        chosen = share_of_rank(self._split()[1], trainer.global_rank, trainer.world_size)
        batches = [
            [(i, i) for i in chosen[k : k + self.batch_size]]
            for k in range(0, len(chosen), self.batch_size)
        ]
        return self._loader(batches)

    def state_dict(self) -> dict[str, Any]:
        """Return how many samples the optimizer has consumed, over all ranks."""
        trainer = self._trainer()
        per_step = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        steps = trainer.global_step - self._start_step
        return {"consumed_samples": self._start_position + steps * per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start_position = int(state_dict["consumed_samples"])

    def _loader(self, batches: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
        )

    def _trainer(self) -> lightning.Trainer:
        assert self.trainer is not None
        return self.trainer


def share_of_rank(samples: list[int], rank: int, world_size: int) -> list[int]:
    """Return the samples that one process validates: as many as every other process.

    Every logged figure is reduced over processes, which wait for each other: one with fewer batches
    would let the others wait forever. Where the samples do not divide, the first ones repeat.
    """
    per_rank = -(-len(samples) // world_size)
    return [samples[i % len(samples)] for i in range(rank, per_rank * world_size, world_size)]

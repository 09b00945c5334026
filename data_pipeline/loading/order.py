"""One global order of samples: epoch permutations laid end to end, cut into global batches."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Draw = tuple[int, int]
"""(position in the endless stream, number of the sample)."""


class GlobalOrder(Sampler[list[Draw]]):
    """Yields this rank's share of every global batch, for ever.

    Step `t` of global batch size `G` covers positions `[tG, (t + 1)G)`; rank `r` of `w` takes
    positions `r, r + w, ...` of it. The order is a function of `seed` alone, never of the number of
    ranks, so the only state is one counter: how many samples were consumed.

    Args:
        num_samples: samples in the set.
        global_batch: samples of one step over all ranks.
        seed: of the permutations.
        start: position of the first sample.
        rank: of this process.
        world_size: number of processes; divides `global_batch`.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch % world_size:
            raise ValueError(f"global_batch={global_batch} is not divisible by {world_size} ranks")
        self.num_samples, self.global_batch, self.seed = num_samples, global_batch, seed
        self.start, self.rank, self.world_size = start, rank, world_size
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def sample_at(self, position: int) -> int:
        """Return the number of the sample at a position of the endless stream."""
        epoch, i = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(self.num_samples)
        return int(self._permutation[i])

    def __iter__(self) -> Iterator[list[Draw]]:
        position = self.start
        while True:
            mine = range(position + self.rank, position + self.global_batch, self.world_size)
            yield [(p, self.sample_at(p)) for p in mine]
            position += self.global_batch

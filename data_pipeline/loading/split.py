"""Which samples training never sees: whole groups of near-duplicates, the same in every stage."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from torch.utils.data import Sampler

from data_pipeline.loading.order import Draw, GlobalOrder

LARGEST_SHARE = 5
"""At most one sample in five is held back, so that a small set still trains."""


def held_back(
    uids: Sequence[str], count: int, groups_of: Mapping[str, str] | None = None
) -> list[int]:
    """Return the numbers of the samples that are held back from training, ascending.

    Unless its group is given, a uid that goes on from another one (`chair_a` and `chair_a_wood`) is
    in the other's group. Groups come
    in the order of a hash of their names, so the choice depends on names alone: all stages hold
    back the same assets, whatever they read, and a smaller count holds back some of a larger one's.

    Args:
        uids: of all samples, in the order of their numbers.
        count: at most so many samples; never more than a fifth of the set.
        groups_of: groups by uid, as `duplicates groups=FILE` wrote them.
    """
    groups, known, given = defaultdict(list), frozenset(uids), groups_of or {}
    for i, uid in enumerate(uids):
        groups[given.get(uid) or _group(uid, known)].append(i)
    limit = min(count, len(uids) // LARGEST_SHARE)
    chosen: list[int] = []
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) + len(groups[name]) > limit:
            break
        chosen += groups[name]
    return sorted(chosen)


def _group(uid: str, known: frozenset[str]) -> str:
    """Return the shortest known uid that `uid` is or goes on from."""
    ends = (i for i, letter in enumerate(uid) if letter in "_-")
    return next((uid[:end] for end in ends if uid[:end] in known), uid)


class OrderOfChosen(Sampler[list[Draw]]):
    """A global order over some samples of a set.

    Args:
        order: over as many samples as are chosen.
        chosen: their numbers in the set.
    """

    def __init__(self, order: GlobalOrder, chosen: Sequence[int]) -> None:
        self.order, self.chosen = order, chosen

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.order:
            yield [(position, self.chosen[i]) for position, i in batch]

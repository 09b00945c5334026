"""Where every sample of a set lies: `index.npz`, some 100 bytes a sample, read in one go."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 512
"""Unit of a tar: a header is one block, contents are padded to whole ones."""

DIGEST_BYTES = 16
"""BLAKE2b of a sample's stretch of the tar: tells which samples of a damaged shard are whole."""

_NEIGHBOURS = 500
"""How many uids on either side of a wrong one are looked through for what was meant."""


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """One row a sample, in the order of uids.

    Args:
        uids: `(n)` ASCII bytes, ascending.
        shard: `(n)` int32, number of the shard.
        start: `(n)` int64, offset of the sample's first tar header.
        size: `(n, k)` int64, bytes of each member, members sorted by name.
        digest: `(n, 16)` uint8, BLAKE2b of the sample's stretch of the tar.
    """

    uids: NDArray[Any]
    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    digest: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.uids)

    def save(self, path: Path) -> None:
        """Write the file; equal rows give equal bytes."""
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> "SampleIndex":
        """Read the file.

        Raises:
            ValueError: it is damaged.
            FileNotFoundError: it is missing.
        """
        try:
            with np.load(path) as stored:
                index = cls(**{name: stored[name] for name in cls.__dataclass_fields__})
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged zip raises whatever it meets first
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if len({len(getattr(index, name)) for name in cls.__dataclass_fields__}) != 1:
            raise ValueError("its columns differ in length")
        return index

    def uid(self, i: int) -> str:
        """Return the uid of row `i`."""
        return bytes(self.uids[i]).decode()

    def find(self, uid: str) -> int | None:
        """Return the row of `uid`, by bisection; None if there is none."""
        key = uid.encode()
        i = int(np.searchsorted(self.uids, np.bytes_(key)))
        return i if i < len(self) and self.uids[i] == key else None

    def near(self, uid: str) -> list[str]:
        """Return up to three uids that look like `uid`; in large sets, among its neighbours."""
        at = int(np.searchsorted(self.uids, np.bytes_(uid.encode())))
        around = self.uids[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]
        names = [name.decode() for name in around.tolist()]
        return difflib.get_close_matches(uid, names, n=3, cutoff=0.3) or names[:3]

    def span(self, i: int) -> tuple[int, int]:
        """Return where sample `i` starts and ends in its shard, headers and padding included."""
        start, sizes = int(self.start[i]), self.size[i].tolist()
        return start, start + sum(map(_stored_bytes, sizes))

    def ends(self) -> NDArray[np.int64]:
        """Return where every sample ends in its shard, `(n)`."""
        blocks = 1 - (-self.size // BLOCK_BYTES)
        return self.start + BLOCK_BYTES * blocks.sum(axis=1)

    def member_spans(self, i: int) -> list[tuple[int, int]]:
        """Return where each member's content starts and ends, from the sample's own start."""
        return _content_spans(self.size[i].tolist())


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One row of `SampleIndex`, as the writer collects it."""

    uid: str
    shard: int
    start: int
    size: tuple[int, ...]
    digest: bytes

    def span(self) -> tuple[int, int]:
        """Return where the sample starts and ends in its shard, headers and padding included."""
        return self.start, self.start + sum(map(_stored_bytes, self.size))

    def content_span(self, member: int) -> tuple[int, int]:
        """Return where the content of a member, by its number, starts and ends in the shard."""
        start, end = _content_spans(self.size)[member]
        return self.start + start, self.start + end


def index_of_rows(rows: Sequence[IndexRow]) -> SampleIndex:
    """Return the index of rows in the order of uids, each uid once."""
    return SampleIndex(
        uids=np.asarray([row.uid.encode() for row in rows]),
        shard=np.asarray([row.shard for row in rows], np.int32),
        start=np.asarray([row.start for row in rows], np.int64),
        size=np.asarray([row.size for row in rows], np.int64),
        digest=np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(
            -1, DIGEST_BYTES
        ),
    )


def rows_of_index(index: SampleIndex, shard: int) -> list[IndexRow]:
    """Return the rows of one shard."""
    return [
        IndexRow(
            index.uid(i),
            shard,
            int(index.start[i]),
            tuple(index.size[i].tolist()),
            index.digest[i].tobytes(),
        )
        for i in np.flatnonzero(index.shard == shard).tolist()
    ]


def _stored_bytes(size: int) -> int:
    """Return what a member of so many bytes takes in a tar, header and padding included."""
    return BLOCK_BYTES * (1 + -(-size // BLOCK_BYTES))


def _content_spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    spans, at = [], 0
    for size in sizes:
        spans.append((at + BLOCK_BYTES, at + BLOCK_BYTES + size))
        at += _stored_bytes(size)
    return spans

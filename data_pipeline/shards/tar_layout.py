"""A sample's stretch of a shard: USTAR headers and contents, members sorted by name."""

import hashlib
import io
import tarfile
from itertools import groupby
from pathlib import Path

from data_pipeline.shards.index import BLOCK_BYTES, DIGEST_BYTES, IndexRow
from data_pipeline.staging.sample_files import END_OF_ARCHIVE, archive

_RECORD_BYTES = 10240
"""tar archives are whole records, filled up with zeros."""


def sample_block(uid: str, members: dict[str, bytes]) -> bytes:
    """Return a sample's stretch; a function of the members alone."""
    return archive(uid, members)[: -len(END_OF_ARCHIVE)]


def sample_digest(block: bytes) -> bytes:
    """Return what `SampleIndex.digest` holds for a sample's stretch."""
    return hashlib.blake2b(block, digest_size=DIGEST_BYTES).digest()


def end_of_shard(num_bytes: int) -> bytes:
    """Return what ends a shard of so many bytes: two zero blocks, and zeros to a whole record."""
    end = num_bytes + len(END_OF_ARCHIVE)
    return bytes(-(-end // _RECORD_BYTES) * _RECORD_BYTES - num_bytes)


def parse_block(uid: str, block: bytes) -> dict[str, bytes]:
    """Return the members in a sample's stretch, by name."""
    members = {}
    with tarfile.open(fileobj=io.BytesIO(block)) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            members[info.name.removeprefix(f"{uid}.")] = file.read()
    return members


def scan_shard(path: Path, number: int) -> list[IndexRow]:
    """Return the index rows of a sound shard from its own headers.

    Args:
        path: the tar.
        number: of the shard, for the rows.

    Raises:
        tarfile.TarError: it is no tar.
    """
    rows = []
    with tarfile.open(path) as tar, path.open("rb") as file:
        for uid, group in groupby(tar, key=lambda info: info.name.partition(".")[0]):
            own = list(group)
            start, last = own[0].offset, own[-1]
            end = last.offset_data + -(-last.size // BLOCK_BYTES) * BLOCK_BYTES
            file.seek(start)
            digest = sample_digest(file.read(end - start))
            rows.append(IndexRow(uid, number, start, tuple(info.size for info in own), digest))
    return rows

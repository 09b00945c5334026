"""Files of equal content."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.sources import Asset


def identical_files(assets: Sequence[Asset]) -> list[list[str]]:
    """Return the sets of uids whose files have the same content, each sorted.

    Only files of equal size are read. Files that are not fetched yet are left out.

    Raises:
        UserError: a file cannot be read.
    """
    by_size: dict[int, list[Asset]] = defaultdict(list)
    try:
        for asset in assets:
            if asset.store is None or asset.path.is_file():
                by_size[asset.path.stat().st_size].append(asset)
        same_size = [asset for family in by_size.values() if len(family) > 1 for asset in family]
        bar = tqdm(same_size, "files of equal size", unit="file", disable=len(same_size) < 100)
        return equal_digests((asset.uid, _digest(asset.path)) for asset in bar)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def equal_digests(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the sets of uids that have the same digest, each sorted.

    Args:
        pairs: (uid, digest).
    """
    families: dict[str, list[str]] = defaultdict(list)
    for uid, digest in pairs:
        families[digest].append(uid)
    return sorted(sorted(family) for family in families.values() if len(family) > 1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

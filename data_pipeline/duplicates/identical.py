"""Files of equal content."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from data_pipeline.sources import Asset

log = logging.getLogger(__name__)


def identical_files(assets: Sequence[Asset]) -> list[list[str]]:
    """Return the sets of uids whose files have the same content, each sorted.

    Only files of equal size are read. Left out are files that are not fetched yet and, with a
    warning, those that cannot be read: `render` says of each what is wrong.
    """
    by_size: dict[int, list[Asset]] = defaultdict(list)
    for asset in assets:
        if asset.path.is_file():
            by_size[asset.path.stat().st_size].append(asset)
        elif asset.store is None:
            log.warning("%s cannot be read: left out", asset.path)
    same_size = [asset for family in by_size.values() if len(family) > 1 for asset in family]
    bar = tqdm(same_size, "files of equal size", unit="file", disable=len(same_size) < 100)
    return equal_digests((asset.uid, digest) for asset in bar if (digest := _digest(asset.path)))


def equal_digests(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the sets of uids that have the same digest, each sorted.

    Args:
        pairs: (uid, digest).
    """
    families: dict[str, list[str]] = defaultdict(list)
    for uid, digest in pairs:
        families[digest].append(uid)
    return sorted(sorted(family) for family in families.values() if len(family) > 1)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        log.warning("%s cannot be read (%s): left out", path, error.strerror)
        return None

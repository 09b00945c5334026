"""Choose among assets: by a file of uids, and by a stable spread."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from data_pipeline.contract import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")


def spread(
    items: Sequence[T], count: int | None, seed: int, uid: Callable[[T], str]
) -> Sequence[T]:
    """Return the `count` items whose hash of seed and uid is smallest; all of them for None.

    A larger count keeps the items of a smaller one, and another seed draws others.
    """
    if count is None:
        return items
    if count > len(items):
        log.warning("source.count=%d, but there are only %d assets", count, len(items))
    return sorted(items, key=lambda item: digest(f"{seed}:{uid(item)}"))[:count]


def check_count(count: int | None, source: str) -> None:
    """Raise UserError unless the count is None or at least 1."""
    if count is not None and count < 1:
        raise UserError(f"source.count={count} of source={source} must be at least 1")


def read_uids(path: Path, key: str) -> frozenset[str]:
    """Return the uids of a text file: one a line, what follows a comma or tab left out.

    Args:
        path: the file; empty lines and lines that begin with `#` are skipped.
        key: name of the setting, for messages.

    Raises:
        UserError: it is missing or no UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={path} is not UTF-8 text: give one uid a line") from error
    uids = (line.replace("\t", ",").partition(",")[0].strip() for line in lines)
    return frozenset(uid for uid in uids if uid and not uid.startswith("#")) - {"uid"}


def digest(text: str) -> str:
    """Return the SHA-256 of a text, as 64 hex digits; also of names that are no valid UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

"""Captions beyond an encoder's limit: cut, told once each, and counted."""

import logging

log = logging.getLogger(__name__)


def tell_cuts(longer: set[str], seen: set[str], limit: str) -> None:
    """Warn of captions that are cut and were not seen before, and add them to `seen`.

    Args:
        longer: captions that do not fit.
        seen: those of before; its size is the count.
        limit: in words, such as `512 tokens`.
    """
    if new := longer - seen:
        seen |= new
        log.warning(
            "%d captions are longer than %s and are cut (%d so far), such as: %.60s",
            len(new), limit, len(seen), min(new),
        )  # fmt: skip

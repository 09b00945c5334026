"""Licences under one name each: what the collections call them, and their SPDX identifiers."""

import re
from collections.abc import Iterable

from data_pipeline.contract import UserError
from data_pipeline.sources.captions import one_line

SPDX = {
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nd": "CC-BY-ND-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0",
    "cc0": "CC0-1.0",
    "creative commons - attribution": "CC-BY-4.0",
    "creative commons - attribution - share alike": "CC-BY-SA-4.0",
    "creative commons - attribution - no derivatives": "CC-BY-ND-4.0",
    "creative commons - attribution - non-commercial": "CC-BY-NC-4.0",
    "creative commons - attribution - non-commercial - share alike": "CC-BY-NC-SA-4.0",
    "creative commons - attribution - non-commercial - no derivatives": "CC-BY-NC-ND-4.0",
    "creative commons - public domain dedication": "CC0-1.0",
    "public domain": "CC0-1.0",
    "mit license": "MIT",
    "apache license 2.0": "Apache-2.0",
    'bsd 2-clause "simplified" license': "BSD-2-Clause",
    'bsd 3-clause "new" or "revised" license': "BSD-3-Clause",
    "gnu general public license v2.0": "GPL-2.0-only",
    "gnu general public license v3.0": "GPL-3.0-only",
    "gnu affero general public license v3.0": "AGPL-3.0-only",
    "mozilla public license 2.0": "MPL-2.0",
    "the unlicense": "Unlicense",
}
"""SPDX identifier by the name that Sketchfab (Objaverse 1.0), Thingiverse and GitHub (XL) use."""

FREE_TO_ADAPT = ("by", "by-sa", "cc0")
"""Objaverse's names of the licences that permit derived works for every purpose."""


def spdx(name: object) -> str:
    """Return the SPDX identifier of a licence, or its name as given; `unknown` for none."""
    text = one_line(str(name)) if name is not None else ""
    if text.lower() in ("", "nan", "none", "unknown"):
        return "unknown"
    return SPDX.get(text.lower(), text)


def allow_list(names: Iterable[str] | str | None) -> frozenset[str] | None:
    """Return the SPDX identifiers that are allowed; None for all.

    Args:
        names: Objaverse's or the other collections' names, or SPDX identifiers; `all` for all.

    Raises:
        UserError: one of them is no licence.
    """
    names = [names] if isinstance(names, str) else names
    if names is None or "all" in (names := list(names)):
        return None
    allowed = frozenset(spdx(name) for name in names)
    known = frozenset(SPDX.values())
    for name in allowed:
        if name not in known and not re.fullmatch(r"[A-Za-z]+[A-Za-z0-9.+]*-[A-Za-z0-9.+-]+", name):
            raise UserError(
                f"source.licences: {name!r} is no licence: choose of {', '.join(list(SPDX)[:7])}, "
                "an SPDX identifier, or all"
            )
    if not allowed:
        raise UserError("source.licences is empty, so no asset is allowed: name some, or all")
    return allowed

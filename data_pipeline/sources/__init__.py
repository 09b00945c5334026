"""Where assets come from. Each source is one file and one entry of the Hydra group `source`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One 3D file and what is known about it.

    Args:
        uid: name of the asset and of its sample; unique within a source, see `contract.make_uid`.
        path: the file.
        captions: texts that describe it; at least one.
        licence: SPDX identifier, or `unknown`.
        author: who made it, or `unknown`.
        source: where it was taken from: a repository, a collection, or the name of the source.
        attributes: what evaluation may check by name; procedural assets carry `category`, `colour`,
            `pattern` and `pattern_colour`.
    """

    uid: str
    path: Path
    captions: tuple[str, ...]
    licence: str = "unknown"
    author: str = "unknown"
    source: str = "unknown"
    attributes: Mapping[str, str] = field(default_factory=dict)


class AssetSource(Protocol):
    """What every source offers."""

    def assets(self) -> list[Asset]:
        """Return the assets, sorted by uid, each uid once; or raise UserError."""
        ...

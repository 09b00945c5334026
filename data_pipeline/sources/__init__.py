"""Where assets come from. Each source is one file and one entry of the Hydra group `source`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class FetchError(Exception):
    """The file of one asset cannot be had, however often it is asked for; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One 3D file and what is known about it.

    Args:
        uid: name of the asset and of its sample; unique within a source, see `contract.make_uid`.
        path: the file; with a store, where it will be once fetched.
        captions: texts that describe it; at least one.
        licence: SPDX identifier where it is known to be one, else what the source calls it, or
            `unknown`.
        author: who made it, or `unknown`.
        source: where it was taken from: the URL of its page where known, else a repository, a
            collection, or the name of the source.
        attributes: what evaluation may check by name; procedural assets carry `category`, `colour`,
            `pattern` and `pattern_colour`.
        store: brings the file when its turn comes and may delete it afterwards; None: it is there.
    """

    uid: str
    path: Path
    captions: tuple[str, ...]
    licence: str = "unknown"
    author: str = "unknown"
    source: str = "unknown"
    attributes: Mapping[str, str] = field(default_factory=dict)
    store: "AssetStore | None" = field(default=None, compare=False, repr=False)


class AssetStore(Protocol):
    """Brings the files of assets to this machine and takes them away. Called by `render`."""

    def admit(self, asset: Asset, *, waited_for: bool) -> bool:
        """Return whether the file may be fetched now, and count it as held if so.

        Args:
            asset: the next one.
            waited_for: a worker needs it: True must be answered.
        """
        ...

    def fetch(self, asset: Asset) -> None:
        """Make `asset.path` exist, whole and checked. Called from several threads.

        Raises:
            FetchError: this asset cannot be had.
            UserError: none can, such as without a network.
        """
        ...

    def release(self, asset: Asset) -> None:
        """Take note that the asset reached a final state; its file may be deleted now."""
        ...


class AssetSource(Protocol):
    """What every source offers."""

    def assets(self) -> list[Asset]:
        """Return the assets, sorted by uid, each uid once; or raise UserError."""
        ...

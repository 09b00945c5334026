"""Assets from the user's own files: a folder, or a list of files."""

import hashlib
import logging
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset
from data_pipeline.sources.table import Row, captions_of, normalise, read_table

log = logging.getLogger(__name__)

SUFFIXES = (
    ".glb", ".gltf", ".obj", ".fbx", ".ply", ".stl", ".usd", ".usda", ".usdc", ".usdz", ".dae",
)  # fmt: skip
"""Kinds of file that count as assets, in any case of letters."""

CAPTION_FILES = ("captions.csv", "captions.jsonl")
"""Looked for in the root: columns `file` (its path below the root, or its name) and `caption`."""


class FolderSource:
    """Finds assets below a folder, or takes those that a list names.

    Captions come from the list, else from `captions.csv` or `captions.jsonl` in the root, else from
    the file name. Files that are hidden (their name starts with a dot) are not assets. When several
    files would have the same uid, each of them gets a hash of its path added, so that no uid ever
    passes from one file to another.

    Args:
        root: folder that is searched; with a list, where its files are looked for first.
        list: CSV or JSON Lines file with a column `file` (relative to root or to the list itself)
            and any of `uid`, `caption`, `captions`, `licence`, `author`, `source`; other columns
            are left alone.
        count: how many assets; None for all. Those whose hash of seed and uid is smallest are
            taken: a spread over the whole folder, and a larger count keeps those of a smaller one.
        seed: another seed draws others.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        list: str | Path | None = None,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        if root is None and list is None:
            raise UserError(
                "source=folder does not know where: give source.root=DIR or source.list=FILE"
            )
        if count is not None and count < 1:
            raise UserError(f"source.count={count} of source=folder must be at least 1")
        self.root = None if root is None else Path(root)
        self.list_file = None if list is None else Path(list)
        self.count = count
        self.seed = seed

    def assets(self) -> list[Asset]:
        """Return the assets, sorted by uid.

        Raises:
            UserError: nothing is there, or a list or captions file is wrong.
        """
        if self.root is not None and not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise UserError(
                f"source.root={self.root} {what}: name the folder that holds the assets"
            )
        found = self._search() if self.list_file is None else self._follow_list(self.list_file)
        found = _distinct(found)
        if self.count is not None:
            if self.count > len(found):
                log.warning("source.count=%d, but there are only %d assets", self.count, len(found))
            found = sorted(found, key=lambda pair: _digest(f"{self.seed}:{pair[1].uid}"))[
                : self.count
            ]
        return sorted((asset for _, asset in found), key=lambda asset: asset.uid)

    def _search(self) -> list[tuple[str, Asset]]:
        """Return (path below the root, asset) of every file of a known kind."""
        assert self.root is not None
        captions = _read_captions(self.root)
        found = []
        for path in _walk(self.root):
            relative = normalise(path.relative_to(self.root).as_posix())
            texts = captions.get(relative) or captions.get(normalise(path.name)) or ()
            found.append((relative, _asset(path, {"file": relative}, texts)))
        if not found:
            raise UserError(
                f"source.root={self.root} holds no asset: expected files that end in "
                f"{', '.join(SUFFIXES)}, there or in folders below"
            )
        known = {name for relative, _ in found for name in (relative, relative.rsplit("/", 1)[-1])}
        strays = sorted(set(captions) - known)
        if strays:
            log.warning(
                "%d captions in %s name no asset there, such as %r",
                len(strays),
                self.root,
                strays[0],
            )
        return found

    def _follow_list(self, list_file: Path) -> list[tuple[str, Asset]]:
        """Return (path as listed, asset) of every row of a list."""
        rows = read_table(list_file)
        if not rows:
            raise UserError(f"{list_file} lists no asset: add one row per file")
        twice = [name for name, times in Counter(row["file"] for row in rows).items() if times > 1]
        if twice:
            raise UserError(f"{list_file} lists {twice[0]} more than once: keep one row of it")
        captions = {} if self.root is None else _read_captions(self.root)
        folders = [folder for folder in (self.root, list_file.parent) if folder is not None]
        missing, found = [], []
        for row in rows:
            name: str = row["file"]
            path = _resolve(name, folders)
            if path is None:
                missing.append(name)
                continue
            if path.suffix.lower() not in SUFFIXES:
                raise UserError(f"{list_file}: {name} is no asset: known are {', '.join(SUFFIXES)}")
            texts = captions_of(row, str(list_file))
            texts = texts or captions.get(name) or captions.get(normalise(path.name)) or ()
            found.append((name, _asset(path, row, texts)))
        if missing:
            raise UserError(
                f"{list_file} names {len(missing)} files that are not there, such as {missing[0]} "
                f"(looked in {' and '.join(map(str, folders))}): correct the list or source.root"
            )
        return found


def readable_name(stem: str) -> str:
    """Return a file's stem as a caption: `city_carTaxi-02` gives `city car taxi`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", normalise(stem))
    words = re.sub(r"[\s_.\-]+", " ", words).strip()
    return re.sub(r"( \d+)+$", "", words).lower() or stem


def _asset(path: Path, row: Row, captions: tuple[str, ...]) -> Asset:
    def text(*columns: str) -> str:
        values = (str(row[column]).strip() for column in columns if row.get(column) is not None)
        return next(filter(None, values), "unknown")

    uid = text("uid")
    return Asset(
        uid=make_uid(path.stem if uid == "unknown" else uid),
        path=path,
        captions=captions or (readable_name(path.stem),),
        licence=text("licence", "license"),
        author=text("author"),
        source=text("source", "source_repo"),
    )


def _walk(root: Path) -> list[Path]:
    """Return the files of a known kind in a fixed order; what is hidden is left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found)


def _resolve(name: str, folders: list[Path]) -> Path | None:
    """Return the first file of this name in the folders, whichever Unicode form the disk uses."""
    for folder in folders:
        path = folder / name
        if path.is_file():
            return path
        if path.parent.is_dir():
            for entry in path.parent.iterdir():
                if normalise(entry.name) == normalise(path.name) and entry.is_file():
                    return entry
    return None


def _read_captions(root: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions that the folder's own captions file gives, by file."""
    captions: dict[str, tuple[str, ...]] = {}
    for path in (root / name for name in CAPTION_FILES):
        if path.is_file():
            for row in read_table(path):
                name = Path(row["file"]).as_posix()
                captions[name] = captions.get(name, ()) + captions_of(row, str(path))
    return captions


def _distinct(found: list[tuple[str, Asset]]) -> list[tuple[str, Asset]]:
    """Return the assets with a hash of the path added to every uid that several of them share."""
    times = Counter(asset.uid for _, asset in found)
    distinct = [
        (name, asset)
        if times[asset.uid] == 1
        else (name, replace(asset, uid=f"{asset.uid[:107]}_{_digest(name)[:12]}"))
        for name, asset in found
    ]
    for uid, number in Counter(asset.uid for _, asset in distinct).items():
        if number > 1:
            raise UserError(f"{number} assets have the uid {uid}: rename one of their files")
    return distinct


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

"""Assets from the user's own files: a folder, or a list of files."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset
from data_pipeline.sources.captions import readable_name
from data_pipeline.sources.file_kind import SUFFIXES
from data_pipeline.sources.glob_pattern import compile_glob
from data_pipeline.sources.licences import spdx
from data_pipeline.sources.selection import check_count, digest, read_uids, spread
from data_pipeline.sources.table import Row, captions_of, normalise, read_table, text_of

log = logging.getLogger(__name__)

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
            and any of `uid`, `caption`, `captions`, `licence`, `author`, `source` (or `url`); other
            columns are left alone.
        glob: only files below root whose path fits, such as `chairs/**/*.glb`; see `compile_glob`.
        exclude: text file of uids that are left out, one a line.
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
        *,
        glob: str | None = None,
        exclude: str | Path | None = None,
    ) -> None:
        if root is None and list is None:
            raise UserError(
                "source=folder does not know where: give source.root=DIR or source.list=FILE"
            )
        check_count(count, "folder")
        if list is not None and glob is not None:
            raise UserError("source.glob and source.list exclude each other: give one of them")
        self.root = None if root is None else Path(root)
        self.list_file = None if list is None else Path(list)
        self.pattern = None if glob is None else compile_glob(glob)
        self.exclude = None if exclude is None else Path(exclude)
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
        assets = _distinct(found)
        if self.exclude is not None:
            left_out = read_uids(self.exclude, "source.exclude")
            assets = [asset for asset in assets if asset.uid not in left_out]
            if not assets:
                raise UserError(f"source.exclude={self.exclude} leaves no asset")
        chosen = spread(assets, self.count, self.seed, lambda asset: asset.uid)
        return sorted(chosen, key=lambda asset: asset.uid)

    def _search(self) -> list[tuple[str, Asset]]:
        """Return (path below the root, asset) of every file of a known kind."""
        assert self.root is not None
        captions = _read_captions(self.root)
        found = []
        for relative in _walk(self.root):
            name = normalise(relative)
            if self.pattern is None or self.pattern.fullmatch(name):
                texts = captions.get(name) or captions.get(name.rsplit("/", 1)[-1]) or ()
                path = Path(self.root, relative)
                found.append((name, _asset(path, {"file": name}, texts, str(self.root))))
        if not found:
            raise UserError(
                f"source.root={self.root} holds no asset: expected files that end in "
                f"{', '.join(SUFFIXES)}, there or in folders below"
                + (" and fit source.glob" if self.pattern else "")
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
        named: dict[str, str] = {}
        uids: dict[str, str] = {}
        for row in rows:
            name: str = row["file"]
            path = _resolve(name, folders)
            if path is None:
                missing.append(name)
                continue
            if path.suffix.lower() not in SUFFIXES:
                raise UserError(f"{list_file}: {name} is no asset: known are {', '.join(SUFFIXES)}")
            same = named.setdefault(os.path.abspath(path), name)
            if same != name:
                raise UserError(f"{list_file}: {same} and {name} are one file: keep one row of it")
            if given := text_of(row, "uid", where=str(list_file)):
                other = uids.setdefault(make_uid(given), name)
                if other != name:
                    raise UserError(
                        f"{list_file}: {other} and {name} have the same uid {given!r} (uids are "
                        "lower case, and hold letters, digits, '_' and '-'): give each its own"
                    )
            texts = captions_of(row, str(list_file))
            texts = texts or captions.get(name) or captions.get(normalise(path.name)) or ()
            found.append((name, _asset(path, row, texts, str(list_file))))
        if missing:
            raise UserError(
                f"{list_file} names {len(missing)} files that are not there, such as {missing[0]} "
                f"(looked in {' and '.join(map(str, folders))}): correct the list or source.root"
            )
        return found


def _asset(path: Path, row: Row, captions: tuple[str, ...], where: str) -> Asset:
    def text(*columns: str) -> str | None:
        return text_of(row, *columns, where=where)

    return Asset(
        uid=make_uid(text("uid") or path.stem),
        path=path,
        captions=captions or (readable_name(path.stem),),
        licence=spdx(text("licence", "license")),
        author=text("author") or "unknown",
        source=text("url", "source_url", "source", "source_repo") or "unknown",
    )


def _walk(root: Path) -> Iterator[str]:
    """Yield the files of a known kind, relative to the root; what is hidden is left out.

    The order is fixed: by folder, then by name. Nothing but one folder's names is held.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield prefix + name


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


def _distinct(found: list[tuple[str, Asset]]) -> list[Asset]:
    """Return the assets with a hash of the path added to every uid that several of them share."""
    times = Counter(asset.uid for _, asset in found)
    distinct = [
        asset
        if times[asset.uid] == 1
        else replace(asset, uid=make_uid(f"{asset.uid[:67]}_{digest(name)[:12]}"))
        for name, asset in found
    ]
    for uid, number in Counter(asset.uid for asset in distinct).items():
        if number > 1:
            raise UserError(f"{number} assets have the uid {uid}: rename one of their files")
    return distinct

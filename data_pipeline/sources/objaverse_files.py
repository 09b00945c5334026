"""Bring files of Objaverse 1.0 into the package's cache: retried, checked, and in one rename."""

import gzip
import hashlib
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from functools import partial
from pathlib import Path
from typing import cast

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    HTTPError,  # of the HTTP library that this version of the hub's package uses
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.sources import Asset, FetchError
from data_pipeline.sources.file_kind import WrongContent, check_kind

DATASET = "allenai/objaverse"
ATTEMPTS = 3

UNKNOWN_BYTES = 16 << 20
"""What a GLB is taken to hold where its annotation does not say."""


_SILENT = cast(type[tqdm], partial(tqdm, disable=True))  # not a bar for each of many small files


class Download:
    """Downloads single files of the data set.

    Args:
        folder: where the package keeps it; its files get the same names as the data set's.
        endpoint: another server of the same interface, such as a mirror; None for the usual one.
        pause_s: seconds before the second attempt; doubled before every further one.
    """

    def __init__(self, folder: Path, endpoint: str | None = None, pause_s: float = 2.0) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.pause_s = pause_s

    def __call__(self, name: str, check: Callable[[Path], None]) -> None:
        """Make `folder / name` exist: all of it, and only if `check` accepts it.

        Args:
            name: of the file, in the data set and below the folder.
            check: raises WrongContent, or OSError, for a file that is not what it should be.

        Raises:
            FetchError: there is no such file, or what comes is never what it should be.
            UserError: the server cannot be reached.
        """
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            # Below the target's folder, hence on its disk: the last step is a rename.
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
            try:
                got = hf_hub_download(
                    DATASET,
                    name,
                    repo_type="dataset",
                    local_dir=incoming,
                    endpoint=self.endpoint,
                    tqdm_class=_SILENT,
                )
                check(Path(got))
                os.replace(got, target)
                return
            except RemoteEntryNotFoundError as error:
                raise FetchError(f"the data set {DATASET} holds no {name}") from error
            except LocalEntryNotFoundError as error:  # no answer, and the hub's package has retried
                problem = error
                break
            except (WrongContent, HTTPError, OSError) as error:
                problem = error
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        assert problem is not None
        if isinstance(problem, WrongContent):
            raise FetchError(f"downloaded {ATTEMPTS} times: {problem}") from problem
        if isinstance(problem, OSError) and problem.errno in (ENOSPC, EDQUOT, EACCES, EROFS):
            raise UserError(f"{target} cannot be written: {problem.strerror}") from problem
        raise UserError(
            f"{target} is not in the cache and cannot be downloaded, tried repeatedly: "
            "check the network, or copy the cache of another machine to source.root"
        ) from problem


def check_gzip(path: Path) -> None:
    """Raise WrongContent unless the file is gzip, whole from beginning to end."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise WrongContent(f"not a whole gzip file: {error}") from error


class ObjaverseStore:
    """Fetches the GLBs of Objaverse 1.0, and deletes them after their turn if so asked.

    Args:
        download: for the folder of the cache.
        names: file below the folder, by uid.
        sizes: bytes by uid, where the annotations state them.
        sha256: expected digest by uid, where known (Objaverse-XL states them).
        keep_files: False deletes every GLB once its asset is done or has failed.
        quota_bytes: no GLB is fetched ahead of its turn while those that were fetched hold more.
    """

    def __init__(
        self,
        download: Download,
        names: Mapping[str, str],
        *,
        sizes: Mapping[str, int],
        sha256: Mapping[str, str],
        keep_files: bool = True,
        quota_bytes: int | None = None,
    ) -> None:
        self._download, self._names = download, names
        self._sizes, self._sha256 = sizes, sha256
        self._keep_files, self._quota_bytes = keep_files, quota_bytes
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def admit(self, asset: Asset, *, waited_for: bool) -> bool:
        """Return whether what was admitted and not yet released leaves room in the quota."""
        with self._lock:
            size = self._sizes.get(asset.uid, UNKNOWN_BYTES)
            full = self._quota_bytes and sum(self._held.values()) + size > self._quota_bytes
            if full and not waited_for:
                return False
            self._held[asset.uid] = size
            return True

    def fetch(self, asset: Asset) -> None:
        """Make the GLB exist; one that is in the cache already is checked too.

        Raises:
            FetchError: the GLB cannot be had, or is not the one that was announced.
            UserError: none can be had, or the disk is full.
        """
        name = self._names[asset.uid]
        expected = self._sha256.get(asset.uid)

        def check(path: Path) -> None:
            check_kind(path)
            if expected and (found := _sha256_of(path)) != expected:
                raise WrongContent(f"its SHA-256 is {found[:12]}…, not {expected[:12]}…")

        try:
            check(asset.path)
        except (WrongContent, FileNotFoundError):
            self._download(name, check)
        except OSError as error:
            raise FetchError(f"{asset.path} cannot be read: {error.strerror}") from error

    def release(self, asset: Asset) -> None:
        """Delete the GLB, unless files are kept."""
        if not self._keep_files:
            asset.path.unlink(missing_ok=True)
        with self._lock:
            self._held.pop(asset.uid, None)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

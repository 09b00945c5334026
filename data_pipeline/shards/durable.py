"""Folders that appear or change all at once, and stay so when the power fails."""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.contract import UserError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `target` to build its successor in.

    It is removed in the end, whatever it then holds. What a killed process left is removed first.

    Raises:
        UserError: another process is building the same target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.parent / f".{target.name}.building"
    building.mkdir(exist_ok=True)
    lock = os.open(building, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{target} is being written by another process: wait for it") from None
        except OSError:
            pass  # a network file system without locks on folders: the user must know
        recover(target)
        for entry in building.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
    finally:
        os.close(lock)


def replace_folder(building: Path, target: Path) -> None:
    """Put `building` in the place of `target`; at no moment is neither of them there.

    Linux exchanges the two names in one step. Where the file system cannot (NFS, for one), the old
    folder is moved aside first, and `recover` undoes that if the process dies between the steps.
    """
    sync(building)
    if not target.exists():
        os.rename(building, target)
    elif not _exchange(building, target):
        aside = _aside(target)
        os.rename(target, aside)
        os.rename(building, target)
        shutil.rmtree(aside, ignore_errors=True)
    sync(target.parent)


def recover(target: Path) -> None:
    """Bring back a folder that a killed `replace_folder` had moved aside; drop it if replaced."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(aside, target)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where that is not possible."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))

"""Leases: who works on which chunk, among processes that share nothing but a file system.

Each process has one file, `leases/{writer}.owner`. It claims a chunk by `link()`ing that file to
`leases/{chunk}`: atomic on local disks, NFS, Lustre and GPFS alike, and a lost reply is recognised
because the link has our own inode. All claims of a process are one inode, so one `utime()` every
few seconds renews them all.

A claim whose file has stood still for `lease_s` seconds is taken over. That is judged by watching
it: no two clocks are ever compared, so nodes whose clocks disagree do no harm, and only seconds in
which the watcher itself could reach the file system count, so a server's pause kills nobody's
claim. A process that has died on this very machine is told at once, by its id. Taking over is a
`rename()` to a name of our own, which one process wins; then the chunk is free to be claimed.
"""

import contextlib
import json
import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data_pipeline.contract import UserError

OWNER_SUFFIX = ".owner"

BEATS_PER_LEASE = 5
"""A claim is renewed so many times while it would last."""


def machine_identity() -> str:
    """Return what two processes share exactly if they can see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, space = platform.node(), ""
    return f"{boot} {space} {os.environ.get('SLURMD_NODENAME', '')}".strip()


@dataclass
class _Watched:
    """A claim of another process, as last seen."""

    mtime_ns: int
    looked: float
    still_s: float = 0.0


class Leases:
    """The claims of one process; used as a context manager, which gives them all back.

    Args:
        folder: the folder `leases` of a staging folder; must exist.
        writer: name of this process, unique over all nodes.
        lease_s: seconds without a sign of life after which a claim may be taken over.

    Raises:
        UserError: `lease_s` is not positive.
    """

    def __init__(self, folder: Path, writer: str, lease_s: float):
        if lease_s <= 0:
            raise UserError(f"lease_s={lease_s} must be positive")
        self._folder, self._writer = folder, writer
        self._lease_s = lease_s
        self.beat_s = lease_s / BEATS_PER_LEASE
        self._own = folder / f"{writer}{OWNER_SUFFIX}"
        self._machine = machine_identity()
        self._held: set[str] = set()
        self._watched: dict[int, _Watched] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._write_owner()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        for chunk in sorted(self._held):
            self.release(chunk)
        self._own.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------ our claims

    def acquire(self, chunk: str) -> bool:
        """Claim a chunk; False if another process holds it.

        Raises:
            UserError: the file system has no hard links.
        """
        if not self._own.exists():  # we were taken for dead: begin anew, with another inode
            self._held.clear()
            self._write_owner()
        try:
            os.link(self._own, self._folder / chunk)
        except FileExistsError:
            if not self.holds(chunk):
                return False
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot make a hard link ({error.strerror}): put the staging "
                "folder on a file system that has them (ext4, XFS, NFS, Lustre, GPFS)"
            ) from None
        self._held.add(chunk)
        return True

    def holds(self, chunk: str) -> bool:
        """Return whether the chunk is (still) ours: another process may have taken it over."""
        ours, there = _look(self._own), _look(self._folder / chunk)
        return ours is not None and there is not None and ours.st_ino == there.st_ino

    def release(self, chunk: str) -> None:
        """Give a chunk back; does nothing if it is not ours any more."""
        self._held.discard(chunk)
        ours = _look(self._own)
        if ours is not None:
            self._remove(chunk, ours.st_ino)

    # --------------------------------------------------------------------------- others' claims

    def held_by_others(self) -> set[str]:
        """Return the chunks that other processes have claimed, dead ones included."""
        names = os.listdir(self._folder)
        return {n for n in names if "." not in n} - self._held

    def take_over(self) -> list[str]:
        """Free the chunks of processes that have died; return the names of those processes.

        To be called again and again, every `beat_s` or so: a death is noticed by watching.
        """
        dead: set[str] = set()
        seen: dict[int, tuple[bool, str]] = {}
        paths = [self._folder / name for name in os.listdir(self._folder)]
        for path in sorted(paths):
            if path == self._own or path.name in self._held or path.name.startswith("."):
                continue
            found = _look(path)
            if found is None:
                continue
            if found.st_ino not in seen:
                seen[found.st_ino] = self._judge(path, found)
            is_dead, writer = seen[found.st_ino]
            if is_dead and self._remove(path.name, found.st_ino):
                dead.add(writer)
        self._watched = {inode: w for inode, w in self._watched.items() if inode in seen}
        for writer in dead:
            for left in self._folder.glob(f".{writer}*"):
                left.unlink(missing_ok=True)
        return sorted(dead)

    def live_writers(self) -> set[str]:
        """Return the names of the processes that have an owner file, our own included."""
        names = os.listdir(self._folder)
        return {n.removesuffix(OWNER_SUFFIX) for n in names if n.endswith(OWNER_SUFFIX)}

    # --------------------------------------------------------------------------------- details

    def _write_owner(self) -> None:
        owner = {
            "writer": self._writer,
            "machine": self._machine,
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        temporary = self._folder / f".{self._writer}"
        temporary.write_text(json.dumps(owner))
        os.replace(temporary, self._own)

    def _beat(self) -> None:
        while not self._ended.wait(self.beat_s):
            with contextlib.suppress(OSError):  # taken for dead, or no server: `holds` tells which
                os.utime(self._own)

    def _judge(self, path: Path, found: os.stat_result) -> tuple[bool, str]:
        """Return whether the owner of a claim is dead, and its name."""
        try:
            owner: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            owner = {}
        writer = str(owner.get("writer", ""))
        if owner.get("machine") == self._machine and not _is_running(owner):
            return True, writer
        now = time.monotonic()
        watched = self._watched.get(found.st_ino)
        if watched is None or watched.mtime_ns != found.st_mtime_ns:
            self._watched[found.st_ino] = _Watched(found.st_mtime_ns, now)
            return False, writer
        watched.still_s += min(now - watched.looked, 2 * self.beat_s)
        watched.looked = now
        return watched.still_s >= self._lease_s, writer

    def _remove(self, name: str, inode: int) -> bool:
        """Remove a claim if it is still that inode's; False if someone else's is there now."""
        grave = self._folder / f".{self._writer}.{name}"
        try:
            os.rename(self._folder / name, grave)
        except FileNotFoundError:
            return False
        is_right = os.stat(grave).st_ino == inode
        if not is_right:  # it changed hands since we looked: put it back
            with contextlib.suppress(FileExistsError):  # and again: its owner finds out by `holds`
                os.link(grave, self._folder / name)
        os.unlink(grave)
        return is_right


def _look(path: Path) -> os.stat_result | None:
    """Return the state of a file as the server has it: NFS asks anew at every open, not stat."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _is_running(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["pid"]))
        same = abs(process.create_time() - float(owner["started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False

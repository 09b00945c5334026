"""Finished samples, one file each: `samples/abc/{uid}.tar`.

A sample's file is a small tar of its members as a shard holds them: USTAR headers and contents,
sorted by name, then the two zero blocks that end an archive (by which a truncated file is known
even where it is cut between members). A header's owner name is a digest of its content, by which
a rotten byte is known. Its bytes depend on the members alone. It appears in one
rename, so a file that exists is complete.
`abc` are three hex digits of the uid's hash: a *chunk*, the unit in which nodes share the work.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_pipeline.contract import UserError

CHUNK_DIGITS = 3
"""Hex digits of a chunk: 4096 chunks, so that a million samples lie 244 to a folder."""

SUFFIX = ".tar"


def chunk_of(uid: str) -> str:
    """Return the chunk that a uid belongs to, whatever else is in the set."""
    return hashlib.sha256(uid.encode()).hexdigest()[:CHUNK_DIGITS]


END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


def archive(uid: str, members: Mapping[str, bytes]) -> bytes:
    """Return the tar of a sample: equal members give equal bytes."""
    content = io.BytesIO()
    for name in sorted(members):
        info = tarfile.TarInfo(f"{uid}.{name}")  # mtime, uid, gid are 0 and mode is 0644
        info.size = len(members[name])
        info.uname = hashlib.sha256(members[name]).hexdigest()[:31]
        content.write(info.tobuf(tarfile.USTAR_FORMAT))
        content.write(members[name])
        content.write(bytes(-info.size % tarfile.BLOCKSIZE))
    return content.getvalue() + END_OF_ARCHIVE


class SampleFiles:
    """The folder `samples` of a staging folder.

    Args:
        folder: made by the first `publish`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, uid: str) -> Path:
        """Return where the sample lies, whether or not it exists yet."""
        return self.folder / chunk_of(uid) / f"{uid}{SUFFIX}"

    def publish(self, uid: str, members: Mapping[str, bytes], scratch: Path) -> None:
        """Make a sample visible, all at once and on disk: fsync, then one rename.

        Args:
            uid: of the sample.
            members: content by member name.
            scratch: a folder of this process alone, on the same file system.
        """
        target = self.path(uid)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch / target.name
        with temporary.open("wb") as file:
            file.write(archive(uid, members))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, uid: str) -> dict[str, bytes]:
        """Return a sample's members by name.

        Raises:
            UserError: there is no such sample, or its file is damaged.
        """
        path = self.path(uid)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"no finished sample {uid} (no {path}): render it first") from None
        try:
            members = _members(uid, content)
        except tarfile.TarError:
            members = {}
        # tarfile takes many a truncated file for a whole one: hence the comparison.
        if not members or archive(uid, members) != content:
            raise UserError(
                f"{path} is damaged: delete it and render {uid} again (verify "
                f"out={self.folder.parent} lists all such files)"
            )
        return members

    def uids(self) -> Iterator[str]:
        """Yield the uids of all finished samples, chunk by chunk."""
        for chunk in _names(self.folder):
            yield from self.uids_in(chunk)

    def uids_in(self, chunk: str) -> Iterator[str]:
        """Yield the uids of the finished samples of one chunk, in no order."""
        for name in _names(self.folder / chunk):
            if name.endswith(SUFFIX):
                yield name.removesuffix(SUFFIX)

    def newest_mtime_ns(self) -> int:
        """Return when the newest finished sample was written; 0 if there is none."""
        entries = (
            entry for chunk in _names(self.folder) for entry in os.scandir(self.folder / chunk)
        )
        return max((entry.stat().st_mtime_ns for entry in entries), default=0)

    def forget_cached(self, chunk: str) -> None:
        """Have the next listing of a chunk come from the server, where that is a network one.

        NFS clients answer listings from a cache of up to a minute; a change of the folder's own
        attributes, which this is, makes them ask again.
        """
        folder = self.folder / chunk
        if folder.is_dir():
            os.utime(folder)


def _members(uid: str, content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {info.name.removeprefix(f"{uid}."): tar.extractfile(info) for info in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


def _names(folder: Path) -> Iterable[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return ()

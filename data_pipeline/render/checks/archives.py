"""Zip archives, which USDZ files are: nothing that unpacks to far more, or to elsewhere."""

import struct
import zipfile
from pathlib import Path, PurePosixPath

from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_RATIO, MAX_BYTES

MAX_TAIL_BYTES = 22 + 65_535
"""Where the end of a ZIP directory can be: before a comment of the longest kind."""

MAX_DIRECTORY_BYTES = 1000 * MAX_ARCHIVE_MEMBERS


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of an archive that is safe to unpack, by its directory.

    Raises:
        AssetFailure: `unreadable`, `unsupported` or `too_large`.
    """
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise AssetFailure("unreadable", f"its ZIP directory is damaged: {error}") from error
    if len(members) > MAX_ARCHIVE_MEMBERS:
        raise AssetFailure("too_large", f"{len(members)} files in one archive")
    unpacked = sum(member.file_size for member in members)
    packed = max(sum(member.compress_size for member in members), 1)
    if unpacked > MAX_BYTES:
        raise AssetFailure("too_large", f"unpacks to {unpacked} bytes; at most {MAX_BYTES}")
    if unpacked > MAX_ARCHIVE_RATIO * packed:
        raise AssetFailure("too_large", f"unpacks {packed} bytes to {unpacked}, as bombs do")
    for member in members:
        name = member.filename[:120]
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in name:
            raise AssetFailure("unsupported", f"its member {name!r} leads elsewhere")
        if member.flag_bits & 1:
            raise AssetFailure("unsupported", f"its member {name!r} is encrypted")
    return members


def _check_directory(path: Path) -> None:
    """Raise AssetFailure for a directory that would fill the memory once read.

    An archive of the permitted size needs no ZIP64 record, which could state another size.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_TAIL_BYTES))
        tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + 22 > len(tail):
        raise AssetFailure("unreadable", "truncated: it has no ZIP directory")
    (num_bytes,) = struct.unpack_from("<I", tail, place + 12)
    if num_bytes > MAX_DIRECTORY_BYTES or tail[max(0, place - 20) : place].startswith(b"PK\6\7"):
        raise AssetFailure("too_large", f"its ZIP directory alone has {num_bytes} bytes")

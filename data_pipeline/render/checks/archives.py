"""Zip archives, which USDZ files are: nothing that unpacks to far more, or to elsewhere."""

import zipfile
from pathlib import Path, PurePosixPath

from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_RATIO, MAX_BYTES


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of an archive that is safe to unpack, by its directory.

    Raises:
        AssetFailure: `unreadable`, `unsupported` or `too_large`.
    """
    try:
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

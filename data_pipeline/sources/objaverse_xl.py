"""Objaverse-XL's annotations as a list of assets: rows of files in many places and many formats.

Rows of Sketchfab are objects of Objaverse 1.0 and take its road. The others' files are not fetched
here (GitHub's need whole repositories): they are looked for where the package's own
`objaverse.xl.download_objects(..., save_repo_format="files")` leaves them.
"""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset
from data_pipeline.sources.captions import readable_name
from data_pipeline.sources.file_kind import SUFFIXES
from data_pipeline.sources.licences import spdx
from data_pipeline.sources.objaverse_package import xl_uid

log = logging.getLogger(__name__)

COLUMNS = ("fileIdentifier", "source", "license", "fileType", "sha256", "metadata")


@dataclass(frozen=True, slots=True)
class XlRow:
    """One row of an annotation table.

    Args:
        identifier: URL that names the file.
        source: `sketchfab`, `github`, `thingiverse` or `smithsonian`.
        licence: as the table calls it, or None.
        suffix: such as `.glb`.
        sha256: of the file; empty when not stated.
        metadata: what else the table says, such as a GitHub organisation.
    """

    identifier: str
    source: str
    licence: str | None
    suffix: str
    sha256: str
    metadata: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """Sketchfab's uid, which is Objaverse 1.0's; for the others the package's UUID."""
        if self.source == "sketchfab":
            return self.identifier.rsplit("/", 1)[-1]
        return xl_uid(self.identifier)


def read_xl_table(path: Path) -> list[XlRow]:
    """Return the rows of a `.parquet` or `.csv` table; one row for each file identifier.

    Raises:
        UserError: it is missing, of another kind, lacks a column, or is damaged.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"source.annotations={path} is neither .parquet nor .csv")
    if not path.is_file():
        raise UserError(f"source.annotations={path} does not exist")
    rows = {row.identifier: row for row in map(_row, reader(path))}
    return list(rows.values())


def xl_assets(
    rows: Sequence[XlRow],
    home: Path,
    licences: frozenset[str] | None,
    captions: Mapping[str, tuple[str, ...]],
) -> list[Asset]:
    """Return the assets whose files lie below `home`, but for Sketchfab's.

    Args:
        rows: of a table.
        home: the package's home folder.
        licences: SPDX identifiers that are allowed; None for all.
        captions: by uid, or by SHA-256 (Cap3D names the files of XL so).
    """
    found, left_out = [], Counter[str]()
    for row in rows:
        if row.source == "sketchfab":
            continue
        path = _path(row, home)
        if licences is not None and spdx(row.licence) not in licences:
            left_out["licence"] += 1
        elif row.suffix not in SUFFIXES:
            left_out[f"format {row.suffix}"] += 1
        elif path is None or not path.is_file():
            left_out["file not in the cache"] += 1
        else:
            found.append(_asset(row, path, captions))
    if left_out:
        told = ", ".join(f"{count} by {reason}" for reason, count in sorted(left_out.items()))
        log.warning("Objaverse-XL: %d rows are left out: %s", left_out.total(), told)
    return found


def _asset(row: XlRow, path: Path, captions: Mapping[str, tuple[str, ...]]) -> Asset:
    stem = PurePosixPath(unquote(row.identifier)).stem
    texts = captions.get(row.uid) or captions.get(row.sha256) or (readable_name(stem),)
    owner = row.metadata.get("github_organization") or row.metadata.get("author")
    if row.source == "github":
        owner = owner or row.identifier.split("/")[3]
    return Asset(
        uid=make_uid(row.uid),
        path=path,
        captions=texts,
        licence=spdx(row.licence),
        author=str(owner or {"smithsonian": "Smithsonian Institution"}.get(row.source, "unknown")),
        source=row.identifier,
    )


def _path(row: XlRow, home: Path) -> Path | None:
    """Return where the package puts the file; None if its identifier is not of the usual form."""
    if row.source == "smithsonian":
        return home / "smithsonian" / "objects" / f"{row.uid}.glb"
    if row.source == "thingiverse":
        match = re.search(r"thing:(\d+)/.*fileId=(\d+)", row.identifier)
        name = match and f"thing-{match[1]}-file-{match[2]}.stl"
        return home / "thingiverse" / name if name else None
    match = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)/blob/\w+/(.+)", row.identifier)
    if row.source != "github" or match is None:
        return None
    inside = PurePosixPath(match[3])
    if inside.is_absolute() or ".." in (*inside.parts, match[1], match[2]):
        return None
    return home / "github" / "repos" / match[1] / match[2] / inside


def _row(cells: Mapping[str, Any]) -> XlRow:
    metadata = cells.get("metadata") or "{}"
    try:
        metadata = json.loads(metadata) if isinstance(metadata, str) else {}
    except ValueError:
        metadata = {}
    return XlRow(
        identifier=str(cells["fileIdentifier"]),
        source=str(cells["source"]).lower(),
        licence=None if cells["license"] is None else str(cells["license"]),
        suffix="." + str(cells["fileType"]).lower().lstrip("."),
        sha256=str(cells.get("sha256") or ""),
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _read_csv(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                yield {key: value or None for key, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"source.annotations={path} is no valid CSV: {error}") from error


def _read_parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(
            f"reading {path} needs pyarrow: pip install -e .[objaverse], or give a .csv"
        ) from error
    try:
        table = ParquetFile(path)
        _check_columns(path, table.schema_arrow.names)
        wanted = [name for name in COLUMNS if name in table.schema_arrow.names]
        for batch in table.iter_batches(columns=wanted):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"source.annotations={path} is no valid Parquet file: {error}") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS[:4] if name not in names]
    if missing:
        raise UserError(
            f"source.annotations={path} lacks the columns {', '.join(missing)} of Objaverse-XL's "
            f"tables (it has {', '.join(names) or 'none'})"
        )

"""ATTRIBUTION.csv: whose assets a set is made of, under which licence, and where they came from."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ATTRIBUTION_NAME = "ATTRIBUTION.csv"

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that spreadsheets take for a formula (OWASP, CSV Injection)."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """One line: what the licence of an asset obliges whoever passes the set on to say.

    Args:
        uid: of the sample.
        licence: SPDX identifier, or `unknown`.
        author: who made the asset.
        source: its address or collection.
        file: name of the asset's file.
        sha256: of that file.
    """

    uid: str
    licence: str
    author: str
    source: str
    file: str
    sha256: str


def attribution_of(meta_json: bytes) -> Attribution | None:
    """Return what a sample's meta.json says; None for kinds of sample that name no licence."""
    meta = json.loads(meta_json)
    if "licence" not in meta:
        return None
    origin = meta["source"]
    where = (str(origin.get(key, "")) for key in ("source", "file", "sha256"))
    return Attribution(meta["uid"], meta["licence"], meta["author"], *where)


def attribution_csv(lines: Iterable[Attribution]) -> bytes:
    """Return the file: UTF-8, a header, one line for each sample in the given order.

    A cell that a spreadsheet would run as a formula is written behind an apostrophe.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Attribution))
    for line in lines:
        writer.writerow("'" + cell if cell.startswith(FORMULA) else cell for cell in astuple(line))
    return text.getvalue().encode()


def read_attribution(path: Path) -> list[Attribution]:
    """Return the lines of the file.

    Raises:
        OSError, ValueError: it cannot be read, or is no such file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    if header != [field.name for field in fields(Attribution)]:
        raise ValueError(f"{path} has the columns {', '.join(header)}")
    return [Attribution(*line) for line in lines]

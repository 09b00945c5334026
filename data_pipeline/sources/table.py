"""Rows of a CSV or JSON Lines file that names assets."""

import csv
import io
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError
from data_pipeline.sources.captions import one_line

log = logging.getLogger(__name__)

Row = dict[str, Any]


def read_table(path: Path) -> list[Row]:
    """Return the rows of a `.csv` (first line: column names) or `.jsonl` file, in file order.

    Every row has a non-empty text `file`, in Unicode NFC; column names are stripped and lower case.
    An empty file has no rows, which is a warning in the log.

    Raises:
        UserError: the file is missing, unreadable, of another kind, or a row is malformed.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is neither .csv nor .jsonl: write the list as one of these")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path of the list") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    rows = reader(path, text)
    if not rows:
        log.warning("%s holds no rows", path)
    for line, row in rows:
        name = row.get("file")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path} line {line} names no `file`: give each row the asset's path")
        row["file"] = normalise(name.strip())
    return [row for _, row in rows]


def normalise(name: str) -> str:
    """Return a file name in NFC: macOS stores é as two characters, most editors write one."""
    return unicodedata.normalize("NFC", name)


def check_encodable(value: Any) -> None:
    """Raise UnicodeEncodeError if a value read from JSON holds text that is not Unicode."""
    json.dumps(value, ensure_ascii=False).encode()


def text_of(row: Row, *columns: str, where: str) -> str | None:
    """Return the first of these columns that says something, on one line; None if none does.

    Raises:
        UserError: the value is no text or number.
    """
    for column in columns:
        value = row.get(column)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{where}: {column} of {row['file']} must be a text, not {value!r}")
        if text := one_line(str(value)):
            return text
    return None


def captions_of(row: Row, where: str) -> tuple[str, ...]:
    """Return the captions of a row, from its `captions` or `caption`; maybe none.

    `captions` is a list, in a CSV written as a JSON list; `caption` is one text.
    """
    value = row.get("captions") or row.get("caption") or []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
            check_encodable(value)
        except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
            raise UserError(
                f"{where}: captions of {row['file']} are no valid JSON list: {error}"
            ) from error
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: captions of {row['file']} must be a text or a list of texts")
    return tuple(text.strip() for text in texts if text.strip())


def _read_csv(path: Path, text: str) -> list[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, Row]] = []
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = [cell.strip().lower() for cell in cells]
                if "file" not in columns:
                    raise UserError(
                        f"{path} has no column `file` but {', '.join(columns)}: "
                        "its first line must name the columns, with commas between them"
                    )
                if len(set(columns)) < len(columns):
                    raise UserError(f"{path} names a column twice: {', '.join(columns)}")
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{path} line {reader.line_num} has {len(cells)} cells for {len(columns)} "
                    "columns: put texts that hold commas in double quotes"
                )
            rows.append((reader.line_num, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not valid CSV ({error}): is a double quote left "
            "open before it?"
        ) from error
    return rows


def _read_jsonl(path: Path, text: str) -> list[tuple[int, Row]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            check_encodable(row)
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path} line {number} holds half of a character (an unpaired surrogate such as "
                "\\ud83d): write the list again with whole characters"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object: write one per line")
        rows.append((number, {key.strip().lower(): value for key, value in row.items()}))
    return rows

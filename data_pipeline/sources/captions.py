"""Captions from elsewhere than the asset: caption tables, and file names as a last word."""

import csv
import re
import unicodedata
from pathlib import Path

from data_pipeline.contract import UserError

NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of characters, which no UTF-8 file can hold."""


def one_line(text: str) -> str:
    """Return a text without control characters, every run of white space as one space."""
    return " ".join(NO_TEXT.sub(" ", text).split())


def readable_name(stem: str) -> str:
    """Return a file's stem as a caption: `city_carTaxi-02` gives `city car taxi`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFC", stem))
    words = re.sub(r"[\s_.\-]+", " ", words).strip()
    return re.sub(r"( \d+)+$", "", words).lower() or stem


def read_caption_pairs(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions of a CSV without a header whose rows are `uid,caption`, as Cap3D's are.

    Args:
        path: the file; several rows of one uid are several captions. A first row that reads
            `uid,caption` is taken for a header.

    Raises:
        UserError: it is missing, no UTF-8 text, or a row has not two cells.
    """
    captions: dict[str, tuple[str, ...]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if not cells or cells == ["uid", "caption"]:
                    continue
                if len(cells) != 2:
                    raise UserError(
                        f"source.captions={path} line {reader.line_num} has {len(cells)} cells, "
                        "not uid,caption: put captions that hold commas in double quotes"
                    )
                uid, caption = (cell.strip() for cell in cells)
                if caption:
                    captions[uid] = (*captions.get(uid, ()), caption)
    except OSError as error:
        raise UserError(f"source.captions={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"source.captions={path} is not UTF-8 text: save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"source.captions={path} is no valid CSV: {error}") from error
    return captions

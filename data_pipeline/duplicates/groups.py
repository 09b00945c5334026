"""Groups of assets that a split must not part, as a file (`loading/split.py` heeds it)."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_pipeline.contract import UserError


def name_groups(
    families: Iterable[Sequence[str]], uids: Iterable[str], earlier: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the group of every uid, and the uids whose group has changed its name.

    A group keeps its earlier name, so that no asset changes sides because others were added. Where
    a new asset ties two groups together, the smaller name stays. A new group is called after its
    smallest uid.

    Args:
        families: sets of uids that belong together, disjoint.
        uids: all of them; those in no family are groups of their own.
        earlier: groups of a previous call; of uids that are gone too.
    """
    groups = {uid: earlier.get(uid, uid) for uid in uids}
    renamed: dict[str, str] = {}
    for family in families:
        names = sorted({earlier[uid] for uid in family if uid in earlier})
        name = names[0] if names else min(family)
        renamed |= dict.fromkeys(names[1:], name)
        groups |= dict.fromkeys(family, name)
    # All that was in a group whose name went goes along, in a family of this call or not.
    for uid, name in groups.items():
        while name in renamed:
            name = renamed[name]
        groups[uid] = name
    moved = sorted(uid for uid, name in groups.items() if earlier.get(uid, name) != name)
    return groups, moved


def write_groups(path: Path, groups: Mapping[str, str]) -> None:
    """Write `uid,group` rows, sorted, in one move."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["uid", "group"])
        writer.writerows(sorted(groups.items()))
    os.replace(temporary, path)


def read_groups(path: Path) -> dict[str, str]:
    """Return the group of every uid of a file.

    Raises:
        UserError: it is missing or no such file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        raise UserError(f"groups={path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"groups={path} is no valid CSV: {error}") from error
    if rows[:1] != [["uid", "group"]] or any(len(row) != 2 for row in rows):
        raise UserError(f"groups={path} has no rows uid,group: write it with `duplicates groups=`")
    return dict(row for row in rows[1:])

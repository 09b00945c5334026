"""`duplicates`: report them, write the list of those to leave out and the groups of the others."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.duplicates.features import Features, read_features
from data_pipeline.duplicates.groups import name_groups, read_groups, write_groups
from data_pipeline.duplicates.identical import equal_digests, identical_files
from data_pipeline.duplicates.near import FeatureTable, Limits, Pairs, components, similar_pairs
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found; every set is sorted.

    Args:
        uids: all that were looked at.
        identical: sets of uids whose files are equal.
        copies: sets of uids that look the same, identical ones included.
        groups: sets of uids of one shape, copies included.
    """

    uids: list[str]
    identical: list[list[str]]
    copies: list[list[str]]
    groups: list[list[str]]

    @property
    def to_drop(self) -> list[str]:
        """All but the first uid of every set of copies."""
        return sorted(uid for family in self.copies for uid in family[1:])


def of_files(assets: Sequence[Asset]) -> Duplicates:
    """Return the duplicates that can be told before rendering: identical files."""
    identical = identical_files(assets)
    return Duplicates([asset.uid for asset in assets], identical, identical, identical)


def of_samples(staging_root: Path, limits: Limits | None = None) -> Duplicates:
    """Return the duplicates among the finished samples of a staging folder.

    Raises:
        UserError: there is none, or one is damaged.
    """
    staging = Staging(staging_root)
    uids = staging.done_uids()
    if not uids:
        raise UserError(f"{staging_root} holds no finished sample: render first")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the interpreter
        read = pool.map(lambda uid: _read(staging, uid), uids)
        features = list(tqdm(read, "features", len(uids), unit="sample", delay=2))
    identical = equal_digests((uid, f.sha256) for uid, f in zip(uids, features, strict=True))
    pairs, copies = similar_pairs(_table(features), limits or Limits())
    numbers = {uid: number for number, uid in enumerate(uids)}
    same = [(numbers[family[0]], numbers[uid]) for family in identical for uid in family[1:]]
    tied = np.array(same, dtype=np.int64).reshape(-1, 2)
    return Duplicates(
        uids,
        identical,
        _families(uids, np.concatenate([copies, tied])),
        _families(uids, np.concatenate([pairs, tied])),
    )


def report(found: Duplicates, style: str, groups: Path | None, drop: Path | None) -> None:
    """Print what was found, and write the groups and the uids to leave out where asked.

    Raises:
        UserError: the style is unknown, or a file is no file of groups.
    """
    if style not in ("text", "json"):
        raise UserError(f"format={style} is not known: choose text or json")
    moved: list[str] = []
    if groups is not None:
        earlier = read_groups(groups) if groups.exists() else {}
        named, moved = name_groups(found.groups, found.uids, earlier)
        write_groups(groups, earlier | named)
    if drop is not None:
        drop.parent.mkdir(parents=True, exist_ok=True)
        drop.write_text("".join(f"{uid}\n" for uid in found.to_drop), encoding="utf-8")
    if style == "json":
        sets = {name: getattr(found, name) for name in ("identical", "copies", "groups")}
        print(json.dumps({"total": len(found.uids), "drop": found.to_drop, "moved": moved} | sets))
        return
    print(f"{'total':12}{len(found.uids):8}")
    for name in ("identical", "copies", "groups"):
        families = getattr(found, name)
        print(f"{name:12}{sum(map(len, families)):8} in {len(families)} sets")
        for family in families[:20]:
            print(f"    {', '.join(family[:6])}{', ...' if len(family) > 6 else ''}")
    print(f"{'to drop':12}{len(found.to_drop):8}")
    if moved:
        print(f"{len(moved)} assets changed their group, such as {moved[0]}: two groups became one")


def _read(staging: Staging, uid: str) -> Features:
    try:
        return read_features(staging.read(uid))
    except UserError as error:
        raise UserError(f"{staging.root}, sample {uid}: {error}") from error


def _table(features: Sequence[Features]) -> FeatureTable:
    views = {len(f.bits) for f in features}
    if len(views) > 1:
        raise UserError(f"samples of {sorted(views)} views cannot be compared: render them anew")
    return FeatureTable(
        box=np.stack([f.box for f in features]).astype(np.float32),
        bits=np.stack([f.bits for f in features]),
        depth=np.stack([f.depth for f in features]),
        colour=np.stack([f.colour for f in features]),
    )


def _families(uids: Sequence[str], pairs: Pairs) -> list[list[str]]:
    families = defaultdict(list)
    for uid, number in zip(uids, components(pairs, len(uids)).tolist(), strict=True):
        families[number].append(uid)
    return sorted(family for family in families.values() if len(family) > 1)

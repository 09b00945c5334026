"""Look into shards: what a set or one tar holds, one sample's metadata, its views as a picture."""

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.codec import decode_views
from data_pipeline.contract import UserError
from data_pipeline.shards.manifest import MANIFEST_NAME, ShardSet, file_entry
from data_pipeline.shards.schema import describe_members
from data_pipeline.shards.tar_layout import parse_block, scan_shard

_MODALITIES = ("rgb", "normal", "coord", "hit")
_TILE_PX = (128, 320)
"""Smallest and largest side of a view on the contact sheet."""
_INK, _PAPER, _MARGIN_PX = (40, 40, 40), 255, 8
_MAX_SHARDS_LISTED = 20


def inspect_shards(shards: Path, uid: str | None, png: Path | None) -> None:
    """Print what `shards` holds, or one of its samples.

    Args:
        shards: a set's folder, or one tar.
        uid: a sample of the set: its metadata is printed.
        png: where to draw the sample's views.

    Raises:
        UserError: there is no such set, tar or sample, or `png` cannot be written.
    """
    if png is not None and png.suffix.lower() != ".png":
        raise UserError(f"png={png} must end in .png")
    if shards.is_file():
        _print_shard(shards)
        return
    shard_set = ShardSet(shards, "samples")
    if uid is None:
        if png is not None:
            raise UserError(f"png= needs uid=UID, such as uid={shard_set.uids[0]}")
        _print_set(shard_set)
        return
    i = shard_set.index_of(uid)
    members = shard_set.read(i)
    try:
        meta = json.loads(members["meta.json"])
        sheet = None if png is None else contact_sheet(members)
    except ValueError as error:
        raise UserError(
            f"sample {uid} in {shards} is damaged ({error}): verify mode=full, then repair"
        ) from error
    text = json.dumps(meta, indent=1, ensure_ascii=False)
    print(text.encode(errors="backslashreplace").decode())  # names of files may be no UTF-8
    sizes = {name: len(content) for name, content in members.items()}
    where = shard_set.manifest["shards"][int(shard_set.index.shard[i])]["name"]
    print(f"in {where}: " + ", ".join(f"{name} {size:,} B" for name, size in sizes.items()))
    if png is not None and sheet is not None:
        _write_png(png, sheet)


def contact_sheet(members: dict[str, bytes]) -> NDArray[np.uint8]:
    """Return a picture (h w 3, sRGB) of a sample: a labelled row per modality, a column per view.

    rgb is composited on white; normal and coord are shown as they are encoded.
    """
    meta = json.loads(members["meta.json"])
    names = [camera["name"] for camera in meta["cameras"]]
    rows = [
        _labelled_row(name, [_tile(view) for view in _as_rgb8(members[f"{name}.png"], len(names))])
        for name in _MODALITIES
    ]
    if "albedo.png" in members:
        rows.append(_albedo_row(members["albedo.png"], meta["lightings"]))
    label_px = rows[0].shape[1] - len(names) * _tile_pitch(rows[0])
    heading = np.full((30, rows[0].shape[1], 3), _PAPER, np.uint8)
    for k, name in enumerate(names):
        _write(heading, name, label_px + k * _tile_pitch(rows[0]), 20)
    caption = meta["captions"][0] if meta["captions"] else ""
    told = [
        f"{meta['uid']}   {caption}",
        f"licence {meta['licence']}   author {meta['author']}   config {meta['config_hash']}   "
        f"conventions {meta['conventions']}",
    ]
    title = np.full((56, rows[0].shape[1], 3), _PAPER, np.uint8)
    for k, line in enumerate(told):
        _write(title, line, _MARGIN_PX, 22 + 22 * k)
    return np.concatenate([title, heading, *rows])


def _albedo_row(content: bytes, lightings: list[str]) -> NDArray[Any]:
    """Return the row of base colours, which only lit views have beside their rgb."""
    lit = [k for k, lighting in enumerate(lightings) if lighting != "albedo"]
    stored = _as_rgb8(content, len(lit))
    views: NDArray[Any] = np.full((len(lightings), *stored.shape[1:]), _PAPER, np.uint8)
    views[lit] = stored
    return _labelled_row("albedo", [_tile(views[k]) for k in range(len(views))])


def _as_rgb8(content: bytes, num_views: int) -> NDArray[Any]:
    views = decode_views(content, num_views)
    if views.dtype == np.uint16:
        views = (views // 257).astype(np.uint8)
    if views.ndim == 3:
        return np.repeat(views[..., None], 3, axis=-1)
    if views.shape[3] == 4:
        alpha = views[..., 3:].astype(np.float32) / 255.0
        return (views[..., :3] * alpha + 255.0 * (1.0 - alpha)).round().astype(np.uint8)
    return views


def _tile(view: NDArray[Any]) -> NDArray[Any]:
    """Scale a view to what can be looked at, with a margin to its right and below."""
    side = view.shape[0]
    smallest, largest = _TILE_PX
    if side > largest:
        view = cv2.resize(view, (largest, largest), interpolation=cv2.INTER_AREA)
    elif side < smallest:
        factor = -(-smallest // side)
        view = view.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(view, ((0, _MARGIN_PX), (0, _MARGIN_PX), (0, 0)), constant_values=_PAPER)


def _labelled_row(name: str, tiles: list[NDArray[Any]]) -> NDArray[Any]:
    label = np.full((tiles[0].shape[0], 80, 3), _PAPER, np.uint8)
    _write(label, name, _MARGIN_PX, tiles[0].shape[0] // 2)
    return np.concatenate([label, *tiles], axis=1)


def _tile_pitch(row: NDArray[np.uint8]) -> int:
    return row.shape[0]  # tiles are square, margins included


def _write(image: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no more
    cv2.putText(image, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    path.write_bytes(content.tobytes())


def _print_set(shard_set: ShardSet) -> None:
    manifest = shard_set.manifest
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    _print_facts(
        {
            "set": shard_set.directory,
            "set version": manifest["set_version"],
            "samples": f"{len(shard_set):,} in {len(manifest['shards'])} shards",
            "bytes": f"{num_bytes:,} ({num_bytes // len(shard_set):,} a sample)",
            "config": manifest.get("config_hash", "none"),
            "conventions": manifest["conventions"],
            "manifest sha256": shard_set.sha256,
        }
    )
    means = shard_set.index.size.mean(axis=0).tolist()
    _print_schema(manifest["members"], means)
    for name, entry in manifest["files"].items():
        print(f"{name}: {entry['bytes']:,} B, sha256 {entry['sha256']}")
    for shard in manifest["shards"][:_MAX_SHARDS_LISTED]:
        _print_shard_line(shard)
    if (more := len(manifest["shards"]) - _MAX_SHARDS_LISTED) > 0:
        print(f"... and {more} more shards ({MANIFEST_NAME} lists all)")
    print(f"one sample: uid={shard_set.uids[0]} png=FILE")


def _print_shard(path: Path) -> None:
    try:
        rows = scan_shard(path, 0)
        with path.open("rb") as file:
            start, end = rows[0].span()
            file.seek(start)
            members = parse_block(rows[0].uid, file.read(end - start))
    except (tarfile.TarError, IndexError) as error:
        raise UserError(f"{path} is no shard ({error}): name a tar or a set's folder") from error
    meta = json.loads(members.get("meta.json", b"{}"))
    _print_facts(
        {
            "config": meta.get("config_hash", "none"),
            "conventions": meta.get("conventions", "unknown"),
        }
    )
    means = np.asarray([row.size for row in rows]).mean(axis=0).tolist()
    _print_schema(describe_members(members), means)
    entry = {"name": path.name, "num_samples": len(rows), **file_entry(path)}
    _print_shard_line(entry | {"first_uid": rows[0].uid, "last_uid": rows[-1].uid})


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:16} {value}")


def _print_schema(members: dict[str, Any], mean_bytes: Iterable[float]) -> None:
    for (name, member), size in zip(sorted(members.items()), mean_bytes, strict=True):
        print(f"{name:16} {_kind(member):34} {size:12,.0f} B on the mean")
        for key, array in member.get("arrays", {}).items():
            print(f"  {key:20} {_kind(array)}")


def _kind(member: dict[str, Any]) -> str:
    shape = f"({' '.join(map(str, member['shape']))})" if "shape" in member else ""
    return " ".join(filter(None, (member.get("encoding"), member.get("dtype"), shape)))


def _print_shard_line(shard: dict[str, Any]) -> None:
    print(
        f"{shard['name']}: {shard['num_samples']} samples ({shard['first_uid']} to "
        f"{shard['last_uid']}), {shard['bytes']:,} B, sha256 {shard['sha256']}"
    )

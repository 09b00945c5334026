"""The `objaverse` package: where its cache keeps what, and how its indices are read.

Nothing else imports it. Its own downloads are neither atomic nor checked (an error page becomes an
asset, an interrupted index is damaged for good), it reads the list of all objects anew for every
object, and it has no time limits. So files are brought by `objaverse_files` to where the package
looks for them, and the package reads.
"""

import re
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipeline.contract import UserError

VERSIONED = "hf-objaverse-v1"
"""Folder of Objaverse 1.0 below the package's home."""

OBJECT_PATHS, LVIS = "object-paths.json.gz", "lvis-annotations.json.gz"

_lock = threading.RLock()  # the package keeps its home in module globals


def load_package() -> ModuleType:
    """Return the module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import objaverse
    except ImportError as error:
        raise UserError(
            f"source=objaverse needs a package that is not installed ({error.name}): "
            "pip install -e .[objaverse]"
        ) from error
    return objaverse


def xl_uid(identifier: str) -> str:
    """Return the package's own name for a file of Objaverse-XL: a UUID of its identifier."""
    load_package()
    from objaverse.utils import get_uid_from_str

    return get_uid_from_str(identifier)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What Objaverse 1.0 says of an object; None where it says nothing.

    Args:
        name: its title.
        licence: Objaverse's name, such as `by-sa`.
        author: display name of the user, and the user's page.
        url: of the object's page.
        num_faces: of the model.
        num_bytes: of its GLB.
        tags: slugs of its tags.
    """

    name: str
    licence: str | None
    author: str | None
    url: str
    num_faces: int | None
    num_bytes: int | None
    tags: tuple[str, ...]


class ObjaverseCache:
    """Reads the indices below a home folder through the package.

    Args:
        home: what the package calls its base path; `~/.objaverse` by default.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._package = load_package()
        self._paths: dict[str, str] | None = None

    @property
    def folder(self) -> Path:
        """Folder that `object_paths` are relative to."""
        return self.home / VERSIONED

    def object_paths(self) -> Mapping[str, str]:
        """Return, by uid, where its GLB lies below `folder`. Read once.

        Raises:
            UserError: the index is damaged.
        """
        if self._paths is not None:
            return self._paths
        with self._reading(OBJECT_PATHS) as package:
            self._paths = dict(package._load_object_paths())
            return self._paths

    def object_path(self, uid: str) -> str:
        """Return where a GLB lies below `folder`.

        Raises:
            UserError: the index names a place of another form; it might be outside of the folder.
        """
        path = self.object_paths()[uid]
        if not re.fullmatch(r"glbs/[\w-]+/[\w-]+\.glb", path):
            raise UserError(f"{self.folder / OBJECT_PATHS} names {path!r}: delete this index")
        return path

    def lvis_categories(self) -> dict[str, list[str]]:
        """Return the uids of every LVIS category.

        Raises:
            UserError: the index is damaged.
        """
        with self._reading(LVIS) as package:
            return package.load_lvis_annotations()

    def metadata_file(self, uid: str) -> str:
        """Return the file below `folder` that holds the annotation of an object."""
        return f"metadata/{self.object_path(uid).split('/')[1]}.json.gz"

    def annotations(self, uids: Iterable[str]) -> Iterator[tuple[str, Annotation]]:
        """Yield the annotation of each uid that has one, file after file: they do not fit memory.

        Raises:
            UserError: a file is damaged.
        """
        by_file = defaultdict(list)
        for uid in uids:
            by_file[self.metadata_file(uid)].append(uid)
        for name in sorted(by_file):
            with self._reading(name) as package:
                raw = package.load_annotations(by_file[name])
            yield from ((uid, _slim(uid, entry)) for uid, entry in raw.items())

    @contextmanager
    def _reading(self, name: str) -> Iterator[ModuleType]:
        """Give the package with this home, its list of objects not read again; name what breaks."""
        package = self._package
        with _lock:
            ours: dict[str, Any] = {
                "BASE_PATH": str(self.home),
                "_VERSIONED_PATH": str(self.folder),
            }
            if (paths := self._paths) is not None:
                ours["_load_object_paths"] = lambda: paths
            kept = {name: vars(package)[name] for name in ours}
            vars(package).update(ours)
            try:
                yield package
            except (EOFError, zlib.error, ValueError) as error:
                raise UserError(
                    f"{self.folder / name} is damaged: delete it, and it is fetched again"
                ) from error
            except OSError as error:
                path = error.filename or self.folder / name
                reason = error.strerror or error
                raise UserError(
                    f"{path} cannot be read ({reason}): delete it, and it is fetched again"
                ) from error
            finally:
                vars(package).update(kept)


def _slim(uid: str, raw: Mapping[str, Any]) -> Annotation:
    user = raw.get("user") or {}
    glb = (raw.get("archives") or {}).get("glb") or {}
    author = user.get("displayName") or user.get("username")
    return Annotation(
        name=str(raw.get("name") or "").strip(),
        licence=raw.get("license"),
        author=" ".join(filter(None, [author, _bracketed(user.get("profileUrl"))])) or None,
        url=raw.get("viewerUrl") or f"https://sketchfab.com/3d-models/{uid}",
        num_faces=_count(raw.get("faceCount"), glb.get("faceCount")),
        num_bytes=_count(glb.get("size")),
        tags=tuple(str(tag["slug"]) for tag in raw.get("tags") or () if tag.get("slug")),
    )


def _bracketed(url: str | None) -> str | None:
    return f"({url})" if url else None


def _count(*values: object) -> int | None:
    return next((int(value) for value in values if isinstance(value, (int, float))), None)

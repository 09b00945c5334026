"""Assets of Objaverse 1.0 and of lists in Objaverse-XL's format, fetched as they are needed."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.contract import UserError, make_uid
from data_pipeline.sources import Asset, FetchError
from data_pipeline.sources.captions import one_line, read_caption_pairs
from data_pipeline.sources.licences import FREE_TO_ADAPT, allow_list, spdx
from data_pipeline.sources.objaverse_files import Download, ObjaverseStore, check_gzip
from data_pipeline.sources.objaverse_package import (
    LVIS,
    OBJECT_PATHS,
    Annotation,
    ObjaverseCache,
)
from data_pipeline.sources.objaverse_xl import XlRow, read_xl_table, xl_assets
from data_pipeline.sources.selection import check_count, read_uids, spread

log = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which objects are wanted. What an annotation does not state excludes nothing.

    Args:
        licences: SPDX identifiers; None for all. An object without a licence needs None.
        min_faces: of the model.
        max_faces: of the model.
        max_bytes: of the GLB.
    """

    licences: frozenset[str] | None
    min_faces: int | None = None
    max_faces: int | None = None
    max_bytes: int | None = None

    def refuse(self, annotation: Annotation) -> str | None:
        """Return the name of the first filter that an object fails, or None."""
        faces, size = annotation.num_faces, annotation.num_bytes
        if self.licences is not None and spdx(annotation.licence) not in self.licences:
            return "licences"
        if self.min_faces is not None and faces is not None and faces < self.min_faces:
            return "min_faces"
        if self.max_faces is not None and faces is not None and faces > self.max_faces:
            return "max_faces"
        if self.max_bytes is not None and size is not None and size > self.max_bytes:
            return "max_bytes"
        return None


class ObjaverseSource:
    """Lists objects of Objaverse 1.0; their files come when they are rendered.

    Args:
        root: the package's home folder; None for `~/.objaverse`.
        licences: names as Objaverse's, or SPDX identifiers, or `all`.
        categories: LVIS categories; None for all objects, in a category or not.
        uids: text file of uids, one a line.
        exclude: text file of uids that are left out.
        annotations: table in Objaverse-XL's format (.parquet or .csv): its rows alone are taken.
        captions: CSV without a header, `uid,caption` (Cap3D's); the objects' names for the others.
        only_captioned: leave out the objects that `captions` does not name.
        min_faces: see `Filters`.
        max_faces: see `Filters`.
        max_bytes: see `Filters`.
        count: how many objects; None for all. A stable spread, as in `FolderSource`.
        seed: another seed draws others.
        keep_files: False deletes each GLB once its asset is done or has failed, also a GLB that was
            in the cache before.
        quota_gb: GiB of GLBs at a time, give or take one file per worker; needs keep_files=False.
        endpoint: server to fetch from, if not the usual one.

    Raises:
        UserError: a setting is wrong, or the package is not installed.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        licences: Sequence[str] | str = FREE_TO_ADAPT,
        categories: Sequence[str] | str | None = None,
        uids: str | Path | None = None,
        exclude: str | Path | None = None,
        annotations: str | Path | None = None,
        captions: str | Path | None = None,
        only_captioned: bool = False,
        min_faces: int | None = None,
        max_faces: int | None = None,
        max_bytes: int | None = None,
        count: int | None = None,
        seed: int = 0,
        keep_files: bool = True,
        quota_gb: float | None = None,
        endpoint: str | None = None,
    ) -> None:
        check_count(count, "objaverse")
        if quota_gb is not None and keep_files:
            raise UserError(
                "source.quota_gb is kept by deleting what is rendered: give source.keep_files=false"
            )
        if only_captioned and captions is None:
            raise UserError("source.only_captioned=true needs source.captions=FILE")
        self._cache = ObjaverseCache(Path(root or "~/.objaverse").expanduser())
        self._download = Download(self._cache.folder, endpoint)
        self._filters = Filters(
            licences=allow_list(licences),
            min_faces=min_faces,
            max_faces=max_faces,
            max_bytes=max_bytes,
        )
        self._categories = [categories] if isinstance(categories, str) else categories
        self._uids, self._exclude, self._annotations, self._captions = (
            None if path is None else Path(path) for path in (uids, exclude, annotations, captions)
        )
        self._only_captioned = only_captioned
        self._count, self._seed = count, seed
        self._keep_files = keep_files
        self._quota_bytes = None if quota_gb is None else int(quota_gb * GIB)

    def assets(self) -> list[Asset]:
        """Return the wanted objects, sorted by uid.

        Raises:
            UserError: a list or an index is wrong, an index cannot be fetched, or nothing is left.
        """
        captions = {} if self._captions is None else read_caption_pairs(self._captions)
        rows = None if self._annotations is None else read_xl_table(self._annotations)
        sketchfab = {row.uid: row for row in rows or () if row.source == "sketchfab"}
        names, sizes = dict[str, str](), dict[str, int]()
        digests = {make_uid(uid): row.sha256 for uid, row in sketchfab.items() if row.sha256}
        store = ObjaverseStore(
            self._download,
            names,
            sizes=sizes,
            sha256=digests,
            keep_files=self._keep_files,
            quota_bytes=self._quota_bytes,
        )
        found = []
        if rows is None or sketchfab:
            uids = self._wanted(None if rows is None else sketchfab, captions)
            for uid, annotation in self._annotated(uids):
                asset = self._asset(uid, annotation, captions.get(uid, ()), store)
                names[asset.uid] = self._cache.object_path(uid)
                if annotation.num_bytes is not None:
                    sizes[asset.uid] = annotation.num_bytes
                found.append(asset)
        if rows is not None:
            found += xl_assets(rows, self._cache.home, self._filters.licences, captions)
        if self._exclude is not None:
            left_out = read_uids(self._exclude, "source.exclude")
            found = [asset for asset in found if asset.uid not in left_out]
        if not found:
            raise UserError("source=objaverse: no object passes its filters: widen them")
        chosen = spread(found, self._count, self._seed, lambda asset: asset.uid)
        return sorted(chosen, key=lambda asset: asset.uid)

    def _wanted(
        self, listed: Mapping[str, XlRow] | None, captions: Mapping[str, tuple[str, ...]]
    ) -> list[str]:
        """Return the uids that the lists leave, before any annotation is read."""
        self._ensure(OBJECT_PATHS)
        known = self._cache.object_paths()
        wanted = set(known)
        for asked, key in (
            (listed, "annotations"),
            (None if self._uids is None else read_uids(self._uids, "source.uids"), "uids"),
            (self._of_categories(), "categories"),
            (captions if self._only_captioned else None, "captions"),
        ):
            if asked is None:
                continue
            strays = [uid for uid in asked if uid not in known]
            if strays:
                log.warning(
                    "%d uids of source.%s are not in Objaverse, such as %s",
                    len(strays),
                    key,
                    min(strays),
                )
            wanted &= set(asked)
        return sorted(wanted)

    def _of_categories(self) -> set[str] | None:
        names = self._categories
        if names is None:
            return None
        self._ensure(LVIS)
        categories = self._cache.lvis_categories()
        unknown = [name for name in names if name not in categories]
        if unknown:
            close = [name for name in categories if unknown[0].lower() in name.lower()][:5]
            raise UserError(
                f"source.categories: {unknown[0]!r} is no LVIS category"
                + (f": perhaps {', '.join(close)}" if close else f" (there are {len(categories)})")
            )
        return {uid for name in names for uid in categories[name]}

    def _annotated(self, uids: Sequence[str]) -> Iterable[tuple[str, Annotation]]:
        """Yield the objects that pass the filters; how many do not is told."""
        for name in sorted({self._cache.metadata_file(uid) for uid in uids}):
            self._ensure(name)
        refused: Counter[str] = Counter()
        num_annotated = 0
        for uid, annotation in self._cache.annotations(uids):
            num_annotated += 1
            reason = self._filters.refuse(annotation)
            if reason is None:
                yield uid, annotation
            else:
                refused[reason] += 1
        if num_annotated < len(uids):
            refused["no annotation"] = len(uids) - num_annotated
        if refused:
            told = ", ".join(f"{count} by {reason}" for reason, count in sorted(refused.items()))
            log.info("source=objaverse leaves out %d objects: %s", refused.total(), told)

    def _asset(
        self, uid: str, annotation: Annotation, captions: tuple[str, ...], store: ObjaverseStore
    ) -> Asset:
        name = one_line(annotation.name)
        title = name or one_line(" ".join(annotation.tags)) or "a 3D model"
        return Asset(
            uid=make_uid(uid),
            path=self._cache.folder / self._cache.object_path(uid),
            captions=captions or (title,),
            licence=spdx(annotation.licence),
            author=one_line(annotation.author or "") or "unknown",
            source=one_line(annotation.url),
            attributes={"title": name} if name else {},
            store=store,
        )

    def _ensure(self, name: str) -> None:
        """Make an index file exist in the cache.

        Raises:
            UserError: it can be neither found nor fetched.
        """
        if (self._cache.folder / name).is_file():
            return
        try:
            self._download(name, check_gzip)
        except FetchError as error:
            raise UserError(f"source=objaverse: {error}") from error

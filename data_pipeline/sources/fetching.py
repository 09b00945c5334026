"""Fetch the files of the next assets while the present ones are rendered."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from data_pipeline.sources import Asset, FetchError

DOWNLOADS = 4
"""Files fetched at a time."""

AHEAD = 16
"""Assets fetched before they are asked for, at most."""


class Fetching:
    """Brings the files of assets that have a store; the others' are there. A context manager.

    A store without room stops the fetching ahead, never the asset that is waited for: were it to
    wait for files to be released, it would wait for ever in the thread that releases them. So a
    store holds at most one file per worker over its quota.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="fetch")
        self._coming: dict[str, Future[None]] = {}

    def __enter__(self) -> "Fetching":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, following: Iterable[Asset]) -> None:
        """Begin to fetch the assets that come next, as far as there is room.

        Args:
            following: in their order; only the first few are drawn.
        """
        for asset in islice(following, AHEAD):
            if asset.store is None or asset.uid in self._coming:
                continue
            if not asset.store.admit(asset, waited_for=False):
                return
            self._coming[asset.uid] = self._pool.submit(asset.store.fetch, asset)

    def is_here(self, asset: Asset) -> bool:
        """Return whether `wait_for` would return at once; begin to fetch the file if need be."""
        if asset.store is None:
            return True
        if asset.uid not in self._coming:
            asset.store.admit(asset, waited_for=True)
            self._coming[asset.uid] = self._pool.submit(asset.store.fetch, asset)
        return self._coming[asset.uid].done()

    def wait_for(self, asset: Asset) -> str | None:
        """Return when the file is there, or with the reason why it cannot be had.

        Raises:
            UserError: no file can be had, such as without a network.
        """
        if asset.store is None:
            return None
        coming = self._coming.pop(asset.uid, None)
        try:
            if coming is None:
                asset.store.admit(asset, waited_for=True)
                asset.store.fetch(asset)
            else:
                coming.result()
        except FetchError as error:
            return str(error)
        return None

"""Fetch the files of the next assets while the present ones are rendered."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from data_pipeline.sources import Asset, FetchError

DOWNLOADS = 4
"""Files fetched at a time."""

AHEAD = 16
"""Assets fetched before they are asked for, at most."""


def fetched(assets: Iterable[Asset]) -> Iterator[tuple[Asset, str | None]]:
    """Yield every asset in order, its file at hand, with None or the reason why it cannot be had.

    Assets without a store pass through. A store without room stops the fetching ahead, never the
    asset that is waited for: were it to wait for files to be released, it would wait for ever in
    the thread that releases them. So a store holds at most one file per worker over its quota.

    Raises:
        UserError: nothing can be fetched, such as without a network.
    """
    waiting = iter(assets)
    queue: deque[tuple[Asset, Future[None] | None]] = deque()
    following = next(waiting, None)
    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="fetch") as pool:
        try:
            while queue or following is not None:
                while following is not None and len(queue) < AHEAD:
                    store = following.store
                    if store and not store.admit(following, waited_for=not queue):
                        break
                    queue.append(
                        (following, pool.submit(store.fetch, following) if store else None)
                    )
                    following = next(waiting, None)
                asset, future = queue.popleft()
                yield asset, _problem(future)
        finally:
            for _, future in queue:
                if future is not None:
                    future.cancel()


def _problem(future: Future[None] | None) -> str | None:
    """Wait for a file and return why it did not come, if it did not."""
    if future is None:
        return None
    try:
        future.result()
    except FetchError as error:
        return str(error)
    return None

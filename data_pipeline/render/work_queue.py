"""Which asset comes next: claims chunks, leaves out what is settled, tries again what may pass."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.render.failures import TRANSIENT
from data_pipeline.render.options import RenderOptions
from data_pipeline.sources import Asset
from data_pipeline.staging import RenderSession, Staging, chunk_of
from data_pipeline.staging.digest import SAVE_AFTER_RECORDS
from data_pipeline.staging.ledger import AssetState
from data_pipeline.staging.sample_files import CHUNK_DIGITS

NEVER_TRIED = AssetState(reason=None, attempts=0, give_up_at=0, run_id="")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at an asset.

    Args:
        asset: what to render.
        number: 1 for the first ever.
        give_up_at: number of the last attempt that a failure which may pass is given.
    """

    asset: Asset
    number: int
    give_up_at: int


class LeaseLostError(Exception):
    """Another process has taken this one for dead (it stood still for `lease_s`)."""


POLL_S = 5.0
"""How often a process that waits for others looks whether they are done, or dead."""


class WorkQueue:
    """The assets that this process has claimed and those that it may still claim.

    Args:
        assets: of the source, with unique uids.
        staging: the folder.
        session: this process's right to write to it.
        options: `retry` and `max_attempts` say which failures are tried again.
    """

    def __init__(
        self,
        assets: Sequence[Asset],
        staging: Staging,
        session: RenderSession,
        options: RenderOptions,
    ):
        self._samples, self._session, self._options = staging.samples, session, options
        self._digest = staging.digest()
        self._by_chunk: dict[str, dict[str, Asset]] = {}
        for asset in assets:
            self._by_chunk.setdefault(chunk_of(asset.uid), {})[asset.uid] = asset
        done = set(self._samples.uids())
        self._open: dict[str, int] = {}
        for chunk in self._in_own_order():
            if todo := self._todo(chunk, done):
                self._open[chunk] = len(todo)
        self._waiting: deque[Attempt] = deque()
        self._unfinished: dict[str, int] = {}
        self._next_try = self._next_watch = 0.0
        self._poll_s = min(POLL_S, session.leases.beat_s)

    @property
    def num_unsettled(self) -> int:
        """Assets that are neither finished nor given up, on whatever node, as far as is known."""
        return sum(self._open.values()) + sum(self._unfinished.values())

    def attempts(self) -> Iterator[Attempt | None]:
        """Yield attempts until every asset is settled; None: others hold all that is left."""
        while self._waiting or self._unfinished or self._open:
            if not self._waiting:
                self._claim()
            yield self._waiting.popleft() if self._waiting else None

    def following(self) -> Iterator[Asset]:
        """Yield the assets that this process has claimed and not drawn yet, in their order."""
        return (attempt.asset for attempt in self._waiting)

    def check_claim(self, attempt: Attempt) -> None:
        """Raise LeaseLostError unless the asset's chunk is still claimed by this process."""
        chunk = chunk_of(attempt.asset.uid)
        if not self._session.leases.holds(chunk):
            raise LeaseLostError(chunk)

    def settle(self, attempt: Attempt, reason: str | None) -> bool:
        """Note how an attempt ended; its record and its sample are on disk already.

        Returns:
            Whether that is final: a failure that may pass is tried again.
        """
        if reason in TRANSIENT and attempt.number < attempt.give_up_at:
            self._waiting.append(Attempt(attempt.asset, attempt.number + 1, attempt.give_up_at))
            return False
        chunk = chunk_of(attempt.asset.uid)
        self._unfinished[chunk] -= 1
        if not self._unfinished[chunk]:
            del self._unfinished[chunk]
            self._session.leases.release(chunk)
        return True

    def save_digest(self) -> None:
        """Leave the ledger's digest for the next reader, if no other process is at work."""
        self._digest.update()
        is_last = self._session.leases.live_writers() == {self._session.writer}
        if is_last and self._digest.num_unsaved > SAVE_AFTER_RECORDS:
            self._digest.save(self._session.scratch)

    # --------------------------------------------------------------------------------- details

    def _in_own_order(self) -> Iterable[str]:
        """Return the chunks, each process beginning elsewhere, so that they seldom collide."""
        chunks = sorted(self._by_chunk)
        start = int(chunk_of(self._session.writer), 16) * len(chunks) // 16**CHUNK_DIGITS
        return chunks[start:] + chunks[:start]

    def _todo(self, chunk: str, done: set[str]) -> list[Attempt]:
        """Return the attempts that the assets of a chunk are still to be given."""
        assets = self._by_chunk[chunk]
        missing = [uid for uid in assets if uid not in done]
        states = self._digest.states(missing)
        todo = []
        for uid in missing:
            state = states.get(uid, NEVER_TRIED)
            give_up_at = self._next_give_up_at(state)
            if give_up_at is not None:
                todo.append(Attempt(assets[uid], state.attempts + 1, give_up_at))
        return todo

    def _next_give_up_at(self, state: AssetState) -> int | None:
        """Return when to give up an asset without a sample; None: it is given up already."""
        is_new = state.reason is None  # never tried, or its sample has been removed since
        is_asked_for = self._options.retry in ("all", state.reason)
        if is_new or (is_asked_for and state.run_id != self._session.run_id):
            return state.attempts + self._options.max_attempts
        is_final = state.reason not in TRANSIENT or state.attempts >= state.give_up_at
        return None if is_final else state.give_up_at

    def _claim(self) -> None:
        """Claim one chunk with work in it; none if others hold all that is left."""
        now = time.monotonic()
        if not self._open or now < self._next_try:
            return
        if now >= self._next_watch:
            self._session.clear_after_the_dead()
            self._next_watch = now + self._poll_s
        held = self._session.leases.held_by_others()
        for chunk in [chunk for chunk in self._open if chunk not in held]:
            if not self._session.leases.acquire(chunk):
                continue
            self._samples.forget_cached(chunk)
            self._catch_up()
            todo = self._todo(chunk, set(self._samples.uids_in(chunk)))
            self._open.pop(chunk, None)
            if todo:
                self._unfinished[chunk] = len(todo)
                self._waiting.extend(todo)
                return
            self._session.leases.release(chunk)
        self._catch_up()
        self._next_try = now + self._poll_s

    def _catch_up(self) -> None:
        """Read what others have noted meanwhile, and strike off what they have settled."""
        touched = {chunk_of(uid) for uid in self._digest.update()}
        for chunk in touched.intersection(self._open):
            if todo := self._todo(chunk, set(self._samples.uids_in(chunk))):
                self._open[chunk] = len(todo)
            else:
                del self._open[chunk]

"""Counts by state, rates, and the assets worth looking at, from samples and ledger."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.render.failures import TRANSIENT
from data_pipeline.staging import Digest, Staging

RATE_WINDOW_S = 600.0
"""The rate is that of the last so many seconds in which something was written."""

NUM_WORST = 12
"""Assets shown for each reason, and of the slowest and the largest."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of a staging folder.

    Args:
        states: `done` or a reason of failure, by uid.
        expected: assets of the source of the newest run; None where no run has noted it.
        attempts: how often an asset was tried, for those tried more than once.
        num_to_retry: assets that failed but are tried again without being asked for.
        rate: assets a second over all nodes lately; None if too few were written to tell.
        seconds: median, p90 and max of an asset's seconds.
        rss_mb: the same of a worker's peak memory.
        num_damaged: ledger lines that could not be read.
    """

    states: dict[str, str]
    expected: int | None
    attempts: dict[str, int]
    num_to_retry: int
    rate: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    rss_mb: dict[str, float] = field(default_factory=dict)
    num_damaged: int = 0

    @property
    def failed(self) -> Counter[str]:
        """Assets that failed, by reason."""
        return Counter(state for state in self.states.values() if state != "done")

    @property
    def num_done(self) -> int:
        """Finished samples."""
        return sum(state == "done" for state in self.states.values())

    @property
    def eta_s(self) -> float | None:
        """Seconds until all is settled at the rate of late."""
        if not self.rate or self.expected is None:
            return None
        return max(0, self.expected - len(self.states) + self.num_to_retry) / self.rate

    def to_json(self) -> dict[str, Any]:
        """Return what `stats format=json` prints."""
        return {
            "total": len(self.states),
            "done": self.num_done,
            "failed": dict(self.failed),
            "assets": self.states,
            "expected": self.expected,
            "attempts": self.attempts,
            "to_retry": self.num_to_retry,
            "rate": self.rate,
            "eta_s": self.eta_s,
            "seconds": self.seconds,
            "rss_mb": self.rss_mb,
            "damaged_lines": self.num_damaged,
        }


def summarise(staging: Staging, digest: Digest) -> Summary:
    """Return the state of a staging folder; a million assets take a few seconds."""
    states = dict.fromkeys(staging.done_uids(), "done")
    query = "SELECT uid, reason, attempts, give_up_at FROM latest WHERE status = 'failed'"
    num_to_retry = 0
    for uid, reason, attempts, give_up_at in digest.database.execute(query):
        if uid not in states:
            states[uid] = reason
            num_to_retry += reason in TRANSIENT and attempts < give_up_at
    runs = staging.runs()
    times, seconds, rss_mb = _figures(digest).T
    repeated = digest.database.execute("SELECT uid, attempts FROM latest WHERE attempts > 1")
    return Summary(
        states=states,
        expected=runs[-1]["num_assets"] if runs else None,
        attempts=dict(repeated.fetchall()),
        num_to_retry=num_to_retry,
        rate=_rate(times),
        seconds=_spread(seconds),
        rss_mb=_spread(rss_mb),
        num_damaged=digest.num_damaged,
    )


def worst(digest: Digest, column: str) -> list[tuple[str, float]]:
    """Return the finished assets with the largest `seconds` or `rss_mb`."""
    query = f"SELECT uid, {column} FROM latest WHERE status = 'done' AND {column} NOT NULL"
    rows = digest.database.execute(f"{query} ORDER BY {column} DESC LIMIT {NUM_WORST}")
    return rows.fetchall()


def worst_failures(digest: Digest, reason: str) -> list[dict[str, Any]]:
    """Return records of assets that failed for a reason, those tried most often first."""
    query = (
        "SELECT record FROM latest WHERE status = 'failed' AND reason = ? "
        f"ORDER BY attempts DESC, seconds DESC, uid LIMIT {NUM_WORST}"
    )
    return [json.loads(record) for (record,) in digest.database.execute(query, (reason,))]


def _figures(digest: Digest) -> NDArray[np.float64]:
    """Return time, seconds and peak memory of every newest record, `(n, 3)`; NaN: unknown."""
    rows = digest.database.execute("SELECT time, seconds, rss_mb FROM latest")
    return np.array(rows.fetchall(), dtype=np.float64).reshape(-1, 3)


def _rate(times: NDArray[np.float64]) -> float | None:
    known = times[~np.isnan(times)]
    late = known[known >= known.max() - RATE_WINDOW_S] if len(known) else known
    return round((len(late) - 1) / np.ptp(late), 4) if len(late) and np.ptp(late) > 0 else None


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    shares = {"median": 0.5, "p90": 0.9, "max": 1.0}
    found = np.quantile(known, list(shares.values()), method="higher")
    return dict(zip(shares, found.tolist(), strict=True))

"""How far a run is, over all nodes: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections import Counter

from tqdm import tqdm


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: `2 d 3 h`, `4 min 5 s`, `6 s`."""
    parts, rest = [], max(0, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


class Progress:
    """Progress of one process; used as a context manager.

    Args:
        total: assets of the source.
        settled: those that were finished or given up before.
        log_every_s: seconds between lines where stderr is no terminal.
    """

    def __init__(self, total: int, settled: int, log_every_s: float):
        self.failures: Counter[str] = Counter()
        self.num_rendered = 0
        self._total, self._first, self._settled = total, settled, settled
        self._log_every_s = log_every_s
        self._start = self._last_line = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=settled, desc="render", unit="asset",
                         disable=not is_terminal or settled == total)  # fmt: skip
        self._is_log = not is_terminal

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_log and self._settled > self._first:
            print(self.line(), file=sys.stderr, flush=True)
        self._bar.close()

    def count(self, reason: str | None) -> None:
        """Count an asset that this process has settled."""
        if reason is None:
            self.num_rendered += 1
        else:
            self.failures[reason] += 1
            self._bar.set_postfix(dict(self.failures), refresh=False)

    def show(self, settled: int) -> None:
        """Show how many assets are settled by now, by whatever node."""
        self._settled = settled
        self._bar.update(settled - self._bar.n)
        now = time.monotonic()
        if self._is_log and now - self._last_line >= self._log_every_s:
            self._last_line = now
            print(self.line(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line of its own."""
        if self._is_log:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text)

    def line(self) -> str:
        """Return one line: settled, rate, time left, and this process's failures by reason."""
        elapsed = time.monotonic() - self._start
        rate = (self._settled - self._first) / max(elapsed, 1e-9)
        left = span((self._total - self._settled) / rate) if rate else "unknown"
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failures.items()))
        return (
            f"render: {self._settled}/{self._total} assets, {rate:.2f} a second, "
            f"{left} left; this process: {self.num_rendered} rendered, failed: {failed or 'none'}"
        )

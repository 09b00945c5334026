"""Work on the CPU by threads that each keep torch to one thread.

Left to itself, torch divides every step among all its threads and waits for the last of them.
Hundreds of short steps took ten times as long so, where other programs used the cores too: what
consists of such steps is divided as a whole instead.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()
_starting = threading.Lock()


def num_threads() -> int:
    """Return how many threads work may take: torch's number, or what a thread was allowed here."""
    return getattr(_here, "allowed", None) or torch.get_num_threads()


def by_one_thread(work: Callable[[], Result]) -> Result:
    """Return what the work returns, which torch does on one thread of the CPU.

    What the work asks of `by_threads` may take as many threads as may be taken here. Torch's
    modes (autocast, no_grad) are a thread's own: the work has none of the caller's.
    """
    if torch.get_num_threads() == 1:
        return work()
    stopped = threading.Event()

    def stoppable() -> Result:
        _here.stopped = stopped
        return work()

    with _threads(1, num_threads()) as pool:
        try:
            return pool.submit(stoppable).result()
        except BaseException:  # an interrupt too: else the pool would wait for all the work
            stopped.set()
            raise


def by_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what a function makes of each item, several at a time, torch on one thread for each.

    Args:
        function: safe to call from several threads.
        items: what it is called with.
    """
    stopped = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise RuntimeError("the work was interrupted")
    count = min(num_threads(), len(items))
    if count < 2 and torch.get_num_threads() == 1:
        return [function(item) for item in items]
    with _threads(max(count, 1), 1) as pool:
        return list(pool.map(function, items))


@contextmanager
def _threads(count: int, allowed: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads whose torch keeps to one thread, and which may take so many.

    How many threads torch uses is told by each thread for itself and, by whichever told last, for
    threads to come. So all are started here, by a thread that then tells the program's number anew.
    """
    everyone = threading.Barrier(count)
    failures = []

    def begin() -> None:
        torch.get_num_threads()  # takes over the program's number, which it else does later
        torch.set_num_threads(1)
        _here.allowed = allowed

    def start() -> None:
        program = torch.get_num_threads()
        try:
            for begun in [pool.submit(everyone.wait) for _ in range(count)]:
                begun.result()
        except RuntimeError as error:  # no more threads can be started
            everyone.abort()
            failures.append(error)
        finally:
            torch.set_num_threads(program)

    with ThreadPoolExecutor(count, initializer=begin) as pool:
        with _starting:
            starter = threading.Thread(target=start)
            starter.start()
            starter.join()
        if failures:
            raise failures[0]
        yield pool

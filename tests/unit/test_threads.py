import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from modules.geometry import threads
from modules.geometry.threads import by_one_thread, by_threads, num_threads


@pytest.fixture(autouse=True)
def of_three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def numbers_elsewhere() -> set[int]:
    """What torch uses in this thread and in one that starts now."""
    found = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    return set(found)


def test_work_is_divided_and_torch_keeps_to_one_thread_in_each_part():
    together = threading.Barrier(3)

    def part(item: int) -> tuple[int, int, int, int]:
        return together.wait(10.0), torch.get_num_threads(), num_threads(), item

    found = by_threads(part, range(3))
    assert {each[0] for each in found} == {0, 1, 2}  # all at once, in threads of their own
    assert [each[1:] for each in found] == [(1, 1, 0), (1, 1, 1), (1, 1, 2)]
    assert numbers_elsewhere() == {3}


def test_work_by_one_thread_may_divide_what_it_asks_for():
    def work() -> tuple[int, int, list[int], int]:
        parts = by_threads(lambda item: torch.get_num_threads(), range(3))
        other: list[int] = []
        fresh = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        return torch.get_num_threads(), num_threads(), parts, other[0]

    assert by_one_thread(work) == (1, 3, [1, 1, 1], 3)
    assert numbers_elsewhere() == {3}


def test_one_thread_is_enough_for_work_by_one_thread():
    torch.set_num_threads(1)
    caller = threading.get_ident()
    assert by_one_thread(threading.get_ident) == caller
    assert by_threads(lambda _: threading.get_ident(), range(4)) == [caller] * 4


def test_an_interrupt_ends_work_when_it_next_asks_for_threads():
    asked = []

    def work() -> None:
        for number in range(100):
            asked.append(number)
            by_threads(time.sleep, [0.05])

    main = threading.get_ident()
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        by_one_thread(work)
    assert 1 < len(asked) < 50


def test_errors_are_those_of_the_work():
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        by_threads(fail, range(3))
    with pytest.raises(ValueError, match="item 7"):
        by_one_thread(lambda: fail(7))
    assert numbers_elsewhere() == {3}


def test_where_no_thread_can_be_started_it_is_said(monkeypatch: pytest.MonkeyPatch):
    class Limited(threads.ThreadPoolExecutor):
        """Starts two threads, then the system has no more."""

        def submit(self, *arguments, **options):
            if len(self._threads) == 2:
                raise RuntimeError("can't start new thread")
            return super().submit(*arguments, **options)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        by_threads(lambda item: item, range(3))
    assert numbers_elsewhere() == {3}

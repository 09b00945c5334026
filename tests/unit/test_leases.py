"""Claims: one holder at a time, taken over from the dead and from nobody else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.contract import UserError
from data_pipeline.staging import leases as leases_module
from data_pipeline.staging.leases import Leases


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "leases").mkdir()
    return tmp_path / "leases"


@pytest.fixture
def node(folder, monkeypatch):
    """Return a function that opens claims as another machine would, with a lease of 0.5 s."""
    opened = []

    def open_as(name: str, lease_s: float = 0.5) -> Leases:
        monkeypatch.setenv("SLURMD_NODENAME", name)
        leases = Leases(folder, name, lease_s)
        leases.__enter__()
        opened.append(leases)
        return leases

    yield open_as
    for leases in opened:
        leases.__exit__()


def stop_heart(leases: Leases) -> None:
    leases._ended.set()
    leases._heart.join()


def watch(leases: Leases, seconds: float) -> list[str]:
    """Return which processes the watcher buries within some seconds."""
    dead, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        dead += leases.take_over()
        time.sleep(0.05)
    return dead


def test_a_chunk_has_one_holder_until_it_is_given_back(node):
    first, second = node("n1"), node("n2")
    assert first.acquire("abc")
    assert not second.acquire("abc")
    assert second.held_by_others() == {"abc"}
    assert first.held_by_others() == set()
    first.release("abc")
    assert second.acquire("abc")
    assert second.holds("abc")
    assert not first.holds("abc")


def test_claiming_twice_is_no_loss_as_when_a_reply_was_lost(node):
    first = node("n1")
    assert first.acquire("abc")
    assert first.acquire("abc")
    first.release("abc")
    assert not first.holds("abc")


def test_leaving_gives_back_all_claims_and_leaves_nothing(node, folder):
    with Leases(folder, "n3", 1.0) as leases:
        assert leases.acquire("abc")
        assert leases.acquire("abd")
        assert sorted(os.listdir(folder)) == ["abc", "abd", "n3.owner"]
    assert os.listdir(folder) == []


def test_the_claims_of_a_silent_node_are_taken_over_and_those_of_a_living_one_are_not(node):
    living, silent, watcher = node("n1"), node("n2"), node("n3")
    assert living.acquire("abc")
    assert silent.acquire("abd")
    stop_heart(silent)
    assert watch(watcher, 1.2) == ["n2"]
    assert watcher.acquire("abd")
    assert not watcher.acquire("abc")
    assert living.holds("abc")
    assert not silent.holds("abd")


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0])
def test_a_node_whose_clock_is_an_hour_off_keeps_its_claims(node, folder, skew_s):
    living, watcher = node("n1"), node("n2")
    assert living.acquire("abc")
    stop_heart(living)
    dead: list[str] = []
    for _ in range(12):  # its server stamps its beats with another hour
        stamp = time.time() + skew_s
        os.utime(folder / "n1.owner", (stamp, stamp))
        dead += watch(watcher, 0.1)
    assert dead == []
    assert living.holds("abc")
    assert watch(watcher, 1.2) == ["n1"]  # and then its beats end


def test_time_in_which_the_watcher_itself_was_away_does_not_count(node):
    silent, watcher = node("n1"), node("n2")
    assert silent.acquire("abc")
    stop_heart(silent)
    assert watcher.take_over() == []
    time.sleep(1.0)  # twice the lease, in which the watcher or the file server stood still
    assert watcher.take_over() == []
    assert watch(watcher, 1.2) == ["n1"]


def test_a_process_that_died_on_this_machine_is_buried_at_once(folder):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from data_pipeline.staging.leases import Leases\n"
        "leases = Leases(Path(sys.argv[1]), 'dead', 600.0).__enter__()\n"
        "leases.acquire('abc'); os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=Path(__file__).parents[2])
    assert sorted(os.listdir(folder)) == ["abc", "dead.owner"]
    with Leases(folder, "next", 600.0) as leases:
        assert not leases.acquire("abc")
        assert leases.take_over() == ["dead"]
        assert leases.acquire("abc")


def test_a_process_id_that_another_process_has_now_does_not_pass_for_the_old_one(folder):
    owner = {"writer": "old", "machine": leases_module.machine_identity()}
    owner |= {"pid": os.getppid(), "started": 1.0}
    (folder / "old.owner").write_text(json.dumps(owner))
    os.link(folder / "old.owner", folder / "abc")
    with Leases(folder, "next", 600.0) as leases:
        assert leases.take_over() == ["old"]


def test_two_watchers_of_one_dead_node_do_not_both_get_its_chunk(node):
    dead, first, second = node("n1"), node("n2"), node("n3")
    assert dead.acquire("abc")
    stop_heart(dead)
    end = time.monotonic() + 5
    won: list[Leases] = []
    while not won and time.monotonic() < end:
        for watcher in (first, second):
            watcher.take_over()
        won = [watcher for watcher in (first, second) if watcher.acquire("abc")]
        time.sleep(0.05)
    assert len(won) == 1


def test_a_claim_that_changed_hands_meanwhile_is_put_back(node, folder):
    late, holder = node("n1"), node("n2")
    assert holder.acquire("abc")
    assert not late._remove("abc", inode=1)  # it had judged another owner, long gone
    assert holder.holds("abc")
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_node_that_was_taken_for_dead_begins_anew(node):
    first, second = node("n1"), node("n2")
    assert first.acquire("abc")
    stop_heart(first)
    assert watch(second, 1.2) == ["n1"]
    assert second.acquire("abc")
    assert not first.acquire("abc")
    assert first.acquire("abd")
    assert first.holds("abd")
    first.release("abc")
    assert second.holds("abc")


def test_a_lease_without_length_is_refused(folder):
    with pytest.raises(UserError, match="lease_s=0"):
        Leases(folder, "n1", 0.0)


def test_processes_racing_for_chunks_share_them_out_without_overlap(folder):
    program = (
        "import sys; from pathlib import Path; from data_pipeline.staging.leases import Leases\n"
        "leases = Leases(Path(sys.argv[1]), sys.argv[2], 60.0).__enter__()\n"
        "got = [f'{i:03x}' for i in range(300) if leases.acquire(f'{i:03x}')]\n"
        "print(*got, flush=True); sys.stdin.read()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), f"n{i}"],
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    won = [racer.stdout.readline().split() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate("")
    together = [chunk for chunks in won for chunk in chunks]
    assert len(together) == 300
    assert len(set(together)) == 300

"""What is handed out, to whom, and how often: without Blender."""

import time
from pathlib import Path

import pytest

from data_pipeline.contract import SAMPLE_MEMBERS, UserError
from data_pipeline.render import work_queue
from data_pipeline.render.options import RenderOptions
from data_pipeline.render.work_queue import Attempt, LeaseLostError, WorkQueue
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging, chunk_of

RECORD = {"config_hash": "0123456789abcdef", "render_spec": {"seed": 0}, "blender": "4.5"}
MEMBERS = dict.fromkeys(SAMPLE_MEMBERS, b"content")


def assets(*names: str) -> list[Asset]:
    return [Asset(uid=name, path=Path(f"{name}.glb"), captions=("a",)) for name in names]


class Process:
    """A render process without its workers."""

    def __init__(self, root: Path, names, monkeypatch, node: str = "n1", run_id: str = "", **how):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        self.options = RenderOptions(lease_s=0.5, run_id=run_id or node, **how)
        self.staging = Staging(root)
        self.session = self.staging.open_for_render(
            RECORD, lease_s=0.5, run_id=self.options.run_name(), num_assets=len(names)
        )
        self.session.__enter__()
        self.queue = WorkQueue(assets(*names), self.staging, self.session, self.options)
        self.attempts = self.queue.attempts()

    def next(self) -> Attempt | None:
        return next(self.attempts)

    def end(self, attempt: Attempt, reason: str | None = None) -> bool:
        self.queue.check_claim(attempt)
        uid = attempt.asset.uid
        record = {"uid": uid, "attempts": attempt.number, "give_up_at": attempt.give_up_at}
        if reason is None:
            self.session.publish_members(MEMBERS, uid)
            self.session.append(record | {"status": "done"})
        else:
            self.session.append(record | {"status": "failed", "reason": reason})
        return self.queue.settle(attempt, reason)

    def work(self, outcomes: dict[str, str | None]) -> list[tuple[str, int]]:
        """Work off what there is; return every attempt as uid and number."""
        seen = []
        for attempt in self.attempts:
            if attempt is None:
                time.sleep(0.02)
                continue
            seen.append((attempt.asset.uid, attempt.number))
            self.end(attempt, outcomes.get(attempt.asset.uid))
        return sorted(seen)

    def leave(self) -> None:
        self.session.__exit__(None, None, None)

    def die(self) -> None:
        """End without a word, as kill -9 does."""
        self.session.leases._ended.set()


@pytest.fixture
def process(tmp_path, monkeypatch):
    made = []

    def start(*names: str, **how) -> Process:
        made.append(Process(tmp_path / "out", names, monkeypatch, **how))
        return made[-1]

    yield start
    for one in made:
        one.leave()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(work_queue, "POLL_S", 0.05)


def test_every_asset_is_handed_out_once_and_the_next_run_hands_out_none(process):
    assert process("a", "b", "c").work({"b": "empty"}) == [("a", 1), ("b", 1), ("c", 1)]
    again = process("a", "b", "c", node="n2")
    assert again.queue.num_unsettled == 0
    assert again.work({}) == []


def test_failures_that_may_pass_are_tried_again_then_given_up(process):
    first = process("a", "b", "c", max_attempts=3)
    seen = first.work({"a": "crash", "b": "unreadable"})
    assert seen == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1)]
    assert process("a", "b", "c", node="n2", max_attempts=9).work({}) == []


def test_an_interrupted_count_of_attempts_goes_on(process):
    first = process("a", max_attempts=2)
    attempt = first.next()
    assert not first.end(attempt, "oom")
    first.leave()
    assert process("a", node="n2", max_attempts=2).work({"a": "oom"}) == [("a", 2)]


def test_retry_touches_only_the_assets_that_failed_for_that_reason(process):
    process("a", "b", "c").work({"a": "timeout", "b": "empty"})
    asked = process("a", "b", "c", node="n2", retry="timeout")
    assert asked.work({"a": "timeout"}) == [("a", 3), ("a", 4)]
    everything = process("a", "b", "c", node="n3", retry="all")
    assert everything.work({}) == [("a", 5), ("b", 2)]


def test_the_nodes_of_one_run_retry_an_asset_once_between_them(process):
    process("a").work({"a": "empty"})
    one = process("a", node="n2", run_id="again", retry="empty")
    other = process("a", node="n3", run_id="again", retry="empty")
    assert one.work({"a": "empty"}) == [("a", 2)]
    time.sleep(0.1)
    assert other.work({}) == []


def test_an_asset_whose_sample_was_removed_is_rendered_again(process, tmp_path):
    process("a", "b").work({})
    Staging(tmp_path / "out").samples.path("a").unlink()
    assert process("a", "b", node="n2").work({}) == [("a", 2)]


def test_two_nodes_share_out_the_assets_and_wait_for_each_other(process):
    names = [f"asset_{i}" for i in range(20)]
    nodes = [process(*names, node="n1"), process(*names, node="n2")]
    seen: list[str] = []
    while nodes:
        for node in list(nodes):
            try:
                attempt = node.next()
            except StopIteration:
                nodes.remove(node)
                continue
            if attempt is None:
                time.sleep(0.02)
            else:
                seen.append(attempt.asset.uid)
                node.end(attempt)
    assert sorted(seen) == sorted(names)


def test_what_a_dead_node_held_is_done_by_the_others(process):
    dead, living = process("a", "b", node="n1"), process("a", "b", node="n2")
    lost = dead.next()
    dead.die()
    seen = []
    end = time.monotonic() + 10
    for attempt in living.attempts:
        assert time.monotonic() < end
        if attempt is None:
            time.sleep(0.02)
        else:
            seen.append(attempt.asset.uid)
            living.end(attempt)
    assert sorted(seen) == ["a", "b"]
    with pytest.raises(LeaseLostError):
        dead.queue.check_claim(lost)
    assert not dead.session.scratch.exists()


def test_a_chunk_is_given_back_when_its_last_asset_is_settled(process, tmp_path):
    one = process("a", "b")
    attempt = one.next()
    lease = tmp_path / "out" / "leases" / chunk_of(attempt.asset.uid)
    assert lease.exists()
    one.end(attempt)
    assert not lease.exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"retry": "bad luck"}, "no reason of failure"),
        ({"workers": 0}, "workers=0"),
        ({"timeout_s": -1}, "timeout_s=-1"),
        ({"rss_limit_mb": 0}, "rss_limit_mb=0"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"gpus": "some"}, "gpus=some"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(how, message):
    with pytest.raises(UserError, match=message):
        RenderOptions(**how)

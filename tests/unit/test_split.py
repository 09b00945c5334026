from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.loading.order import GlobalOrder
from data_pipeline.loading.split import OrderOfChosen, held_back

UIDS = sorted(f"{kind}_{i}" for kind in ("chair", "mug", "lamp") for i in range(20))


def names(uids, count):
    return {uids[i] for i in held_back(uids, count)}


@given(
    st.lists(st.from_regex(r"[ab]([_-][ab]){0,3}", fullmatch=True), unique=True), st.integers(0, 9)
)
def test_groups_stay_together_and_no_more_than_a_fifth_is_held_back(uids, count):
    held = names(uids, count)
    assert len(held) <= min(count, len(uids) // 5)
    for uid in uids:
        for other in uids:
            if other.startswith((f"{uid}_", f"{uid}-")):
                assert (uid in held) == (other in held)


def test_the_choice_depends_on_names_alone_and_a_smaller_one_is_part_of_it():
    assert len(names(UIDS, 12)) == 12
    assert names(UIDS[::-1], 12) == names(UIDS, 12)
    assert names(UIDS, 5) < names(UIDS, 12)


def test_given_groups_are_kept_whole_whatever_their_names():
    groups = {uid: f"group_{i // 4}" for i, uid in enumerate(UIDS)}
    held = {UIDS[i] for i in held_back(UIDS, 12, groups)}
    assert len(held) == 12
    assert len({groups[uid] for uid in held}) == 3


def test_a_set_too_small_to_spare_a_sample_holds_none_back():
    assert held_back(UIDS[:4], 12) == []
    assert len(held_back(UIDS[:5], 12)) == 1


def test_training_sees_the_chosen_samples_equally_often_at_unchanged_positions():
    chosen = [3, 5, 8, 13]
    plain = list(islice(GlobalOrder(4, 2, seed=0), 6))
    moved = list(islice(OrderOfChosen(GlobalOrder(4, 2, seed=0), chosen), 6))
    assert moved == [[(position, chosen[i]) for position, i in batch] for batch in plain]
    drawn = [i for batch in moved for _, i in batch]
    assert {i: drawn.count(i) for i in chosen} == dict.fromkeys(chosen, 3)

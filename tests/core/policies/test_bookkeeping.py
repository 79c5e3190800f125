"""What a group's rewards do to its question: counts, retirement, continuous rewards, review (Alg. 1, section 5.3, Table 7)."""

import numpy as np
import pytest
from steps import K, Lent, finish, fresh, make, past, rewards, stored

from recipe.exgrpo.core.config import BookkeepingConfig
from recipe.exgrpo.core.policies.bookkeeping import success_count
from recipe.exgrpo.core.policies.policy import Group


def exgrpo(bookkeeping=None, **values):
    return make("exgrpo", bookkeeping=bookkeeping or {}, **values)


def counts_after(policy, group: Group) -> tuple[int | None, bool, list[int]]:
    """(latest count, retired, positions of the fresh rollouts that were stored) after a step with one group."""
    read = finish(policy, [group]).members
    store = policy.store
    return store.latest_count(group.question), store.is_retired(group.question), [j for _, j in read]


def planned(policy, size=10) -> list[str]:
    """The stored questions of the next plan."""
    return [slot.question for slot in policy.plan(size, fresh()) if slot.planned]


def group(successes: int, of: int = K, replayed: float | None = None, question: str = "q") -> Group:
    """`of` fresh rollouts, and a stored trajectory of reward `replayed`."""
    joined = [] if replayed is None else [past(question, replayed)]
    return Group(question, rewards(successes, of), joined)


# ---- success counts


@pytest.mark.parametrize(
    ("graded", "outcome"),
    [
        (group(0), (0, False, [])),
        (group(1), (1, False, [0])),
        (Group("q", [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), (2, False, [1, 4])),
        (group(K - 1), (K - 1, False, list(range(K - 1)))),
        (group(K), (None, True, [])),
        # The replayed success counts (Alg. 1) and is never stored again: positions are those of fresh rollouts.
        (group(0, K - 1, 1.0), (1, False, [])),
        (group(3, K - 1, 1.0), (4, False, [0, 1, 2])),
        (group(K - 1, K - 1, 1.0), (None, True, [])),
        (group(3, K - 1, 0.0), (3, False, [0, 1, 2])),
        # Rewards other than 0 and 1: above the threshold is a success.
        (Group("q", [0.5, 0.51, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0]), (2, False, [1, 3])),
    ],
    ids=str,
)
def test_outcomes_of_a_group(graded, outcome):
    assert counts_after(stored(exgrpo(), {"q": 4}), graded) == outcome


@pytest.mark.parametrize(("successes", "outcome"), [(0, (None, False, [])), (3, (3, False, [0, 1, 2]))])
def test_a_question_never_solved_is_not_recorded(successes, outcome):
    assert counts_after(exgrpo(), group(successes)) == outcome


@pytest.mark.parametrize("size", [1, 3, K - 1, K + 1])
@pytest.mark.parametrize("replayed", [None, 1.0])
def test_a_partial_group_changes_nothing(size, replayed):
    tried = size - (replayed is not None)
    for successes in {0, tried}:
        policy = stored(exgrpo(), {"q": 4})
        assert counts_after(policy, group(successes, tried, replayed)) == (4, False, [])
        assert len(policy.store.rows("q")) == 1
        assert policy.metrics(1)["partial_groups"] == 1


def test_all_solved_retires_for_good():
    policy = stored(exgrpo(), {"q": 4}, rows=3)
    assert counts_after(policy, group(K)) == (None, True, [])
    assert len(policy.store.rows("q")) == 0
    # Drawn all the same, as when every question is retired: nothing is stored, nothing counted twice.
    assert counts_after(policy, group(3)) == (None, True, [])
    assert counts_after(policy, group(K)) == (None, True, [])
    assert policy.metrics(1)["newly_retired"] == 1
    assert planned(policy) == []


def test_all_solved_without_retirement_leaves_the_buckets_and_may_come_back():
    policy = stored(exgrpo({"retire": False}, rho=1.0), {"q": 4})
    assert counts_after(policy, group(K)) == (0, False, [])
    assert planned(policy) == []
    assert len(policy.store.rows("q")) == 1
    finish(policy, [group(5)])
    assert planned(policy) == ["q"]
    assert counts_after(policy, group(K, question="new")) == (None, False, [])


def test_none_solved_makes_a_question_ineligible_until_it_is_solved_again():
    policy = stored(exgrpo(rho=1.0), {"q": 4})
    assert counts_after(policy, group(0)) == (0, False, [])
    assert planned(policy) == []
    finish(policy, [group(2)])
    assert planned(policy) == ["q"]


def test_none_solved_changes_nothing_as_in_the_released_code():
    policy = stored(exgrpo({"keep_unsolved": True}, rho=1.0), {"q": 4})
    assert counts_after(policy, group(0)) == (4, False, [])
    assert planned(policy) == ["q"]


@pytest.mark.parametrize(
    ("successes", "replayed", "outcome"),
    [
        (0, 1.0, (0, False, [])),  # only the past solved it
        (1, 1.0, (1, False, [0])),  # round(8/7)
        (3, 1.0, (3, False, [0, 1, 2])),  # round(24/7)
        (4, 1.0, (5, False, [0, 1, 2, 3])),  # round(32/7)
        (6, 1.0, (7, False, [0, 1, 2, 3, 4, 5])),
        (7, 1.0, (None, True, [])),
        (3, None, (3, False, [0, 1, 2])),
    ],
)
def test_fresh_only_counts_fresh_rollouts_scaled_to_k(successes, replayed, outcome):
    policy = stored(exgrpo({"fresh_only": True}), {"q": 4})
    assert counts_after(policy, group(successes, K - (replayed is not None), replayed)) == outcome


@pytest.mark.parametrize("group_size", [2, 3, 5, 64])
def test_fresh_only_reaches_the_ends_only_at_the_ends(group_size):
    config, tried = BookkeepingConfig(fresh_only=True), group_size - 1
    scaled = [success_count(group(s, tried, 1.0), group_size, config) for s in range(tried + 1)]
    assert scaled[0] == 0
    assert scaled[-1] == group_size
    assert all(1 <= s < group_size for s in scaled[1:-1])
    assert scaled == sorted(scaled)


@pytest.mark.parametrize(
    ("successes", "count", "kept"),
    [(1, 4, False), (2, 4, False), (3, 3, True), (5, 5, True), (6, 4, False), (7, 4, False)],
)
def test_only_counts_above_lower_and_up_to_upper_are_recorded(successes, count, kept):
    policy = stored(exgrpo({"lower": 2, "upper": 5}), {"q": 4})
    assert counts_after(policy, group(successes)) == (count, False, list(range(successes)) if kept else [])


def test_bounds_do_not_hide_all_solved_or_none_solved():
    policy = stored(exgrpo({"lower": 2, "upper": 5}), {"easy": 4, "hard": 4})
    assert counts_after(policy, group(K, question="easy")) == (None, True, [])
    assert counts_after(policy, group(0, question="hard")) == (0, False, [])


def test_positions_belong_to_their_groups():
    groups = [
        Group("a", rewards(0)),
        Group("b", rewards(2)),
        Group("c", [1.0]),
        Group("d", rewards(K)),
        Group("e", rewards(1)),
    ]
    policy = exgrpo()
    assert finish(policy, groups).read == [[(1, 0), (1, 1), (4, 0)]]
    metrics = policy.metrics(1)
    assert (metrics["newly_retired"], metrics["partial_groups"], metrics["added"]) == (1, 1, 3)
    assert [policy.store.trajectory(int(row)).token_ids.tolist() for row in policy.store.rows("b")] == [
        [1, 0, 7],
        [1, 1, 7],
    ]


def test_a_question_twice_in_a_step_may_retire_by_its_second_group():
    """As with a dataset smaller than the batch."""
    policy = exgrpo()
    assert finish(policy, [group(3), group(K), group(2)]).members == []
    assert policy.store.retired == ["q"]
    again = exgrpo()
    assert finish(again, [group(3), group(2)]).members == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert again.store.latest_count("q") == 2


# ---- continuous rewards

WIDE = [0.0, 1.0] * 4
MIDDLE = [0.2, 0.6, 0.9, 0.2, 0.6, 0.2, 0.6, 0.2]  # mean 0.4375
FLAT = [0.9] * 8


def continuous(**bookkeeping):
    return exgrpo({"outcome": "reward_spread", **bookkeeping})


def test_spread_decides_the_bucket_and_the_group_mean_what_is_stored():
    policy = continuous()
    read = finish(policy, [Group("wide", WIDE), Group("middle", MIDDLE), Group("flat", FLAT)]).members
    assert read == [(0, 1), (0, 3), (0, 5), (0, 7), (1, 1), (1, 2), (1, 4), (1, 6)]
    store = policy.store
    assert store.latest_count("wide") == K - 1
    assert store.latest_count("middle") == round(np.std(MIDDLE) / 0.5 * K) == 4
    assert store.latest_count("flat") is None  # never seen with a spread: not recorded
    assert not store.retired
    assert [store.trajectory(int(row)).reward for row in store.rows("middle")] == pytest.approx([0.6, 0.9, 0.6, 0.6])


def test_counting_successes_would_have_said_something_else():
    policy = exgrpo()
    read = finish(policy, [Group("wide", WIDE), Group("middle", MIDDLE), Group("flat", FLAT)]).members
    assert read == [(0, 1), (0, 3), (0, 5), (0, 7), (1, 1), (1, 2), (1, 4), (1, 6)]
    assert (policy.store.latest_count("wide"), policy.store.latest_count("middle")) == (4, 4)
    assert policy.store.is_retired("flat")


def test_the_replayed_reward_belongs_to_the_group():
    policy = continuous()
    groups = [Group("q", [0.0] * 7, [past()]), Group("flat", FLAT), Group("wide", WIDE), Group("partial", [0.0, 5.0])]
    assert finish(policy, groups).members == [(2, 1), (2, 3), (2, 5), (2, 7)]
    assert policy.store.latest_count("q") == round(np.std([0.0] * 7 + [1.0]) / 0.5 * K) == 5
    assert policy.metrics(1)["partial_groups"] == 1
    assert policy.store.latest_count("partial") is None


def test_a_question_that_lost_its_spread_is_ineligible_until_it_has_one_again():
    policy = continuous()
    finish(policy, [Group("q", MIDDLE), Group("flat", FLAT), Group("wide", WIDE)])
    finish(policy, [Group("q", FLAT), Group("wide", WIDE)])
    assert policy.store.latest_count("q") == 0
    finish(policy, [Group("q", MIDDLE), Group("flat", FLAT), Group("wide", WIDE)])
    assert policy.store.latest_count("q") == 4


# ---- retired review (Table 7)

EVERYTHING = {"review_interval": 1, "review_share": 1.0}


def reviews_of(bookkeeping, steps, start_threshold=None):
    """(questions under review in the batch, retired ones left) of each step, all 45 questions being retired at first."""
    policy = exgrpo(bookkeeping, start_threshold=start_threshold)
    for i in range(45):
        policy.store.retire(f"q{i}")
    for step in range(1, steps + 1):
        slots = policy.plan(4, fresh())
        finish(policy, [group(0, question="unsolved")], step, pass_rate=0.0)
        assert policy.metrics(step)["reviewed"] == sum(slot.question.startswith("q") for slot in slots)
        yield policy.metrics(step)["reviewed"], len(policy.store.retired)


def test_a_tenth_of_the_retired_comes_into_the_batch_again_after_every_interval():
    sizes = list(reviews_of({"review_interval": 25, "review_share": 0.1}, steps=52))
    five, four = [(4, 41), (1, 40)], [(4, 36), (0, 36)]  # ceil(4.5) and ceil(4.0), in steps of 4
    assert sizes == [(0, 45)] * 25 + five + [(0, 40)] * 23 + four


@pytest.mark.parametrize("bookkeeping", [{}, {"review_interval": 0, "review_share": 1.0}])
def test_review_is_off_by_default(bookkeeping):
    assert set(reviews_of(bookkeeping, steps=50)) == {(0, 45)}


def test_review_waits_for_replay():
    assert set(reviews_of(EVERYTHING, 3, start_threshold=0.5)) == {(0, 45)}


def test_review_of_nothing_and_of_everything():
    policy = exgrpo(EVERYTHING)
    finish(policy, [], step=1)
    for question in "abc":
        policy.store.retire(question)
    finish(policy, [], step=2)
    finish(policy, [], step=3)  # already on their way: none is chosen twice
    slots = policy.plan(8, fresh())
    assert sorted((slot.question, slot.rollouts) for slot in slots if slot.planned) == [("a", K), ("b", K), ("c", K)]
    assert len({slot.question for slot in slots}) == 8
    assert policy.store.retired == []
    assert not any(slot.planned for slot in policy.plan(8, fresh()))


def test_the_share_is_of_the_questions_that_are_not_on_their_way_already():
    policy = exgrpo({"review_interval": 1, "review_share": 0.5})
    for question in "abcdef":
        policy.store.retire(question)
    found = policy.bookkeeping.review(1, policy.rng, {"a", "c", "e", "f"})
    assert len(found) == 1
    assert set(found) < set("bd")


def test_a_reviewed_question_is_graded_anew_when_it_is_in_the_batch_again():
    policy = exgrpo(EVERYTHING)
    policy.store.retire("q")
    finish(policy, [], step=1)
    assert counts_after(policy, group(3)) == (None, True, [])
    (slot,) = policy.plan(1, fresh())
    assert slot.question == "q"
    lent = Lent()
    assert policy.inject([Group("q", rewards(3), planned=True)], lent.tools, 2) == {}  # nothing of it is stored
    assert counts_after(policy, group(3)) == (3, False, [0, 1, 2])
    assert (policy.metrics(2)["planned_questions"], policy.metrics(2)["skipped_replays"], lent.scored) == (0, 0, [])


def test_a_reviewed_question_may_retire_again():
    policy = exgrpo(EVERYTHING)
    policy.store.retire("q")
    finish(policy, [], step=1)
    policy.plan(1, fresh())
    assert counts_after(policy, group(K)) == (None, True, [])


def test_a_question_on_its_way_back_stays_so_over_a_restart(restored):
    policy = exgrpo(EVERYTHING)
    for question in "abc":
        policy.store.retire(question)
    finish(policy, [], step=1)
    state, store = policy.state_dict(), restored(policy.store)
    store.discard("b")  # left the dataset meanwhile
    resumed = exgrpo(EVERYTHING)
    resumed.load_state_dict(state, store)
    assert sorted(planned(resumed)) == ["a", "c"]

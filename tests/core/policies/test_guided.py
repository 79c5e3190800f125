"""LUFFY and RLEP: traces from elsewhere in the groups of their questions, by hand."""

from collections import Counter

import numpy as np
import pytest
from steps import K, Loader, finish, make, rewards

from recipe.exgrpo.core.buffer import Origin, Response
from recipe.exgrpo.core.policies.policy import Group

NAMES = ["q0", "q1", "q2", "q3"]


def guided(policy="luffy", traces=(1, 1, 0, 3), **values):
    """A policy whose store has so many traces of q0, q1, ...; trace j of question i is [100 i + j, 7]."""
    made = make(policy, **values)
    made.store.origin = Origin("teacher", "", 1.0, "one")
    for i, n in enumerate(traces):
        for j in range(n):
            made.store.add(f"q{i}", Response([100 * i + j, 7], [0.0, 0.0]), 1.0, step=0)
    made.store.origin = Origin()
    return made


def step(policy, number=1, questions=NAMES):
    """Plan and inject; returns slots by question, groups, and what joined them."""
    slots = policy.plan(len(questions), Loader(questions))
    groups = [Group(slot.question, rewards(1, slot.rollouts), planned=slot.planned) for slot in slots]
    joined = policy.inject(groups, None, number)
    for i, found in joined.items():
        groups[i].joined += found
    return {slot.question: slot.rollouts for slot in slots}, groups, joined


def test_luffy_puts_one_trace_into_the_group_of_its_question():
    policy = guided()
    asked, groups, joined = step(policy)
    assert asked == {"q0": K - 1, "q1": K - 1, "q2": K, "q3": K - 1}
    assert {i: [t.token_ids.tolist() for t in found] for i, found in joined.items() if i < 3} == {
        0: [[0, 7]],
        1: [[100, 7]],
    }
    assert [group.size for group in groups] == [K] * 4
    finish(policy, groups, 1)
    metrics = policy.metrics(1)
    assert (metrics["guided_groups"], metrics["replayed_rows"], metrics["imported_trajectories"]) == (3, 3, 5)
    assert (metrics["added"], metrics["buffer_trajectories"], metrics["age_steps_max"]) == (0, 5, 1)


def test_of_several_traces_all_are_equally_likely():
    policy, seen = guided(traces=(5,)), Counter()
    for number in range(1, 401):
        (trace,) = step(policy, number, ["q0"])[2][0]
        seen[int(trace.token_ids[0])] += 1
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert min(seen.values()) > 50  # of 80


def test_rlep_adds_as_many_successes_as_there_are_up_to_two():
    policy = guided("rlep")
    asked, groups, joined = step(policy)
    assert asked == {"q0": K - 1, "q1": K - 1, "q2": K, "q3": K - 2}
    assert [len(found) for found in joined.values()] == [1, 1, 2]
    assert len({int(t.token_ids[0]) for t in joined[3]}) == 2
    assert [group.size for group in groups] == [K] * 4
    assert sum(groups[3].rewards) == 1 + 2


def test_any_two_of_three_are_equally_likely():
    policy, seen = guided("rlep", traces=(3,)), Counter()
    for number in range(1, 301):
        seen[frozenset(int(t.token_ids[0]) for t in step(policy, number, ["q0"])[2][0])] += 1
    assert len(seen) == 3
    assert min(seen.values()) > 70  # of 100


@pytest.mark.parametrize(("members", "fresh"), [(10, 8), (18, 16)])
def test_two_join_as_many_fresh_rollouts_as_the_group_has_beside_them(members, fresh):
    """The preset's groups of 8 + 2 and the paper's of 16 + 2: `rollout.n` counts both."""
    policy = make("rlep", members)
    for j in range(3):
        policy.store.add("q0", Response([j, 7], [0.0, 0.0]), 1.0, step=0)
    asked, groups, joined = step(policy, questions=["q0", "q1"])
    assert asked == {"q0": fresh, "q1": members}
    assert [len(found) for found in joined.values()] == [2]
    assert [group.size for group in groups] == [members] * 2


def test_how_many_is_an_option():
    asked, _, joined = step(guided("rlep", options={"per_group": 3}))
    assert (asked["q3"], len(joined[3])) == (K - 3, 3)
    for options, group_size in (({"per_group": 0}, K), ({"per_group": 4}, 4)):
        with pytest.raises(ValueError, match="at least one rollout must be fresh"):
            make("rlep", group_size, options=options)


def test_without_traces_it_is_the_baseline():
    policy = make("luffy")
    asked, groups, joined = step(policy)
    assert (set(asked.values()), joined) == ({K}, {})
    finish(policy, groups, 1)
    assert {policy.metrics(1)[name] for name in ("guided_groups", "imported_trajectories", "replayed_rows")} == {0}


def test_nothing_joins_before_the_start():
    policy = guided(start_threshold=0.5)
    assert set(step(policy)[0].values()) == {K}
    assert step(policy)[2] == {}


def test_a_group_that_was_fetched_for_a_failed_one_has_all_its_rollouts_and_no_trace():
    policy = guided()
    policy.plan(2, Loader(["q0", "q1"]))
    slot = policy.draw(Loader(["q3"]))
    assert slot.rollouts == K
    assert policy.inject([Group("q3", rewards(1))], None, 1) == {}


def test_what_the_gate_holds_stays_out_and_is_counted():
    policy = guided(gate="recent", refill={"max_age_steps": 3})
    assert len(step(policy, 3)[2]) == 3
    _, groups, joined = step(policy, 4)
    assert joined == {}
    finish(policy, groups, 4)
    assert (policy.metrics(4)["skipped_replays"], policy.metrics(4)["guided_groups"]) == (3, 0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"admit": "everything"}, "exgrpo.admit has no say"),
        ({"place": "zero_variance"}, "exgrpo.place has no say"),
        ({"rank": "lowest_entropy"}, "needs scores"),
        ({"inject": False}, "a control of stored questions"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        make("luffy", **values)


def test_draws_come_from_the_saved_generator():
    a, b = guided(traces=(9,)), guided(traces=(9,))
    step(a, 1, ["q0"])
    b.load_state_dict(a.state_dict(), b.store)
    for number in range(2, 12):
        x, y = (step(p, number, ["q0"])[2][0][0].token_ids for p in (a, b))
        np.testing.assert_array_equal(x, y)

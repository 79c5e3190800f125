"""Headroom-Drift Replay: whole groups with frozen advantages, their order, the gate, what is scored, capacity and state."""

import json
import math

import numpy as np
import pytest
from steps import K, Lent, finish, fresh, log_probs_of, make, rewards

from recipe.exgrpo.core.policies.fill import StoredGroups, pooled
from recipe.exgrpo.core.policies.headroom import Headroom
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Arrangement, Group
from recipe.exgrpo.core.selection import Scores

FREE = K  # rows of the group that a step frees


def policy_of(start_threshold=None, place="steps:free_rows", **values) -> Headroom:
    """A policy whose freed rows a test names (`steps.free_rows`), active from the first step."""
    return make("headroom", start_threshold=start_threshold, place=place, **values)


def ids(i: int, j: int) -> list[int]:
    """Rollout j has j % 3 + 1 tokens; a question that stands further back has lower log-probs (`steps.log_probs_of`)."""
    return [100 * (i + 1) + j] * (j % 3 + 1)


def collect(policy: Headroom, counts: dict[str, int], step: int = 1) -> None:
    """A finished step, in which each question had k successes."""
    groups = [Group(question, rewards(successes)) for question, successes in counts.items()]
    finish(policy, groups, step=step, ids=ids)


def draw(policy: Headroom, step: int = 2, budget: int = FREE, **lent) -> tuple[Arrangement, Lent]:
    """The arrangement of a step with `budget` freed rows."""
    tools = Lent(**lent)
    policy.plan(1, fresh())
    return policy.arrange([Group(f"free{budget}", rewards(0, max(budget, 2)))], tools.tools, step), tools


def questions(arrangement: Arrangement) -> list[str]:
    """Of the placed rows, each once, in order."""
    return list(dict.fromkeys(placed.trajectory.question for placed in arrangement.place))


# ---- what comes back


def test_a_group_comes_back_whole_with_frozen_advantages_and_log_probs():
    policy = policy_of()
    collect(policy, {"a": 3})
    arrangement, _ = draw(policy)
    assert [placed.advantage for placed in arrangement.place] == [1 - 3 / 8] * 3 + [-3 / 8] * 5
    assert [placed.trajectory.reward for placed in arrangement.place] == rewards(3)
    for j, placed in enumerate(arrangement.place):
        assert placed.trajectory.token_ids.tolist() == ids(0, j)
        assert placed.trajectory.log_probs.tolist() == pytest.approx(log_probs_of(ids(0, j)))
        assert (placed.trajectory.use_count, placed.trajectory.prompt_ids.tolist()) == (0, [0, 1])
    assert policy.store.candidates().use_count.tolist() == [1] * K
    metrics = policy.metrics(2)
    assert (metrics["drawn_groups"], metrics["replayed_rows"], metrics["candidates_scored"]) == (1, K, K)


@pytest.mark.parametrize("successes", [0, K])
def test_groups_without_variance_are_not_stored(successes):
    policy = policy_of()
    collect(policy, {"a": successes})
    assert policy.metrics(1)["added"] == 0


def test_stored_rows_are_clipped_against_their_own_log_probs():
    assert (policy_of().loss.shaping, policy_of().loss.importance) == ("clip", "past")


# ---- the order


def headroom_of(tokens: list[list[float]], advantages: list[float]) -> float:
    """By definition, token by token: mean of 1 - pi where A > 0 and of pi where A < 0."""
    each = [1 - math.exp(x) if a > 0 else math.exp(x) for row, a in zip(tokens, advantages, strict=True) for x in row]
    return sum(each) / len(each)


def test_at_first_by_the_headroom_of_the_stored_log_probs():
    policy, counts = policy_of(), {"a": 1, "b": 7, "c": 4, "d": 2}
    collect(policy, counts)
    expected = {}
    for i, (question, k) in enumerate(counts.items()):
        rows = [log_probs_of(ids(i, j)) for j in range(K)]
        expected[question] = headroom_of(rows, [1.0] * k + [-1.0] * (K - k))
    order = sorted(expected, key=expected.get, reverse=True)
    assert order != sorted(counts)
    found, tools = draw(policy, budget=4 * K, headroom=lambda trajectory: 0.0)
    assert questions(found) == order
    assert len(tools.scored) == 1
    policy = policy_of()
    collect(policy, counts)
    draw(policy, budget=2)  # too little for a group: nothing is scored, and the headroom is that at collection
    assert list(policy.known.values()) == pytest.approx(list(expected.values()), rel=1e-6)


def order(policy: Headroom) -> list[str]:
    """Questions by headroom at collection."""
    collect(policy, {"a": 1, "b": 2, "c": 4})
    return questions(draw(policy, budget=3 * K)[0])


def test_then_by_what_the_last_forward_pass_found():
    policy = policy_of()
    collect(policy, {"a": 1, "b": 2, "c": 4})
    first = questions(draw(policy, headroom=lambda t: 0.0)[0])
    left = {"a": 0.2, "b": 0.3, "c": 0.1}
    # A group keeps its place until it was looked at, and then falls to what is left of it: here each in its turn.
    seen = [questions(draw(policy, headroom=lambda t: left[t.question])[0]) for _ in range(3)]
    assert [*first, *seen[0], *seen[1]] == order(policy_of())
    assert seen[2] == ["b"]
    draw(policy, budget=3 * K, headroom=lambda t: left[t.question])
    assert list(policy.known.values()) == pytest.approx([0.2, 0.3, 0.1])
    assert questions(draw(policy, budget=3 * K, headroom=lambda t: left[t.question])[0]) == ["b", "a", "c"]


def test_scores_of_a_group_are_means_over_tokens():
    rng = np.random.default_rng(0)
    sizes, tokens = [3, 1, 2], [5, 1, 2, 7, 3, 3]
    values = [rng.random((4, n)) for n in tokens]
    means = [value.mean(1) for value in values]
    found = pooled(Scores(*np.array(means).T), tokens, sizes)
    start = 0
    for i, size in enumerate(sizes):
        whole = np.concatenate(values[start : start + size], axis=1).mean(1)
        assert [found.entropy[i], found.nll[i], found.headroom[i], found.drift[i]] == pytest.approx(whole.tolist())
        start += size


def test_a_groups_drift_is_the_mean_over_its_tokens():
    """One token of nine drifts by 0.9, so that the group is just within 0.1, and not within 0.0999."""
    for bound, drawn in ((0.1001, 1), (0.0999, 0)):
        policy = policy_of(rows={"max_drift": bound})
        finish(policy, [Group("a", rewards(1))], ids=lambda i, j: [j] * (2 if j == 0 else 1))
        arrangement, _ = draw(policy, drift=lambda t: 0.45 if len(t.token_ids) == 2 else 0.0)
        assert len(arrangement.place) == K * drawn
        assert policy.metrics(2)["drift_mean"] == pytest.approx(0.1 * drawn)


# ---- the gate


def test_what_has_drifted_is_refused_and_the_next_comes():
    policy = policy_of(rows={"max_drift": 0.01})
    collect(policy, {"a": 1, "b": 2, "c": 4})
    order = questions(draw(policy, budget=3 * K)[0])
    arrangement, tools = draw(policy, drift=lambda t: 0.02 if t.question == order[0] else 0.01)
    # Twice the budget is scored at once: two, of which the second enters; the third is not.
    assert questions(arrangement) == [order[1]]
    assert [[t.question for t in call] for call in tools.scored] == [sorted([*[order[0]] * K, *[order[1]] * K])]
    assert (policy.metrics(2)["refused_groups"], policy.metrics(2)["candidates_scored"]) == (1, 2 * K)
    assert len(policy.store.rows(order[0])) == K  # it stays: the policy may come back to it


def test_when_all_have_drifted_nothing_comes_and_each_was_looked_at_once():
    policy = policy_of()
    collect(policy, {"a": 1, "b": 2, "c": 4})
    arrangement, tools = draw(policy, drift=lambda t: 1.0)
    assert (len(arrangement.leave), list(arrangement.place)) == (FREE, [])
    assert sorted(t.question for call in tools.scored for t in call) == ["a"] * K + ["b"] * K + ["c"] * K
    assert (policy.metrics(2)["refused_groups"], policy.metrics(2)["headroom_mean"]) == (3, 0)
    assert list(map(len, tools.scored)) == [2 * K, K]


def test_however_many_are_refused_two_calls_find_what_one_call_for_each_would():
    """Against Algorithm 1 group by group: only the two nearest of twelve enter, and only what was looked at is remembered."""
    counts = {name: 1 + i % 7 for i, name in enumerate("abcdefghijkl")}
    near = {"d", "j"}
    policy, by_hand = policy_of(rows={"max_drift": 0.01}), policy_of()
    for one in (policy, by_hand):
        collect(one, counts)
    turns = questions(draw(by_hand, budget=len(counts) * K)[0])
    last = max(turns.index(name) for name in near)
    drift = lambda t: 0.0 if t.question in near else 1.0  # noqa: E731
    arrangement, tools = draw(policy, budget=2 * K, headroom=lambda t: 0.125, drift=drift)
    assert questions(arrangement) == [name for name in turns if name in near]
    assert [len(call) // K for call in tools.scored] == [4, 8]
    assert policy.metrics(2)["refused_groups"] == last - 1
    known = StoredGroups.of(policy.store)
    names = [policy.store.trajectory(int(rows[0])).question for rows in known.rows]
    looked = {name: policy.known[int(group)] == 0.125 for name, group in zip(names, known.heads.group, strict=True)}
    assert looked == {name: i <= last for i, name in enumerate(turns)}


def test_without_the_gate_drift_does_not_matter():
    policy = policy_of(gate="always")
    collect(policy, {"a": 1})
    assert len(draw(policy, drift=lambda t: 9.0)[0].place) == K


def test_without_headroom_the_gate_is_left():
    policy = policy_of(rank="newest", rows={"max_drift": 0.01})
    collect(policy, {"a": 1, "b": 2})
    assert questions(draw(policy)[0]) == ["b"]
    assert questions(draw(policy, drift=lambda t: float(t.question == "b"))[0]) == ["a"]


def test_ranks_by_scores_of_all_are_refused():
    with pytest.raises(ValueError, match=r"exgrpo\.rank=lowest_entropy: exgrpo\.policy=headroom scores only groups"):
        policy_of(rank="lowest_entropy")


# ---- budget and capacity


@pytest.mark.parametrize(("budget", "groups"), [(0, 0), (K - 1, 0), (K, 1), (2 * K - 1, 1), (2 * K, 2), (9 * K, 3)])
def test_groups_are_not_cut(budget, groups):
    policy = policy_of()
    collect(policy, {"a": 1, "b": 2, "c": 4})
    arrangement, tools = draw(policy, budget=budget)
    assert (len(arrangement.leave), len(arrangement.place)) == (budget, groups * K)
    assert sum(map(len, tools.scored)) == min(3, 2 * budget // K if groups else 0) * K  # nothing where nothing can fit
    assert len(tools.scored) <= 1


@pytest.mark.parametrize(("share", "groups"), [(0.5, 1), (1.0, 2), (0.4, 0)])
def test_on_top_of_the_batch(share, groups):
    policy = policy_of(rows={"extra": share})
    collect(policy, {"a": 1, "b": 2, "c": 4})
    policy.plan(2, fresh())
    found = policy.arrange([Group("x", rewards(0)), Group("y", rewards(3))], Lent().tools, 2)
    assert (list(found.leave), list(found.place), len(found.extra)) == ([], [], groups * K)
    assert policy.metrics(2)["freed_rows"] == 0
    assert policy.metrics(2)["replayed_rows"] == groups * K


def test_places_are_those_of_zero_variance_groups():
    policy = policy_of(place=None)
    collect(policy, {"a": 1})
    policy.plan(3, fresh())
    found = policy.arrange([Group("x", rewards(2)), Group("y", rewards(K)), Group("z", rewards(0))], Lent().tools, 2)
    assert found.leave == [(i, j) for i in (1, 2) for j in range(K)]
    assert (len(found.place), policy.metrics(2)["zero_variance_groups"]) == (K, 2)


def test_the_oldest_groups_go_beyond_the_capacity():
    policy = policy_of(rows={"capacity": 1.5})
    for step in range(1, 4):
        finish(policy, [Group(f"q{step}{i}", rewards(1)) for i in range(2)], step=step)
        draw(policy, step, budget=2)
    kept = {policy.store.trajectory(int(rows[0])).question for rows in StoredGroups.of(policy.store).rows}
    assert kept == {"q21", "q30", "q31"}
    assert policy.store.evicted["age"] == 3 * K
    assert len(policy.known) <= 3
    finish(policy, [Group("q41", rewards(0)), Group("q42", rewards(0))], step=4)
    assert set(policy.known) <= set(policy.store.candidates().group.tolist())


def test_before_it_has_started_and_on_an_empty_store_nothing_happens():
    policy = policy_of(start_threshold=0.9)
    assert draw(policy)[0] == Arrangement()
    collect(policy, {"a": 1})
    assert policy.metrics(1) == dict.fromkeys(policy.metrics(1), 0.0)
    arrangement, tools = draw(policy_of())
    assert (len(arrangement.leave), arrangement.place, tools.scored) == (FREE, [], [])


def test_all_metrics_are_there():
    policy = policy_of()
    collect(policy, {"a": 1})
    draw(policy, headroom=lambda t: 0.4)
    assert set(METRICS) <= set(policy.metrics(2))
    assert policy.metrics(2)["headroom_mean"] == pytest.approx(0.4)


# ---- state


def test_a_resumed_run_draws_the_same(restored):
    counts, left = {"a": 1, "b": 7, "c": 4, "d": 2}, {"a": 0.2, "b": 0.7, "c": 0.1, "d": 0.6}
    policy = policy_of(rows={"capacity": 1.0})
    collect(policy, counts)
    draw(policy, budget=2 * K, headroom=lambda t: left[t.question])
    resumed = policy_of(rows={"capacity": 1.0})
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), restored(policy.store))
    assert resumed.known == policy.known
    for step in range(3, 6):
        found, again = (draw(one, step, headroom=lambda t: left[t.question] / 9)[0] for one in (policy, resumed))
        assert questions(found) == questions(again) != []
    assert resumed.state_dict() == policy.state_dict()

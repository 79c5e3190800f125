"""Zero-variance refill: whose rows are taken, by which stored groups, ages and uses, the gradient, and the state."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from steps import K, Lent, finish, fresh, log_probs_of, make, rewards

from recipe.exgrpo.core.buffer import Provenance, Response
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.loss import ClipRange, mixed_policy_loss
from recipe.exgrpo.core.policies.fill import fitting
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Arrangement, Group
from recipe.exgrpo.core.policies.rank import RANK, rarity_weights
from recipe.exgrpo.core.policies.refill import Refill


def refill(start_threshold=None, seed=0, place="steps:free_rows", **settings) -> Refill:
    """A policy whose freed rows a test names (`steps.free_rows`); `place=None` is its own rule."""
    return make("refill", start_threshold=start_threshold, seed=seed, place=place, refill=settings)


def group(successes: int, question: str = "q", size: int = K) -> Group:
    return Group(question, rewards(successes, size))


def answers(mixed: dict[str, int]):
    """Ids of rollout j of group i: j + 1 tokens that start with a number of the question's own."""
    numbers = [sum(map(ord, question)) for question in mixed]
    return lambda i, j: [numbers[i] + n for n in range(j + 1)]


def step(policy: Refill, number: int, mixed: dict[str, int] | None = None, budget: int = 0) -> list[str]:
    """One step with mixed groups (question -> successes) and `budget` freed rows; the questions drawn, each once a row."""
    mixed = mixed or {}
    groups = [group(k, question) for question, k in mixed.items()] + [group(0, f"free{budget}")]
    tools = Lent(ids=answers(mixed), prompt=lambda i: [i, 7]).tools
    policy.plan(len(groups), fresh())
    arrangement = policy.arrange(groups, tools, number)
    assert len(arrangement.leave) == budget or not policy.active
    policy.finish(groups, tools, number, 0.5)
    return [placed.trajectory.question for placed in arrangement.place]


def stored_questions(policy: Refill) -> Counter:
    """Stored trajectories by question."""
    return Counter({question: len(policy.store.rows(question)) for question in policy.store.questions()})


# ---- whose rows leave, and what is stored


def test_zero_variance_groups_leave_and_successes_of_mixed_ones_are_stored():
    policy = refill(place=None)
    groups = [group(0), group(3), group(K), Group("p", [0.0, 1.0] + [0.0] * 6)]
    tools = Lent()
    arrangement = policy.arrange(groups, tools.tools, 1)
    assert arrangement.leave == [(i, j) for i in (0, 2) for j in range(K)]
    assert (arrangement.place, arrangement.advantages, tools.read) == ([], {}, [])
    assert finish(policy, groups).read == [[(1, 0), (1, 1), (1, 2), (3, 1)]]


@pytest.mark.parametrize("successes", [0, 3, K - 1])
def test_a_partial_group_is_left_alone(successes):
    policy, groups = refill(place=None), [group(successes, size=K - 1)]
    assert policy.arrange(groups, Lent().tools, 1).leave == []
    assert finish(policy, groups).read == []
    assert policy.metrics(1)["partial_groups"] == 1


def test_continuous_rewards_without_a_success_keep_their_signal():
    policy, groups = refill(place=None), [Group("q", [0.1, 0.4] + [0.0] * 6)]
    assert policy.arrange(groups, Lent().tools, 1).leave == []
    assert finish(policy, groups).read == []


def test_the_plan_is_that_of_the_on_policy_baseline():
    policy, baseline = refill(), make("on_policy")
    step(policy, 1, {"fresh0": 3})
    assert policy.plan(8, fresh()) == baseline.plan(8, fresh())
    assert {(slot.rollouts, slot.planned) for slot in policy.plan(8, fresh())} == {(K, False)}


# ---- the draw


@pytest.mark.parametrize(
    ("sizes", "budget", "taken"),
    [
        ([3, 4, 1], 8, [0, 1, 2]),
        ([3, 4, 1], 7, [0, 1]),
        ([3, 6, 4, 1], 8, [0, 2, 3]),  # 6 does not fit into 5 and is skipped
        ([3, 6], 2, []),
        ([1, 1], 0, []),
        ([], 8, []),
    ],
)
def test_the_budget_is_filled_in_order_and_never_exceeded(sizes, budget, taken):
    assert fitting(np.arange(len(sizes)), np.array(sizes), budget) == taken


def test_a_stored_group_comes_whole_with_its_frozen_advantage_and_log_probs():
    policy = refill()
    step(policy, 1, {"a": 3})
    policy.plan(1, fresh())
    arrangement = policy.arrange([group(0, "free8")], Lent().tools, 2)
    found = [placed.trajectory for placed in arrangement.place]
    assert [t.token_ids.tolist() for t in found] == [[97], [97, 98], [97, 98, 99]]
    assert [t.log_probs.tolist() for t in found][1] == pytest.approx(log_probs_of([97, 98]))
    assert {(t.question, t.birth_step, tuple(t.prompt_ids.tolist())) for t in found} == {("a", 1, (0, 7))}
    assert {placed.advantage for placed in arrangement.place} == {1 - 3 / 8}
    assert found[0].log_probs.dtype == np.float32


def test_equal_responses_of_a_group_count_as_often_as_they_were_sampled():
    policy = refill()
    finish(policy, [group(3)], ids=lambda i, j: [5, 6])
    assert stored_questions(policy) == {"q": 3}
    assert step(policy, 2, budget=8) == ["q"] * 3


def test_groups_of_one_question_are_drawn_one_by_one():
    policy = refill(reps=1)
    step(policy, 1, {"a": 2})
    step(policy, 2, {"a": 3})
    drawn = [step(policy, n, budget=3) for n in (3, 4)]
    assert sorted(map(len, drawn)) == [2, 3]


def test_what_is_left_of_a_group_keeps_the_advantage_it_had():
    policy = refill()
    step(policy, 1, {"a": 3})
    policy.store.drop(policy.store.rows("a")[:1], "bytes")
    placed = policy.arrange([group(0, "free8")], Lent().tools, 2).place
    assert [(len(one.trajectory.token_ids), one.advantage) for one in placed] == [(2, 1 - 3 / 8), (3, 1 - 3 / 8)]


def test_what_has_no_prompt_is_never_drawn():
    policy = refill()
    provenance = Provenance(policy.store.new_group(), successes=1, size=K, advantage=1 - 1 / K)
    policy.store.add("q", Response([5], [-1.0], prompt_ids=[1]), 1.0, 0, provenance=provenance)
    assert step(policy, 1, budget=8) == []


def test_this_steps_successes_are_not_drawn_in_this_step():
    policy = refill()
    assert step(policy, 1, {"a": 2}, budget=8) == []
    assert step(policy, 2, {"b": 2}, budget=8) == ["a", "a"]


def test_a_group_is_used_reps_times_and_then_forgotten():
    policy = refill(reps=2)
    step(policy, 1, {"a": 1})
    assert [step(policy, n, budget=8) for n in (2, 3, 4)] == [["a"], ["a"], []]
    assert policy.metrics(4)["buffer_trajectories"] == 0
    assert policy.store.evicted == {"age": 0, "reuse": 1, "per_question": 0, "bytes": 0}


def test_a_group_is_drawn_up_to_its_greatest_age_and_then_forgotten():
    for age, found in ((5, ["a"]), (6, [])):
        policy = refill(max_age_steps=5)
        for n in range(1, age + 1):
            step(policy, n, {"a": 1} if n == 1 else {})
        assert step(policy, 1 + age, budget=8) == found
    assert policy.metrics(7)["buffer_trajectories"] == 0
    assert policy.store.evicted["age"] == 1


def test_memory_is_bounded_by_age():
    policy = refill(max_age_steps=3)
    for n in range(1, 30):
        step(policy, n, {"a": 1, "b": 2})
        assert policy.metrics(n)["buffer_trajectories"] <= 3 * 3


def test_bounds_of_the_store_hold_as_well():
    policy = make("refill", buffer={"max_per_question": 1})
    finish(policy, [group(3)])
    assert (policy.metrics(1)["buffer_trajectories"], policy.metrics(1)["evicted/per_question"]) == (1, 2)


def test_drawing_follows_the_weights_and_never_exceeds_the_budget():
    counts, trials = Counter(), 3000
    policy = refill(reps=10**9, max_age_steps=10**9)
    step(policy, 1, {"a": 1, "b": 2, "c": 4})
    for n in range(2, 2 + trials):
        drawn = step(policy, n, budget=1)
        assert len(drawn) <= 1
        counts.update(drawn)
    assert counts == {"a": trials}  # the only one that fits
    counts.clear()
    for n in range(2, 2 + trials):
        counts.update(set(step(policy, n, budget=4)))
    weights = rarity_weights(np.array([1, 2, 4]), K, 4.0)
    # "c" fills the budget alone, so it is there exactly when it came first.
    assert counts["c"] / trials == pytest.approx(weights[2] / weights.sum(), abs=0.02)
    assert counts["a"] == counts["b"] == trials - counts["c"]


def test_a_rule_that_uses_scores_gets_one_score_for_each_group_with_its_own_prompt():
    policy = make("refill", rank="lowest_entropy", place="steps:free_rows")
    step(policy, 1, {"a": 2, "b": 2, "c": 2})
    lent = Lent(entropy=lambda t: {"a": 0.5, "b": 0.1, "c": 0.3}[t.question])
    placed = policy.arrange([group(0, "free4")], lent.tools, 2).place
    assert [one.trajectory.question for one in placed] == ["b", "b", "c", "c"]
    assert [[(t.question, t.prompt_ids.tolist(), len(t.token_ids)) for t in call] for call in lent.scored] == [
        [("a", [0, 7], 1), ("b", [1, 7], 1), ("c", [2, 7], 1)]
    ]
    assert policy.metrics(2)["candidates_scored"] == 3


@pytest.mark.parametrize("rank", RANK)
def test_every_rule_bears_an_empty_store(rank):
    policy, lent = make("refill", rank=rank), Lent()
    assert policy.arrange([group(0)], lent.tools, 1).place == []
    assert lent.scored == []


def test_without_a_freed_row_nothing_is_drawn_scored_or_taken_from_the_generator():
    policy = make("refill", rank="lowest_entropy", place="steps:free_rows")
    step(policy, 1, {"a": 2})
    before, lent = policy.state_dict(), Lent()
    assert policy.arrange([group(3)], lent.tools, 2) == Arrangement([], ())
    assert (lent.scored, policy.state_dict()) == ([], before)


def test_the_control_repeats_this_steps_successes_once_and_keeps_nothing():
    policy = refill(source="current")
    assert step(policy, 1, {"a": 2}, budget=8) == ["a", "a"]
    assert stored_questions(policy) == {}
    assert policy.metrics(1)["added"] == 0
    assert step(policy, 2, budget=8) == []
    groups = [group(2, "b"), group(0, "free8")]
    placed = policy.arrange(groups, Lent().tools, 3).place
    assert {(one.advantage, one.trajectory.birth_step) for one in placed} == {(0.75, 3)}
    assert policy.metrics(3)["age_steps_max"] == 0


# ---- delayed start and metrics


def test_before_the_start_nothing_happens_and_every_metric_is_zero():
    policy, groups = refill(start_threshold=0.35, place=None), [group(0), group(2)]
    policy.plan(2, fresh())
    assert policy.arrange(groups, Lent().tools, 1) == Arrangement()
    assert finish(policy, groups, pass_rate=0.2).read == []
    metrics = policy.metrics(1)
    assert set(METRICS) <= set(metrics)
    assert set(metrics.values()) == {0.0}
    finish(policy, [], step=2, pass_rate=0.4)
    assert policy.active
    assert len(policy.arrange([group(0)], Lent().tools, 3).leave) == K


def test_metrics_say_what_happened():
    policy = refill()
    step(policy, 1, {"a": 2, "b": 3})
    policy.plan(2, fresh())
    groups = [group(0, "free8"), group(4, "c"), group(1, size=5)]
    policy.arrange(groups, Lent().tools, 4)
    finish(policy, groups, step=4)
    metrics = policy.metrics(4)
    expected = {
        "replay_active": 1, "zero_variance_groups": 1, "freed_rows": 8, "replayed_rows": 5, "drawn_groups": 2, "added": 4,
        "buffer_questions": 3, "buffer_trajectories": 9, "partial_groups": 1, "age_steps_mean": 3, "age_steps_max": 3,
        "reuse_mean": 1, "reuse_max": 1, "planned_questions": 0, "replayed_questions": 0, "candidates_scored": 0,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["buffer_bytes"] == policy.store.nbytes > 0
    assert set(METRICS) <= set(metrics)


# ---- the loss


def gradient(config: LossConfig, ratio: float) -> float:
    """d loss / d log_prob of a replayed token of advantage 1."""
    log_prob = torch.zeros(1, 1, requires_grad=True)
    behaviour = torch.full((1, 1), -float(np.log(ratio)))
    loss = mixed_policy_loss(log_prob, behaviour, torch.ones(1, 1), torch.tensor([True]), config, ClipRange(), True)
    return float(torch.autograd.grad(loss.sum(), log_prob)[0])


def test_the_gradient_of_a_replayed_token_is_that_of_a_fresh_one():
    shaped, clipped = LossConfig(), refill().loss
    assert gradient(shaped, 1.0) == pytest.approx(-0.1 / 1.21)
    assert gradient(clipped, 1.0) == pytest.approx(-1.0)
    assert gradient(clipped, 1.3) == 0.0  # clipped from above
    assert gradient(clipped, 0.5) == pytest.approx(-0.5)
    other = make("refill", loss={"importance": "old", "fresh_clip": "never"})
    assert other.loss == LossConfig("clip", 0.1, "past", "never")


# ---- state


def history(policy: Refill, first: int, last: int) -> list[list[str]]:
    world, found = np.random.default_rng(first), []
    for n in range(first, last):
        mixed = {f"{n}.{i}": int(world.integers(1, K)) for i in range(4)}
        found.append(step(policy, n, mixed, budget=int(world.integers(0, K + 1))))
    return found


def test_a_restored_policy_draws_the_same(restored):
    policy = refill(seed=3, max_age_steps=6)
    history(policy, 1, 20)
    state, store = json.loads(json.dumps(policy.state_dict())), restored(policy.store)
    following = history(policy, 20, 80)
    assert sum(map(len, following)) > 200

    resumed = refill(seed=8, max_age_steps=6, start_threshold=0.9)
    resumed.load_state_dict(state, store)
    assert resumed.active  # it never switches back
    assert history(resumed, 20, 80) == following
    assert resumed.metrics(79) == policy.metrics(79)


def test_an_empty_store_and_a_delayed_start_come_back(restored):
    policy = refill(start_threshold=0.35)
    resumed = refill(start_threshold=0.35)
    resumed.load_state_dict(policy.state_dict(), restored(policy.store))
    assert (resumed.active, stored_questions(resumed)) == (False, {})
    resumed.load_state_dict(refill().state_dict(), restored(policy.store))
    assert resumed.active


def test_it_may_come_to_hold_the_rollouts_of_its_greatest_age():
    config = ExGRPOConfig.from_mapping({"refill": {"max_age_steps": 20}})
    assert Refill.stored_rollouts(config, rollouts=64, steps=500) == 64 * 20
    assert Refill.stored_rollouts(config, rollouts=64, steps=3) == 64 * 3

"""Fill-slot replay: the draw, the budget, ages and uses, the gradient, and the state."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe.exgrpo.checkpoint.tensors import read_tensors, write_tensors
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.loss import ClipRange, mixed_policy_loss
from recipe.exgrpo.core.policies.fill import (
    FILL_METRIC_NAMES,
    Entry,
    FillManager,
    FillPlan,
    Response,
    draw_weights,
    fill_budget,
    replay_loss,
    weighted_order,
)
from recipe.exgrpo.core.policies.replay import Group

K = 8


def manager(start_threshold=None, seed=0, **fill) -> FillManager:
    values = {"mode": "fill", "start_threshold": start_threshold, "seed": seed, "fill": fill}
    return FillManager(ExGRPOConfig.from_mapping(values), K)


def group(successes: int, question: str = "q", size: int = K) -> Group:
    return Group(question, [1.0] * successes + [0.0] * (size - successes))


def entry(question: str, successes: int) -> Entry:
    """Successes of lengths 1, 2, ... with ids and log-probs of their own."""
    number = sum(map(ord, question))
    responses = [Response(np.arange(i + 1) + number, -np.ones(i + 1) / (i + 1)) for i in range(successes)]
    return Entry(question, successes, np.array([number, 7], np.int32), responses)


def step(fill: FillManager, number: int, fresh=(), budget=0) -> list[str]:
    """One step; the questions drawn, each once a sequence."""
    fill.plan([])
    drawn = fill.exchange(list(fresh), budget, number)
    fill.finish_step(number, 0.5)
    return [filled.question for filled in drawn]


# ---- the pure draw


def test_the_first_of_the_order_is_drawn_by_weight():
    rng, weights = np.random.default_rng(0), np.array([1.0, 2.0, 5.0])
    first = Counter(int(weighted_order(weights, rng)[0]) for _ in range(20_000))
    assert [first[i] / 20_000 for i in range(3)] == pytest.approx([0.125, 0.25, 0.625], abs=0.015)


def test_the_order_is_that_of_sequential_draws_without_replacement():
    rng, weights = np.random.default_rng(1), np.array([1.0, 2.0, 5.0])
    orders = Counter(tuple(weighted_order(weights, rng).tolist()) for _ in range(20_000))
    for order in itertools.permutations(range(3)):
        expected, left = 1.0, weights.sum()
        for i in order:
            expected, left = expected * weights[i] / left, left - weights[i]
        assert orders[order] / 20_000 == pytest.approx(expected, abs=0.015)


def test_weights_are_the_failure_rate_to_a_power():
    weights = draw_weights(np.array([1, 4, 7]), K, 4.0)
    assert weights.tolist() == pytest.approx([(7 / 8) ** 4, 0.5**4, (1 / 8) ** 4])
    assert draw_weights(np.array([1, 4, 7]), K, 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("sizes", "budget", "chosen"),
    [
        ([3, 4, 1], 8, [0, 1, 2]),
        ([3, 4, 1], 7, [0, 1]),
        ([3, 6, 4, 1], 8, [0, 2, 3]),  # 6 does not fit into 5 and is passed over
        ([3, 6], 2, []),
        ([1, 1], 0, []),
        ([], 8, []),
    ],
)
def test_the_budget_is_filled_in_order_and_never_exceeded(sizes, budget, chosen):
    assert fill_budget(np.arange(len(sizes)), np.array(sizes), budget) == chosen


# ---- the plan


def test_groups_without_variance_leave_and_mixed_ones_are_stored():
    plan = manager().plan([group(0), group(3), group(K), Group("p", [0.0, 1.0] + [0.0] * 6)])
    assert plan == FillPlan(dropped=[0, 2], budget=2 * K, to_store={1: [0, 1, 2], 3: [1]})


@pytest.mark.parametrize("successes", [0, 3, K - 1])
def test_a_partial_group_is_left_alone(successes):
    fill = manager()
    assert fill.plan([group(successes, size=K - 1)]) == FillPlan([], 0, {})
    assert fill.metrics()["partial_groups"] == 1


def test_continuous_rewards_without_a_success_keep_their_signal():
    assert manager().plan([Group("q", [0.1, 0.4] + [0.0] * 6)]) == FillPlan([], 0, {})


# ---- the draw


def test_an_entry_comes_whole_with_its_frozen_advantage_and_log_probs():
    fill = manager()
    step(fill, 1, [entry("a", 3)])
    fill.plan([])
    drawn = fill.exchange([], 8, 2)
    assert [filled.response.token_ids.tolist() for filled in drawn] == [[97], [97, 98], [97, 98, 99]]
    assert [filled.response.log_probs.tolist() for filled in drawn][1] == [-0.5, -0.5]
    assert {(f.question, f.advantage, f.birth_step, tuple(f.prompt_ids.tolist())) for f in drawn} == {
        ("a", 1 - 3 / 8, 1, (97, 7))
    }
    assert drawn[0].response.log_probs.dtype == np.float32


def test_this_steps_successes_are_not_drawn_in_this_step():
    fill = manager()
    assert step(fill, 1, [entry("a", 2)], budget=8) == []
    assert step(fill, 2, [entry("b", 2)], budget=8) == ["a", "a"]


def test_an_entry_is_used_reps_times_and_then_forgotten():
    fill = manager(reps=2)
    step(fill, 1, [entry("a", 1)])
    assert [step(fill, n, budget=8) for n in (2, 3, 4)] == [["a"], ["a"], []]
    assert fill.entries == []


def test_an_entry_is_drawn_up_to_its_greatest_age_and_then_forgotten():
    for age, found in ((5, ["a"]), (6, [])):
        fill = manager(max_age_steps=5)
        for n in range(1, age + 1):
            step(fill, n, [entry("a", 1)] if n == 1 else [])
        assert step(fill, 1 + age, budget=8) == found
    assert fill.entries == []


def test_memory_is_bounded_by_age():
    fill = manager(max_age_steps=3)
    for n in range(1, 30):
        step(fill, n, [entry("a", 1), entry("b", 2)])
        assert len(fill.entries) <= 2 * 3


def test_drawing_follows_the_weights_and_never_exceeds_the_budget():
    counts, trials = Counter(), 3000
    fill = manager(reps=10**9, max_age_steps=10**9)
    step(fill, 1, [entry(name, k) for name, k in (("a", 1), ("b", 2), ("c", 4))])
    for n in range(2, 2 + trials):
        drawn = step(fill, n, budget=1)
        assert len(drawn) <= 1
        counts.update(drawn)
    assert counts == {"a": trials}  # the only one that fits
    counts.clear()
    for n in range(2, 2 + trials):
        counts.update(set(step(fill, n, budget=4)))
    weights = draw_weights(np.array([1, 2, 4]), K, 4.0)
    # "c" fills the budget alone, so it is there exactly when it came first.
    assert counts["c"] / trials == pytest.approx(weights[2] / weights.sum(), abs=0.02)
    assert counts["a"] == counts["b"] == trials - counts["c"]


def test_the_control_duplicates_this_steps_successes_once_and_keeps_nothing():
    fill = manager(source="current")
    assert step(fill, 1, [entry("a", 2)], budget=8) == ["a", "a"]
    assert fill.entries == []
    assert step(fill, 2, budget=8) == []
    fill.plan([])
    assert {(f.advantage, f.birth_step) for f in fill.exchange([entry("b", 2)], 8, 3)} == {(0.75, 3)}
    assert fill.metrics()["age_steps_max"] == 0


# ---- delayed start and metrics


def test_before_the_start_nothing_happens_and_every_metric_is_zero():
    fill = manager(start_threshold=0.35)
    assert fill.plan([group(0), group(2)]) == FillPlan([], 0, {})
    assert fill.exchange([entry("a", 2)], 8, 1) == []
    fill.finish_step(1, 0.2)
    assert fill.metrics() == dict.fromkeys(FILL_METRIC_NAMES, 0.0)
    fill.finish_step(2, 0.4)
    assert fill.active
    assert fill.plan([group(0)]).budget == K


def test_metrics_say_what_happened():
    fill = manager()
    step(fill, 1, [entry("a", 2), entry("b", 3)])
    fill.plan([group(0), group(4), group(1, size=5)])
    fill.exchange([entry("c", 4)], K, 4)
    fill.finish_step(4, 0.5)
    metrics = fill.metrics()
    expected = {
        "active": 1, "dropped_groups": 1, "budget": 8, "filled": 5, "drawn_entries": 2, "added": 1, "entries": 3,
        "trajectories": 9, "partial_groups": 1, "age_steps_mean": 3, "age_steps_max": 3, "uses_mean": 1, "uses_max": 1,
    }  # fmt: skip
    assert metrics.pop("bytes") == 3 * 8 + 8 * (1 + 2 + 1 + 2 + 3 + 1 + 2 + 3 + 4)
    assert metrics == expected
    assert set(fill.metrics()) == set(FILL_METRIC_NAMES)


# ---- the loss


def gradient(config: LossConfig, ratio: float) -> float:
    """d loss / d log_prob of a replayed token of advantage 1."""
    log_prob = torch.zeros(1, 1, requires_grad=True)
    behaviour = torch.full((1, 1), -float(np.log(ratio)))
    loss = mixed_policy_loss(log_prob, behaviour, torch.ones(1, 1), torch.tensor([True]), config, ClipRange(), True)
    return float(torch.autograd.grad(loss.sum(), log_prob)[0])


def test_the_gradient_of_a_replayed_token_is_that_of_a_fresh_one():
    shaped = LossConfig()
    assert gradient(shaped, 1.0) == pytest.approx(-0.1 / 1.21)
    assert gradient(replay_loss(shaped), 1.0) == pytest.approx(-1.0)
    assert gradient(replay_loss(shaped), 1.3) == 0.0  # clipped from above
    assert gradient(replay_loss(shaped), 0.5) == pytest.approx(-0.5)
    assert replay_loss(LossConfig(importance="old", fresh_clip="never")) == LossConfig("clip", 0.1, "past", "never")


# ---- state


def history(fill: FillManager, first: int, last: int) -> list[list[str]]:
    world = np.random.default_rng(first)
    found = []
    for n in range(first, last):
        fresh = [entry(f"{n}.{i}", int(world.integers(1, K))) for i in range(4)]
        found.append(step(fill, n, fresh, budget=int(world.integers(0, 24))))
    return found


def test_a_restored_manager_draws_the_same(tmp_path: Path):
    fill = manager(seed=3, max_age_steps=6)
    history(fill, 1, 20)
    arrays, meta = fill.state()
    record = write_tensors(tmp_path / "fill.safetensors", arrays, "fill")
    following = history(fill, 20, 60)
    assert sum(map(len, following)) > 200

    resumed = manager(seed=8, max_age_steps=6, start_threshold=0.9)
    resumed.load_state(read_tensors(tmp_path / "fill.safetensors", record), json.loads(json.dumps(meta)))
    assert resumed.active
    assert history(resumed, 20, 60) == following
    assert resumed.metrics() == fill.metrics()


def test_an_empty_state_can_be_saved(tmp_path: Path):
    arrays, meta = manager().state()
    record = write_tensors(tmp_path / "fill.safetensors", arrays, "fill")
    resumed = manager()
    resumed.load_state(read_tensors(tmp_path / "fill.safetensors", record), meta)
    assert resumed.entries == []


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("group_size", 4)])
def test_a_foreign_state_is_refused(key, value):
    arrays, meta = manager().state()
    with pytest.raises(ValueError, match=key):
        manager().load_state(arrays, meta | {key: value})


def test_a_ragged_state_is_refused():
    fill = manager()
    step(fill, 1, [entry("a", 2)])
    arrays, meta = fill.state()
    with pytest.raises(ValueError, match="ragged"):
        manager().load_state(arrays | {"token_ids": arrays["token_ids"][:-1]}, meta)


@pytest.mark.parametrize(("ids", "log_probs"), [([1, 2], [-1.0]), ([], []), ([[1]], [[-1.0]])])
def test_a_response_needs_a_log_prob_for_every_id(ids, log_probs):
    with pytest.raises(ValueError, match="as many log-probs as ids"):
        Response(ids, log_probs)


def test_an_entry_owns_its_arrays():
    batch = np.zeros((1000, 1000), np.float32)
    ids = np.arange(10**6, dtype=np.int32)
    made = Entry("q", 1, ids[:3].astype(np.int64), [Response(ids[:5], batch[0, :5])])
    assert all(
        array.base is None for array in (made.prompt_ids, made.responses[0].token_ids, made.responses[0].log_probs)
    )
    assert made.nbytes == 4 * 3 + 8 * 5


def test_groups_of_one_rollout_are_refused():
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.rollout\.n"):
        FillManager(ExGRPOConfig(), 1)

"""Admit, rank, gate and place: each rule against an oracle in plain Python, by name and by import path."""

import itertools
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import K, Lent, finish, fresh, make, past, rewards, stored

from recipe.exgrpo.core.buffer import Candidates, Response
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.admit import ADMIT
from recipe.exgrpo.core.policies.gate import GATE
from recipe.exgrpo.core.policies.place import PLACE
from recipe.exgrpo.core.policies.policy import Group
from recipe.exgrpo.core.policies.rank import RANK, drawn, rarity_weights
from recipe.exgrpo.core.policies.rules import Context, needs_scores, scored
from recipe.exgrpo.core.selection import Scores

HERE = __name__
SCORED = ("lowest_entropy", "highest_entropy", "lowest_perplexity", "headroom")


def context(step: int = 10, seed: int = 0, **values) -> Context:
    return Context(ExGRPOConfig.from_mapping(values), K, step, np.random.default_rng(seed))


def candidates(n: int = 0, **columns) -> Candidates:
    """`n` stored trajectories, or as many as `columns` (birth_step, use_count, successes, ...) have."""
    n = len(next(iter(columns.values()), range(n)))
    names = Candidates.__dataclass_fields__
    return Candidates(**{name: np.asarray(columns.get(name, np.zeros(n, np.int64))) for name in names})


def scores_of(values) -> Scores:
    """Scores whose entropies are `values` and whose likelihoods order the other way round."""
    values = np.asarray(values, np.float64)
    return Scores(entropy=values, nll=-values, headroom=values, drift=-values)


def ranked(rank: str, values, **around) -> list[int]:
    order = RANK[rank](candidates(len(values)), scores_of(values), context(**around))
    assert sorted(order.tolist()) == list(range(len(values)))  # all candidates, each once
    return order.tolist()


# ---- admit

GROUPS = st.builds(
    Group,
    st.just("q"),
    st.lists(st.floats(-3, 3), min_size=1, max_size=K),
    st.lists(st.floats(-3, 3).map(partial(past, "q")), max_size=1),
)


@given(group=GROUPS, threshold=st.floats(-1, 1))
def test_successes_are_fresh_rollouts_above_the_threshold(group, threshold):
    found = ADMIT["successes"](group, context(bookkeeping={"success_threshold": threshold}))
    assert found == [i for i in range(len(group.fresh_rewards)) if group.fresh_rewards[i] > threshold]


def test_above_mean_counts_whoever_joined_the_group():
    assert ADMIT["above_mean"](Group("q", [0.2, 0.4, 0.6]), context()) == [2]
    assert ADMIT["above_mean"](Group("q", [0.2, 0.4, 0.6], [past(reward=2.0)]), context()) == []
    assert ADMIT["above_mean"](Group("q", [0.2, 0.4, 0.6], [past(reward=-2.0)]), context()) == [0, 1, 2]
    assert ADMIT["above_mean"](Group("q", [0.5] * K), context()) == []


def test_everything_is_every_fresh_rollout():
    assert ADMIT["everything"](Group("q", [0.0, 1.0], [past()]), context()) == [0, 1]


@pytest.mark.parametrize(("admit", "kept"), [(None, [1]), ("successes", [1]), ("everything", [0, 1, 2, 3, 4, 5, 6, 7])])
def test_exgrpo_stores_what_the_rule_admits(admit, kept):
    policy = make(admit=admit)
    read = finish(policy, [Group("q", [0.0, 1.0] + [0.0] * 6), Group("unsolved", rewards(0))]).members
    assert read == [(0, j) for j in kept]
    assert [policy.store.trajectory(int(row)).reward for row in policy.store.rows("q")] == [float(j == 1) for j in kept]


# ---- rank


@pytest.mark.parametrize(
    ("rank", "values", "order"),
    [
        ("lowest_entropy", [0.5, 0.2, 0.9], [1, 0, 2]),
        ("highest_entropy", [0.5, 0.2, 0.9], [2, 0, 1]),
        ("lowest_perplexity", [0.5, 0.2, 0.9], [2, 0, 1]),
        ("headroom", [0.5, 0.2, 0.9], [2, 0, 1]),
        ("newest", [0.5, 0.2, 0.9], [2, 1, 0]),
        ("oldest", [0.5, 0.2, 0.9], [0, 1, 2]),
        # ties stay in the order of storage
        ("lowest_entropy", [0.5, 0.2, 0.2], [1, 2, 0]),
        ("highest_entropy", [0.2, 0.5, 0.5], [1, 2, 0]),
        ("lowest_perplexity", [0.2, 0.5, 0.5], [1, 2, 0]),
        ("lowest_entropy", [0.0, 0.0, 0.0], [0, 1, 2]),
        # what is not finite is the last resort, in either direction
        ("lowest_entropy", [math.nan, 3.0, 2.0], [2, 1, 0]),
        ("lowest_entropy", [-math.inf, 3.0, 2.0], [2, 1, 0]),
        ("highest_entropy", [math.inf, 3.0, 2.0], [1, 2, 0]),
        ("highest_entropy", [math.nan, 2.0, 3.0], [2, 1, 0]),
        ("lowest_perplexity", [math.inf, 3.0, 2.0], [1, 2, 0]),
        ("lowest_entropy", [math.nan, math.inf], [0, 1]),
        ("highest_entropy", [math.nan, math.nan], [0, 1]),
        ("lowest_entropy", [math.nan], [0]),
    ],
)
def test_orders_by_hand(rank, values, order):
    assert ranked(rank, values) == order


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(0, 5), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=9))
def test_scored_orders_equal_a_stable_sort(values):
    def key(sign):
        return lambda i: (not math.isfinite(values[i]), sign * values[i] if math.isfinite(values[i]) else 0.0)

    for rank, sign in (("lowest_entropy", 1), ("highest_entropy", -1), ("lowest_perplexity", -1)):
        assert ranked(rank, values) == sorted(range(len(values)), key=key(sign))


def test_random_is_uniform_and_drawn_from_the_policys_generator():
    around = context()
    first = np.bincount([RANK["random"](candidates(4), None, around)[0] for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(first, 1000, atol=100)  # 3.6 standard deviations
    assert ranked("random", [0.0] * 3, seed=1) == ranked("random", [0.0] * 3, seed=1)
    assert {tuple(ranked("random", [0.0] * 3, seed=seed)) for seed in range(30)} == {(0, 1, 2), (1, 0, 2), (2, 0, 1)}


@pytest.mark.parametrize("rank", RANK)
def test_only_drawing_rules_consume_the_generator(rank):
    around = context()
    RANK[rank](candidates(successes=[1, 2]), scores_of([1.0, 2.0]), around)
    touched = around.rng.bit_generator.state != np.random.default_rng(0).bit_generator.state
    assert touched == (rank in ("random", "rarity", "advantage", "fresh"))


def test_drawn_is_a_draw_without_replacement_with_weights():
    rng, weights = np.random.default_rng(1), np.array([1.0, 2.0, 5.0])
    orders = Counter(tuple(drawn(weights, rng).tolist()) for _ in range(20_000))
    for order in itertools.permutations(range(3)):
        expected, left = 1.0, weights.sum()
        for i in order:
            expected, left = expected * weights[i] / left, left - weights[i]
        assert orders[order] / 20_000 == pytest.approx(expected, abs=0.015)


def test_weights_of_rarity_are_the_failure_rate_to_a_power():
    weights = rarity_weights(np.array([1, 4, 7]), K, 4.0)
    assert weights.tolist() == pytest.approx([(7 / 8) ** 4, 0.5**4, (1 / 8) ** 4])
    assert rarity_weights(np.array([1, 4, 7]), K, 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("power", [0.0, 4.0])
def test_rarity_draws_by_successes_of_k(power):
    around = context(refill={"power": power})
    firsts = Counter(int(RANK["rarity"](candidates(successes=[1, 4, 7]), None, around)[0]) for _ in range(20_000))
    weights = np.array([7 / 8, 4 / 8, 1 / 8]) ** power
    for i in range(3):
        assert firsts[i] / 20_000 == pytest.approx(weights[i] / weights.sum(), abs=0.015)


# ---- which rules cost a forward pass


@pytest.mark.parametrize("rank", RANK)
def test_scored_rules_cost_one_forward_pass_a_step_and_the_others_none(rank):
    assert needs_scores(RANK[rank]) == (rank in SCORED)
    policy = stored(make(rank=rank, rho=1.0), {"a": 4, "b": 4}, rows=3)
    policy.plan(2, fresh())
    lent = Lent()
    policy.inject([Group(q, rewards(3, K - 1), planned=True) for q in "ab"], lent.tools, 5)
    assert [len(call) for call in lent.scored] == ([6] if rank in SCORED else [])


# ---- gate


@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)), min_size=1, max_size=9),
    reps=st.integers(1, 5),
    age=st.integers(1, 40),
)
def test_recent_is_young_enough_and_not_used_up(rows, reps, age):
    births, uses = zip(*rows, strict=True)
    around = context(step=60, refill={"reps": reps, "max_age_steps": age})
    found = GATE["recent"](candidates(birth_step=births, use_count=uses), around)
    assert found.tolist() == [60 - b <= age and u < reps for b, u in rows]
    assert GATE["always"](candidates(len(rows)), around).tolist() == [True] * len(rows)


def test_drift_was_at_most_the_bound_when_it_was_last_scored():
    found = GATE["drift"](candidates(drift=[0.0, 0.01, 0.02, math.nan]), context(rows={"max_drift": 0.01}))
    assert found.tolist() == [True, True, False, True]


# ---- place


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=K - 2, max_size=K), max_size=5))
def test_zero_variance_is_every_member_of_whole_groups_of_one_reward(found):
    groups = [Group(f"q{i}", values) for i, values in enumerate(found)]
    places = PLACE["zero_variance"](groups, context())
    assert places == [
        (i, j) for i, values in enumerate(found) if len(values) == K and len(set(values)) == 1 for j in range(K)
    ]


def test_who_joined_belongs_to_the_variance_and_to_the_places():
    mixed = Group("a", rewards(0, K - 1), [past(reward=1.0)])
    alike = Group("b", rewards(K - 1, K - 1), [past(reward=1.0)])
    assert PLACE["zero_variance"]([mixed, alike], context()) == [(1, j) for j in range(K)]


# ---- rules of one's own


def last_two(group, context):
    return [len(group.fresh_rewards) - 2, len(group.fresh_rewards) - 1]


def longest(candidates, scores, context):
    return np.argsort(-candidates.length, kind="stable")


@scored
def nearest_one(candidates, scores, context):
    return np.argsort(abs(scores.entropy - 1.0), kind="stable")


def unused(candidates, context):
    return candidates.use_count == 0


NOT_A_RULE = 3


def test_an_admission_rule_by_import_path():
    read = finish(make(admit=f"{HERE}:last_two"), [Group("q", rewards(3))]).members
    assert read == [(0, K - 2), (0, K - 1)]


def with_lengths(**values):
    """A policy with three stored trajectories of "q": of 2, 4 and 3 tokens."""
    policy = make(rho=1.0, **values)
    policy.store.record("q", 4)
    for n in (2, 4, 3):
        policy.store.add("q", Response(list(range(n)), [-1.0] * n), 1.0, step=0)
    policy.plan(1, fresh())
    return policy


def replayed_lengths(policy, steps=1, **lent) -> list[int]:
    lent = Lent(**lent)
    found = []
    for step in range(1, steps + 1):
        joined = policy.inject([Group("q", rewards(2, K - 1), planned=True)], lent.tools, step)
        found += [len(trajectory.token_ids) for trajectory in joined.get(0, [])]
    return found


def test_a_rank_rule_by_import_path():
    assert replayed_lengths(with_lengths(rank=f"{HERE}:longest")) == [4]


def test_a_scored_rank_rule_by_import_path():
    entropy = {2: 0.1, 4: 1.8, 3: 1.1}
    policy = with_lengths(rank=f"{HERE}:nearest_one")
    assert replayed_lengths(policy, entropy=lambda t: entropy[len(t.token_ids)]) == [3]


def test_a_gate_by_import_path():
    policy = with_lengths(rank=f"{HERE}:longest", gate=f"{HERE}:unused")
    assert replayed_lengths(policy, steps=4) == [4, 3, 2]


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("rank", "lowest_entropi", "exgrpo.rank=lowest_entropi is unknown; did you mean lowest_entropy?"),
        ("rank", "xx", f"known: {', '.join(RANK)}"),
        ("admit", "success", "exgrpo.admit=success is unknown; did you mean successes?"),
        ("gate", "allways", "exgrpo.gate=allways is unknown; did you mean always?"),
        ("rank", "no_such_folder.rules:mine", "exgrpo.rank=no_such_folder.rules:mine cannot be imported"),
        ("rank", f"{HERE}:mine", "cannot be imported"),
        ("rank", f"{HERE}:NOT_A_RULE", "is not a function"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_nearest_name(key, name, words):
    with pytest.raises(ValueError, match=rf"exgrpo\.{key}={name}") as refused:
        make(**{key: name})
    assert words in str(refused.value)


def test_what_is_no_rule_for_places_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"exgrpo\.place=zero_varience is unknown; did you mean zero_variance\?"):
        make("refill", place="zero_varience")

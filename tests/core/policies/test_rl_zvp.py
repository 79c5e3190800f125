"""RL-ZVP: which groups get advantages of their own, and Eq. 5 of arXiv 2509.21880 written out in float64."""

import re

import numpy as np
import pytest
from steps import Lent, fresh, make, rewards

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Group, without_signal

K = 4


def zvp(alpha: float = 0.1, **values):
    return make("rl_zvp", K, options={"alpha": alpha}, **values)


def entropies(i: int, j: int) -> np.ndarray:
    """Of 1 to 6 tokens, float64."""
    return np.random.default_rng([i, j]).exponential(2.0, size=1 + (i + 2 * j) % 6)


def by_hand(entropies, solved: bool, alpha: float) -> list[float]:
    """Eq. 5, a token at a time."""
    top = max(entropies)
    return [alpha * value if solved else -alpha * (top - value) for value in entropies]


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_ragged_groups_without_variance_have_the_advantages_of_the_paper(alpha):
    groups = [Group(f"q{k}", rewards(k, K)) for k in range(K + 1)]
    found = zvp(alpha).arrange(groups, Lent(token_entropies=entropies).tools, 1)
    assert set(found.advantages) == {(k, j) for k in (0, K) for j in range(K)}
    for (i, j), values in found.advantages.items():
        np.testing.assert_allclose(values, by_hand(entropies(i, j), i == K, alpha), rtol=1e-12, atol=0)
        assert values.dtype == np.float64
    assert {len(values) for values in found.advantages.values()} == {1, 3, 5}
    assert (list(found.leave), list(found.place), list(found.extra)) == ([], [], [])


def test_the_most_open_token_of_a_failure_is_left_alone_and_every_sign_is_the_groups():
    groups = [Group("failed", rewards(0, K)), Group("solved", rewards(K, K))]
    found = zvp().arrange(groups, Lent(token_entropies=entropies).tools, 1).advantages
    for (i, j), values in found.items():
        assert (values >= 0 if i else values <= 0).all()
        assert values[entropies(i, j).argmax()] == (values.max() if i else 0)


def test_a_success_is_a_reward_above_the_threshold_and_a_partial_group_is_one_too():
    groups = [Group("a", [0.6, 0.6]), Group("b", [0.9, 0.9, 0.9]), Group("c", [0.6, 0.9, 0.6])]
    policy = zvp(bookkeeping={"success_threshold": 0.7})
    found = policy.arrange(groups, Lent(token_entropies=entropies).tools, 1).advantages
    assert {(i, j): bool(values.sum() > 0) for (i, j), values in found.items()} == {
        (0, 0): False, (0, 1): False, (1, 0): True, (1, 1): True, (1, 2): True
    }  # fmt: skip


def test_nothing_is_read_where_all_groups_differ_and_the_metrics_are_of_the_last_step():
    policy = zvp()
    policy.arrange([Group("a", rewards(0, K))], Lent(token_entropies=entropies).tools, 1)
    tokens = np.concatenate([np.abs(by_hand(entropies(0, j), False, 0.1)) for j in range(K)])
    expected = {"shaped_rows": K, "shaped_advantage_mean": pytest.approx(tokens.mean())}
    assert policy.metrics(1) == dict.fromkeys(METRICS, 0.0) | expected
    assert policy.arrange([Group("a", rewards(1, K))], Lent(token_entropies=None).tools, 2).advantages == {}
    assert policy.metrics(2) == dict.fromkeys(METRICS, 0.0)


def test_shaped_rows_stay_in_the_denominator_of_mixed_groups():
    groups = [Group("a", rewards(0, K)), Group("b", rewards(1, K))]
    arrangement = zvp().arrange(groups, Lent(token_entropies=entropies).tools, 1)
    assert without_signal(groups, arrangement) == []


def test_it_is_the_on_policy_baseline_otherwise():
    policy = zvp(loss={"denominator": "mixed"})
    assert policy.plan(3, fresh()) == make("on_policy", K).plan(3, fresh())
    assert (policy.active, policy.store, policy.loss) == (False, None, LossConfig(denominator="mixed"))
    assert make("rl_zvp", K).options.alpha == 0.1


@pytest.mark.parametrize(("values", "sentence"), [
    ({"options": {"alpha": 0.0}}, "exgrpo.options.alpha must be positive; got 0.0."),
    ({"options": {"alhpa": 0.2}}, "exgrpo.options.alhpa is not a key; did you mean alpha?"),
    ({"dynamic_sampling": True}, "exgrpo.policy=rl_zvp"),
])  # fmt: skip
def test_nonsense_is_refused_by_name(values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make("rl_zvp", K, **values)

"""Masked GRPO: which groups leave the update (App. F.1), and that nothing is kept from step to step."""

from fractions import Fraction

import pytest
from steps import Lent, fresh, make, rewards

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Group

K = 4
# App. F.1, as intervals of k/K.
BANDS = {
    "easy": lambda share: Fraction(3, 4) <= share < 1,
    "medium": lambda share: Fraction(1, 4) < share <= Fraction(3, 4),
    "hard": lambda share: 0 < share <= Fraction(1, 4),
}


def masked(band: str, **values):
    return make("masked", K, mask={"band": band}, **values)


@pytest.mark.parametrize("band", BANDS)
def test_groups_outside_the_band_leave_whole_and_nothing_takes_their_places(band):
    groups = [Group(f"q{k}", rewards(k, K)) for k in range(K + 1)]
    arrangement = masked(band).arrange(groups, Lent().tools, 1)
    outside = [k for k in range(K + 1) if not BANDS[band](Fraction(k, K))]
    assert arrangement.leave == [(k, j) for k in outside for j in range(K)]
    assert not arrangement.place
    assert arrangement.advantages == {}
    assert 0 < len(outside) <= K


def test_rates_of_partial_groups_are_of_what_came_back():
    groups = [Group("a", [1.0, 0.0]), Group("b", [0.0, 0.0, 0.0])]
    assert masked("medium").arrange(groups, Lent().tools, 1).leave == [(1, 0), (1, 1), (1, 2)]


def test_a_success_is_a_reward_above_the_threshold():
    policy = masked("hard", bookkeeping={"success_threshold": 0.8})
    assert policy.arrange([Group("a", [0.9, 0.8, 0.8, 0.0])], Lent().tools, 1).leave == []


def test_it_is_the_on_policy_baseline_otherwise():
    """No store: `loss.fresh_clip: before_replay` goes on clipping, and nothing is saved but the generator."""
    policy = masked("hard", loss={"beta": 0.5})
    assert policy.plan(3, fresh()) == make("on_policy", K).plan(3, fresh())
    assert (policy.active, policy.store, policy.loss) == (False, None, LossConfig(beta=0.5))
    assert policy.metrics(1) == dict.fromkeys(METRICS, 0.0)

"""Which fresh rollouts of a group are kept (rule `exgrpo.admit`): positions among them, ascending."""

import numpy as np

from recipe.exgrpo.core.policies.policy import Group
from recipe.exgrpo.core.policies.rules import Context


def successes(group: Group, context: Context) -> list[int]:
    """Rewards above `bookkeeping.success_threshold` (Alg. 1)."""
    bar = context.config.bookkeeping.success_threshold
    return [i for i, reward in enumerate(group.fresh_rewards) if reward > bar]


def lone_success(group: Group, context: Context) -> list[int]:
    """The success of a group that has one among its fresh rollouts (SU-01, arXiv 2605.13301); nothing of any other group."""
    found = successes(group, context)
    return found if len(found) == 1 else []


def above_mean(group: Group, context: Context) -> list[int]:
    """Rewards above the mean of the whole group, for continuous rewards (section 5.3)."""
    bar = float(np.mean(group.rewards))
    return [i for i, reward in enumerate(group.fresh_rewards) if reward > bar]


def everything(group: Group, context: Context) -> list[int]:
    """All of them, failures too."""
    return list(range(len(group.fresh_rewards)))


ADMIT = {rule.__name__: rule for rule in (successes, lone_success, above_mean, everything)}

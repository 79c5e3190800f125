"""A policy and rules that live outside the package, as a user's would: all that is needed is PYTHONPATH=tests/extension."""

from dataclasses import dataclass

import numpy as np

from recipe.exgrpo.core.policies.policy import Arrangement, Placed
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.core.policies.rules import scored


@dataclass(frozen=True)
class RescueOptions:
    """`exgrpo.options`: how old a rescuer may be, in steps (0 switches rescue off), and how many groups per step get one."""

    max_age_steps: int = 50
    most_groups: int | None = None


class Rescue(Replay):
    """A group whose rollouts all failed gets one stored success of its own question in the place of its last rollout.

    The advantages are those of the group that it is then: one success and K - 1 failures.
    """

    OWN = Replay.OWN | {"rank": "random"}
    Options = RescueOptions

    def __init__(self, config, group_size, options):
        super().__init__(config, group_size, options)
        self.rescued, self.rescued_ever = 0, 0

    def arrange(self, groups, tools, step):
        self.rescued = 0
        if not self.active:
            return Arrangement()
        failed = [i for i, group in enumerate(groups) if not self.successes(group)]
        found = {i: row for i in failed if (row := self.rescuer(groups[i], tools, step)) is not None}
        found = dict(list(found.items())[: self.options.most_groups])
        self.rescued, self.rescued_ever = len(found), self.rescued_ever + len(found)
        size = {i: groups[i].size for i in found}
        return Arrangement(
            leave=[(i, size[i] - 1) for i in found],
            place=[Placed(self.take(row, step), 1 - 1 / size[i]) for i, row in found.items()],
            advantages={(i, j): -1 / size[i] for i in found for j in range(size[i] - 1)},
        )

    def rescuer(self, group, tools, step):
        """Handle of the stored success of the group's question that is to help; None without one young enough."""
        rows = self.store.candidates(self.store.rows(group.question))
        rows = rows[rows.age(step) <= self.options.max_age_steps] if self.options.max_age_steps else rows[[]]
        return int(rows.row[self.rank(rows, None, self.context(step))[0]]) if len(rows) else None

    def metrics(self, step):
        return super().metrics(step) | {"rescued_groups": float(self.rescued)}

    def state_dict(self):
        return super().state_dict() | {"rescued_ever": self.rescued_ever}

    def load_state_dict(self, state, store):
        super().load_state_dict(state, store)
        self.rescued_ever = state["rescued_ever"]


def longest(candidates, scores, context):
    """A rank rule: the longest response first."""
    return np.argsort(-candidates.length, kind="stable")


@scored
def least_likely(candidates, scores, context):
    """A rank rule that costs a forward pass: what the policy would say least of all first."""
    return np.argsort(-scores.nll, kind="stable")

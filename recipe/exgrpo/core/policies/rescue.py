"""Rescue: a group whose fresh rollouts all failed gets one stored success of its own question.

Response reuse of AR3PO (arXiv 2509.25808) and ARPO (2505.16282). The success stands in the place of the last rollout, and the
advantages are those of the group that it is then: reward minus the group's mean.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Fill
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Placed, Tools
from recipe.exgrpo.core.policies.replay import Replay


class Rescue(Fill):
    """Keep successes of all groups; one at random comes to the rescue."""

    OWN = Fill.OWN | {"rank": "random"}

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        if config.place is not None or config.rows.extra:
            raise ValueError(
                "exgrpo.policy=rescue takes places in failed groups: no exgrpo.place, no exgrpo.rows.extra."
            )

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        leave, place, advantages = [], [], {}
        failed = [i for i, group in enumerate(groups) if group.size == self.group_size and not self.successes(group)]
        for i in failed if self.active else ():
            found = self._rescuer(groups[i].question, tools, step)
            if found is None:
                continue
            last = groups[i].size - 1
            rewards = np.array([*groups[i].rewards[:last], found.reward])
            centred = rewards - rewards.mean()
            leave.append((i, last))
            place.append(Placed(found, float(centred[last])))
            advantages |= {(i, j): float(centred[j]) for j in range(last)}
        self.report.rescued = len(leave)
        return Arrangement(leave, place, advantages)

    def _rescuer(self, question: str, tools: Tools, step: int) -> Trajectory | None:
        """The best ranked stored success of `question`; its use is counted."""
        rows = self.entering(self.store.candidates(self.store.rows(question)), step)
        if not len(rows):
            return None
        scores = self.scores_of(self.store, rows, tools)
        order = self.rank(rows, scores, self.context(step))
        self.consider(rows, scores, order, order[:1])
        return self.take(int(rows.row[order[0]]), step)

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store the successes of every group, solved by all or not: what fails now may be what was solved by all."""
        Replay.collect(self, groups, tools, step)

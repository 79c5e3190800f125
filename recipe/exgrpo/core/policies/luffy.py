"""LUFFY (arXiv 2504.14945): one trace from elsewhere in the group of its question, K - 1 fresh rollouts beside it.

The traces are those that the run started with (`exgrpo.experience.init_from`); nothing is collected. Rewards, advantage and
shaping are those of the mixed group, as in ExGRPO; with `exgrpo.experience.importance: none` the weight of a trace's token is
w = pi_theta, and the loss -A w / (w + beta) is LUFFY's with pi_phi = 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.policy import Dataset, Group, Slot, Tools
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.core.policies.rules import needs_scores


class Luffy(Replay):
    """Every question that has traces gets `per_group` of them, as far as there are so many, in the places of fresh rollouts."""

    OWN = Replay.OWN | {"rank": "random"}

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        for key in ("admit", "place"):
            if getattr(config, key) is not None:
                raise ValueError(f"exgrpo.{key} has no say: exgrpo.policy={config.policy} collects and places nothing.")
        if needs_scores(self.rank):
            raise ValueError(
                f"exgrpo.rank={config.rank} needs scores, which exgrpo.policy={config.policy} has none of."
            )
        if not 0 < self.per_group < group_size:
            raise ValueError(
                f"exgrpo.policy={config.policy} puts {self.per_group} traces into groups of {group_size} "
                "(actor_rollout_ref.rollout.n), and at least one rollout must be fresh."
            )
        self._guided: dict[str, int] = {}  # question of this step -> how many traces its group was planned to get

    @property
    def per_group(self) -> int:
        """Most traces in a group."""
        return 1

    def plan(self, size: int, dataset: Dataset) -> list[Slot]:
        """The next questions, with fewer fresh rollouts where traces will join."""
        slots = super().plan(size, dataset)
        found = {slot.question: min(self.per_group, len(self.store.rows(slot.question))) for slot in slots}
        self._guided = {question: n for question, n in found.items() if n and self.active}
        return [replace(slot, rollouts=slot.rollouts - self._guided.get(slot.question, 0)) for slot in slots]

    def inject(self, groups: Sequence[Group], tools: Tools, step: int) -> dict[int, list[Trajectory]]:
        """The traces of every group that was planned with some, as far as the gate lets them in."""
        planned = {i: group.question for i, group in enumerate(groups) if group.question in self._guided}
        joined = {i: self._chosen(question, self._guided[question], step) for i, question in planned.items()}
        joined = {i: traces for i, traces in joined.items() if traces}
        self.report.guided, self.report.skipped = len(joined), len(planned) - len(joined)
        return joined

    def _chosen(self, question: str, n: int, step: int) -> list[Trajectory]:
        """At most `n` traces: the best ranked, then the best of those left, so that random ones are all equally likely."""
        candidates = self.store.candidates(self.store.rows(question))
        candidates = candidates[self.gate(candidates, self.context(step))]
        left, taken = np.arange(len(candidates)), []
        while len(left) and len(taken) < n:
            best = self.rank(candidates[left], None, self.context(step))[0]
            taken.append(int(left[best]))
            left = np.delete(left, best)
        self.consider(candidates, None, np.array([*taken, *left], np.int64), taken)
        return [self.take(int(candidates.row[i]), step) for i in taken]

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Nothing: what a run rolls out is no trace from elsewhere."""

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        return 0

"""What policies with a store have in common: delayed start, report, admission of this step's rollouts, state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Provenance
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.metrics import Report
from recipe.exgrpo.core.policies.policy import Group, Policy, Tools
from recipe.exgrpo.core.schedule import DelayedStart


class Replay(Policy):
    """A policy that keeps trajectories in `store`, once `exgrpo.start_threshold` is passed."""

    store: ExperienceBuffer

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        self.store = ExperienceBuffer(group_size, config.buffer)
        self.schedule = DelayedStart(config.start_threshold)
        self.report = Report()

    @property
    def loss(self) -> LossConfig:
        return self.config.loss

    @property
    def active(self) -> bool:
        return self.schedule.active

    def admit(
        self,
        groups: Sequence[Group],
        kept: Mapping[int, Sequence[int]],
        tools: Tools,
        step: int,
        store: ExperienceBuffer | None = None,
        **how: bool,
    ) -> int:
        """Store the fresh rollouts `kept` (group position -> positions in it), each with its group; returns how many.

        `how` are keywords of `ExperienceBuffer.add`. All are read in one go; `store` is another one than the policy's own.
        """
        store = self.store if store is None else store
        members = [(i, j) for i, positions in kept.items() for j in positions]
        ids = {i: store.new_group() for i, positions in kept.items() if positions}
        added = 0
        for (i, j), response in zip(members, tools.read(members) if members else (), strict=True):
            group, reward = groups[i], groups[i].fresh_rewards[j]
            advantage = reward - float(np.mean(group.rewards))
            provenance = Provenance(ids[i], self.successes(group), group.size, advantage)
            added += store.add(group.question, response, reward, step, provenance=provenance, **how)
        return added

    def successes(self, group: Group) -> int:
        """Members with a reward above `bookkeeping.success_threshold`."""
        return sum(reward > self.config.bookkeeping.success_threshold for reward in group.rewards)

    def metrics(self, step: int) -> dict[str, float]:
        return self.report.metrics(self.store, step)

    def state_dict(self) -> dict:
        return super().state_dict() | {"replay_active": self.schedule.active}

    def load_state_dict(self, state: dict, store: ExperienceBuffer) -> None:
        super().load_state_dict(state, store)
        self.schedule.active = bool(state["replay_active"]) or self.schedule.active

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        return rollouts * steps

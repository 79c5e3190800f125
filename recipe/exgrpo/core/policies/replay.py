"""What policies with a store have in common: rules by name, delayed start, admission of this step's rollouts, state."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from recipe.exgrpo.core.buffer import Candidates, ExperienceBuffer, Provenance, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.admit import ADMIT
from recipe.exgrpo.core.policies.choices import Choice
from recipe.exgrpo.core.policies.gate import GATE
from recipe.exgrpo.core.policies.metrics import Report
from recipe.exgrpo.core.policies.place import PLACE
from recipe.exgrpo.core.policies.policy import Dataset, Group, Policy, Slot, Tools
from recipe.exgrpo.core.policies.rank import RANK
from recipe.exgrpo.core.policies.rules import chosen
from recipe.exgrpo.core.schedule import DelayedStart
from recipe.exgrpo.core.selection import Scores


class Replay(Policy):
    """A policy that keeps trajectories in `store`, once `exgrpo.start_threshold` is passed.

    `OWN` names its own rules, which `exgrpo.admit`, `rank`, `gate` and `place` replace.
    """

    OWN: ClassVar[Mapping[str, str]] = {
        "admit": "successes",
        "rank": "newest",
        "gate": "always",
        "place": "zero_variance",
    }
    needs_all_groups = True
    store: ExperienceBuffer

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        self.store = ExperienceBuffer(group_size, config.buffer)
        self.schedule = DelayedStart(config.start_threshold)
        self.report = Report()
        self.admits = chosen("admit", config.admit, self.OWN["admit"], ADMIT)
        self.rank = chosen("rank", config.rank, self.OWN["rank"], RANK)
        self.gate = chosen("gate", config.gate, self.OWN["gate"], GATE)
        self.place = chosen("place", config.place, self.OWN["place"], PLACE)

    @property
    def loss(self) -> LossConfig:
        return self.config.loss

    @property
    def active(self) -> bool:
        return self.schedule.active

    def plan(self, size: int, dataset: Dataset) -> list[Slot]:
        self.report = Report(active=self.active)
        return super().plan(size, dataset)

    def finish(self, groups: Sequence[Group], tools: Tools, step: int, pass_rate: float) -> None:
        """Collect while active, apply the bounds of the store, and let the schedule see the fresh rollouts."""
        if self.active:
            self.collect(groups, tools, step)
        self.report.evicted = self.store.enforce_limits(step)
        self.schedule.observe(pass_rate)

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store what the admit rule takes of every group, with its prompt."""
        kept = {i: self.admits(group, self.context(step)) for i, group in enumerate(groups)}
        self.report.added = self.admit(groups, kept, tools, step, keep_prompt=True)

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

    def take(self, row: int, step: int, store: ExperienceBuffer | None = None) -> Trajectory:
        """The stored trajectory `row` for the update of `step`; its use is counted and reported."""
        store = self.store if store is None else store
        trajectory = store.trajectory(row)
        self.report.replayed(trajectory, step)
        store.mark_used(row, step)
        return trajectory

    def consider(
        self,
        candidates: Candidates,
        scores: Scores | None,
        order: np.ndarray,
        taken: Sequence[int] | np.ndarray,
        store: ExperienceBuffer | None = None,
    ) -> None:
        """Report what competed: positions in `candidates`, all in the rank rule's `order`, and those `taken`.

        Before they are taken: uses are reported as they were. Those of another `store` than the policy's own have no handle
        that outlives the step.
        """
        choice = Choice.of(self.store if store is None else store, candidates, scores, order, taken)
        if store is not None and store is not self.store:
            choice = replace(choice, row=[-1] * len(choice.row))
        self.report.choices.append(choice)

    def choices(self) -> list[Choice]:
        return self.report.choices

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

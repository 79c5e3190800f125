"""Prompt replay (arXiv 2603.21177): questions of middling difficulty come back soon, with fresh rollouts only.

A question whose pass rate is within `exgrpo.prompts.low` and `high` is kept. Those nearest to 0.5 come first, at most
`exgrpo.rho` of a batch, each not before `buffer.cooldown_steps` steps have passed and at most `buffer.max_reuse` times. A
question that leaves the band, solved often enough or too seldom, is forgotten. Nothing stored enters an update, whatever
`exgrpo.inject` says.
"""

from collections.abc import Sequence
from typing import Any

from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.metrics import Report
from recipe.exgrpo.core.policies.policy import Dataset, Group, Policy, Slot, Tools
from recipe.exgrpo.core.sampler import interleave, share_of
from recipe.exgrpo.core.schedule import DelayedStart


class Prompts(Policy):
    """Questions by their last pass rate; `kept` has [successes, uses, first step at which it may come] of each."""

    plans_questions = True
    needs_all_groups = True

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        self.store = ExperienceBuffer(group_size, config.buffer)
        self.schedule = DelayedStart(config.start_threshold)
        self.kept: dict[str, list[int]] = {}
        self.next_step, self.planned, self.graduated = 1, [], 0

    @property
    def active(self) -> bool:
        return self.schedule.active

    def skips(self, question: str) -> bool:
        """Already in this step."""
        return question in self.planned

    def plan(self, size: int, dataset: Dataset) -> list[Slot]:
        ready = [question for question, (_, _, first) in self.kept.items() if self.active and first <= self.next_step]
        ready.sort(key=lambda question: abs(self.kept[question][0] / self.group_size - 0.5))
        self.planned = ready[: share_of(size, self.config.rho)]
        fresh = [self.draw(dataset) for _ in range(size - len(self.planned))]
        return interleave([Slot(question, self.group_size, planned=True) for question in self.planned], fresh)

    def finish(self, groups: Sequence[Group], tools: Tools, step: int, pass_rate: float) -> None:
        self.next_step, before = step + 1, set(self.kept)
        for group in groups:
            if self.active and group.size == self.group_size:
                self._settle(group, step)
        self.graduated = len(before - set(self.kept))
        self.schedule.observe(pass_rate)

    def _settle(self, group: Group, step: int) -> None:
        """Keep the question of a whole group, or forget it."""
        bounds, limit = self.config.prompts, self.config.buffer.max_reuse
        count = sum(reward > self.config.bookkeeping.success_threshold for reward in group.rewards)
        uses = self.kept.pop(group.question, [0, 0, 0])[1] + group.planned
        self.store.discard(group.question)
        if bounds.low <= count / self.group_size <= bounds.high and (limit is None or uses < limit):
            self.kept[group.question] = [count, uses, step + 1 + self.config.buffer.cooldown_steps]
            self.store.record(group.question, count)

    def metrics(self, step: int) -> dict[str, float]:
        found = {
            "replay_active": self.active,
            "planned_questions": len(self.planned),
            "kept_prompts": len(self.kept),
            "graduated_prompts": self.graduated,
        }
        return Report().metrics(self.store, step) | {name: float(value) for name, value in found.items()}

    def state_dict(self) -> dict:
        return super().state_dict() | {"kept": self.kept, "next_step": self.next_step, "replay_active": self.active}

    def load_state_dict(self, state: dict, store: ExperienceBuffer) -> None:
        super().load_state_dict(state, store)
        there = set(store.questions())  # one that left the dataset does not come back
        self.kept = {question: list(values) for question, values in state["kept"].items() if question in there}
        self.next_step = int(state["next_step"])
        self.schedule.active = bool(state["replay_active"]) or self.schedule.active

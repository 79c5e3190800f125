"""ExGRPO (Alg. 1): partly solved questions come back, each with one stored success among K - 1 fresh rollouts."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.admit import above_mean
from recipe.exgrpo.core.policies.bookkeeping import Bookkeeping
from recipe.exgrpo.core.policies.metrics import Report
from recipe.exgrpo.core.policies.policy import Dataset, Group, Slot, Tools
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.core.policies.rules import needs_scores
from recipe.exgrpo.core.sampler import interleave, sample_questions, share_of
from recipe.exgrpo.core.selection import Scores

logger = logging.getLogger(__name__)


class ExGRPO(Replay):
    """Admit successes of partly solved groups, draw questions from buckets, take the trajectory with the lowest entropy."""

    OWN = Replay.OWN | {"rank": "lowest_entropy"}
    plans_questions = True

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        if config.place is not None:
            raise ValueError(f"exgrpo.place={config.place}: exgrpo.policy={config.policy} plans its places beforehand.")
        if config.bookkeeping.outcome == "reward_spread" and config.admit is None:
            self.admits = above_mean
        self.bookkeeping = Bookkeeping(self.store, config.bookkeeping)
        self._reviews: dict[str, None] = {}  # retired questions on their way back, in order
        self._taken: set[str] = set()
        self._reuse_retired = False

    def skips(self, question: str) -> bool:
        """Already in this step, or retired while enough questions are not."""
        return question in self._taken or (self.store.is_retired(question) and not self._reuse_retired)

    def plan(self, size: int, dataset: Dataset) -> list[Slot]:
        """n = min(floor(rho B), eligible) stored questions with K - 1 rollouts each, B - n others with K.

        The others are questions under review, as far as there are any, and then fresh ones.
        """
        self.report = Report(active=self.active)
        planned = self._planned(share_of(size, self.config.rho))
        reviewed = self._reviewed(size - len(planned))
        self._taken, self._reuse_retired = {*planned, *reviewed}, self._too_few_left(dataset, size)
        others = [Slot(question, self.group_size, planned=True) for question in reviewed]
        others += [self.draw(dataset) for _ in range(size - len(planned) - len(reviewed))]
        rollouts = self.group_size - self.config.inject
        return interleave([Slot(question, rollouts, planned=True) for question in planned], others)

    def _reviewed(self, room: int) -> list[str]:
        """The questions under review that come into this step; they are not retired any more."""
        found = list(self._reviews)[:room]
        for question in found:
            del self._reviews[question]
            self.store.unretire(question)
        self.report.reviewed = len(found)
        return found

    def _too_few_left(self, dataset: Dataset, size: int) -> bool:
        """Whether the questions that are not retired no longer fill a step."""
        left = len(dataset) - len(self.store.retired)
        if left < size:
            logger.warning("only %d questions are not retired; training on retired ones again", left)
        return left < size

    def draw(self, dataset: Dataset) -> Slot:
        slot = super().draw(dataset)
        self._taken.add(slot.question)
        return slot

    def _planned(self, wanted: int) -> list[str]:
        if not self.active:
            return []
        questions = sample_questions(self.store, wanted, self.config.question, self.rng)
        self.report.planned = len(questions)
        return questions

    def inject(self, groups: Sequence[Group], tools: Tools, step: int) -> dict[int, list[Trajectory]]:
        """The stored trajectory of every planned question that still has fresh rollouts; scored in one call."""
        live = [i for i, group in enumerate(groups) if group.planned]
        if not self.config.inject:
            # A control: nothing stored enters, and yet a question was drawn: bounds on its use and its cooldown count.
            for i in live:
                self.store.mark_drawn(groups[i].question, step)
            return {}
        rows = {i: self._candidates(groups[i].question, step) for i in live}
        rows = {i: found for i, found in rows.items() if len(found)}
        scores = self._scores(rows, tools)
        joined = {i: [self._select(found, scores.get(i), step)] for i, found in rows.items()}
        self.report.replayed_questions = len(joined)
        self.report.skipped = self.report.planned - len(joined)
        return joined

    def _candidates(self, question: str, step: int) -> np.ndarray:
        """Handles of the stored trajectories of `question` that may enter now, in order of storage."""
        rows = self.store.rows(question)
        return rows[self.gate(self.store.candidates(rows), self.context(step))]

    def _scores(self, rows: dict[int, np.ndarray], tools: Tools) -> dict[int, Scores]:
        """Scores of the candidates of each group, remembered in the store; empty when the rank rule needs none."""
        if not rows or not needs_scores(self.rank):
            return {}
        handles = np.concatenate(list(rows.values()))
        scores = tools.score([self.store.trajectory(int(row)) for row in handles])
        self.store.mark_scored(handles, scores.entropy, scores.nll, scores.drift)
        self.report.scored = len(handles)
        owner = np.repeat(list(rows), [len(found) for found in rows.values()])
        return {i: scores[owner == i] for i in rows}

    def _select(self, rows: np.ndarray, scores: Scores | None, step: int) -> Trajectory:
        """The best ranked of `rows`; its use is noted."""
        candidates = self.store.candidates(rows)
        order = self.rank(candidates, scores, self.context(step))
        self.consider(candidates, scores, order, order[:1])
        return self.take(int(rows[order[0]]), step)

    def finish(self, groups: Sequence[Group], tools: Tools, step: int, pass_rate: float) -> None:
        if not self.active and self.config.bookkeeping.retire_from_start:
            self.bookkeeping.retire_solved(groups, self.report)
        super().finish(groups, tools, step, pass_rate)

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Grade all groups, store what is admitted of those solved in part, and review."""
        context = self.context(step)
        kept = self.bookkeeping.grade(groups, self.report)
        self.report.added = self.admit(groups, {i: self.admits(groups[i], context) for i in kept}, tools, step)
        self._reviews |= dict.fromkeys(self.bookkeeping.review(step, self.rng, self._reviews))

    def state_dict(self) -> dict:
        return super().state_dict() | {"reviews": list(self._reviews)}

    def load_state_dict(self, state: dict, store: ExperienceBuffer) -> None:
        super().load_state_dict(state, store)
        self.bookkeeping.store = store
        # A question that left the dataset, or that another policy never retired, is not under review.
        self._reviews = dict.fromkeys(question for question in state["reviews"] if store.is_retired(question))

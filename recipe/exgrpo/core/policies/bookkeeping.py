"""What happens to questions once their groups are graded (Alg. 1): success counts, buckets, retirement, review."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import BookkeepingConfig
from recipe.exgrpo.core.outcomes import spread_buckets
from recipe.exgrpo.core.policies.metrics import Report
from recipe.exgrpo.core.policies.policy import Group


def success_count(group: Group, group_size: int, config: BookkeepingConfig) -> int:
    """s of the mixed group, 0..K (Alg. 1); with `fresh_only` by fresh rollouts alone, scaled to K."""
    fresh = sum(reward > config.success_threshold for reward in group.fresh_rewards)
    if not group.joined:
        return fresh
    if not config.fresh_only:
        return sum(reward > config.success_threshold for reward in group.rewards)
    tried = len(group.fresh_rewards)
    if fresh in (0, tried):
        return group_size if fresh else 0
    return min(max(round(fresh * group_size / tried), 1), group_size - 1)


class Bookkeeping:
    """Buckets and the retired set of one buffer."""

    def __init__(self, store: ExperienceBuffer, config: BookkeepingConfig) -> None:
        self.store, self.config = store, config

    def grade(self, groups: Sequence[Group], report: Report) -> list[int]:
        """Update buckets and the retired set; returns positions of the groups whose rollouts may be admitted.

        A partial group (a failed session) changes nothing: its count is not out of K.
        """
        whole = [i for i, group in enumerate(groups) if group.size == self.store.group_size]
        report.partial_groups += len(groups) - len(whole)
        counts = self._counts([groups[i] for i in whole])
        kept = [i for i, count in zip(whole, counts, strict=True) if self._settle(groups[i].question, count, report)]
        # A dataset smaller than the batch has a question twice in a step, solved in part and then by all.
        return [i for i in kept if not self.store.is_retired(groups[i].question)]

    @property
    def solved_above(self) -> int:
        """With more successes of K than this a question is solved: K - 1, or `bookkeeping.retire_above`."""
        most = self.store.group_size - 1
        return most if self.config.retire_above is None else min(self.config.retire_above, most)

    def _counts(self, groups: Sequence[Group]) -> list[int]:
        """The bucket of each whole group, 0..K, by `bookkeeping.outcome`."""
        if self.config.outcome == "reward_spread":
            return spread_buckets([group.rewards for group in groups], self.store.group_size)
        return [success_count(group, self.store.group_size, self.config) for group in groups]

    def _settle(self, question: str, count: int, report: Report) -> bool:
        """Retire a question, move it to its bucket, or mark it ineligible; true when its fresh successes are to be stored."""
        if self.store.is_retired(question):
            return False
        if count > self.solved_above:
            self._solved(question, report)
            return False
        upper = self.store.group_size - 1 if self.config.upper is None else self.config.upper
        if self.config.lower < count <= upper:
            self.store.record(question, count)
            return True
        if count == 0 and not self.config.keep_unsolved and self.store.latest_count(question) is not None:
            self.store.record(question, 0)
        return False

    def _solved(self, question: str, report: Report) -> None:
        """Into the retired set, or only out of the buckets when retirement is off."""
        if self.config.retire:
            self.store.retire(question)
            report.retired += 1
        elif self.store.latest_count(question) is not None:
            self.store.record(question, 0)

    def retire_solved(self, groups: Sequence[Group], report: Report) -> None:
        """Retire what is solved and leave everything else (`bookkeeping.retire_from_start`, before replay)."""
        for group in groups:
            whole = group.size == self.store.group_size
            if whole and success_count(group, group.size, self.config) > self.solved_above:
                self._solved(group.question, report)

    def review(self, step: int, rng: np.random.Generator, waiting: Collection[str]) -> list[str]:
        """A share of the retired questions every `review_interval` steps, at random; those `waiting` already left out.

        They are to come into the batch again (Table 7, App. E.4): the dataset's cursor has passed them, so that taking them out
        of the retired set alone would bring none of them back.
        """
        if not self.config.review_interval or step % self.config.review_interval:
            return []
        retired = [question for question in self.store.retired if question not in waiting]
        size = math.ceil(self.config.review_share * len(retired))
        return [retired[i] for i in rng.choice(len(retired), size=size, replace=False).tolist()] if retired else []

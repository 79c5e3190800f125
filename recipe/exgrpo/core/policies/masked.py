"""Masked GRPO (App. F.1): plain GRPO whose gradient uses only groups of one band of success rates."""

from collections.abc import Sequence

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.outcomes import in_band
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Policy, Tools


class Masked(Policy):
    """Groups outside `exgrpo.mask.band` leave the update; their sequences stay in the normaliser."""

    @property
    def loss(self) -> LossConfig:
        return self.config.loss

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        threshold, band = self.config.bookkeeping.success_threshold, self.config.mask.band
        outside = [
            i
            for i, group in enumerate(groups)
            if not in_band(sum(reward > threshold for reward in group.rewards), group.size, band)
        ]
        return Arrangement(leave=[(i, j) for i in outside for j in range(groups[i].size)])

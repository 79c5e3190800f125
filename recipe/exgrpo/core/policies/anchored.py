"""Single rollouts of earlier steps beside the fresh batch (arXiv 2606.04560, and 2604.16918 with rank `fresh`).

Each rollout of a mixed group, success or failure, is drawn by itself, with the log-probs and the advantage of its birth step.
How long it may be drawn is `exgrpo.buffer.max_age_steps`.
"""

from collections.abc import Sequence

from recipe.exgrpo.core.policies.fill import Fill
from recipe.exgrpo.core.policies.policy import Group, Placed, Tools


class Anchored(Fill):
    """Rollouts drawn with weight (|A| + eps)^`rows.alpha`, without replacement."""

    OWN = Fill.OWN | {"admit": "everything", "rank": "advantage"}

    def drawn(self, budget: int, groups: Sequence[Group], tools: Tools, step: int) -> list[Placed]:
        rows = self.entering(self.store.candidates(), step)
        if not len(rows) or not budget:
            return []
        scores = self.scores_of(self.store, rows, tools)
        order = self.rank(rows, scores, self.context(step))
        self.consider(rows, scores, order, order[:budget])
        return [self.placed(self.take(int(row), step)) for row in rows.row[order[:budget]]]

"""Zero-variance refill (ours): past successes take the places of groups whose rewards do not differ.

Such a group has no advantage; it leaves the update, and its sequences are the budget. The budget is filled with stored groups:
the successes of one earlier mixed group, with their behaviour log-probs and their advantage 1 - k/K frozen at collection. No
rollout and no updated sequence is added, and the normaliser stays the number of sequences.
"""

from collections.abc import Sequence

from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Fill, StoredGroups, fitting
from recipe.exgrpo.core.policies.policy import Group, Placed, Tools


class Refill(Fill):
    """Admit successes of mixed groups, draw rare ones first, while they are recent, into the rows of zero-variance groups."""

    OWN = Fill.OWN | {"rank": "rarity", "gate": "recent"}

    def drawn(self, budget: int, groups: Sequence[Group], tools: Tools, step: int) -> list[Placed]:
        """Stored groups in the order of the rank rule, as far as they fit into `budget` rows; their use is counted.

        `source: current` is the control that trains twice on just this step's successes.
        """
        store = self.store
        if self.config.refill.source == "current":
            store = ExperienceBuffer(self.group_size)
            self.admit_mixed(store, groups, tools, step)
        stored = StoredGroups.of(store)
        stored = stored[self.gate(stored.heads, self.context(step))]
        if not stored.rows:
            return []
        scores = self.scores_of(store, stored.heads, tools)
        order = self.rank(stored.heads, scores, self.context(step))
        taken = fitting(order, stored.sizes, budget)
        self.consider(stored.heads, scores, order, taken, store)
        self.report.drawn_groups = len(taken)
        return [self.placed(self.take(int(row), step, store)) for i in taken for row in stored.rows[i]]

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store this step's successes of mixed groups, and drop what can never be drawn again: memory stays bounded."""
        if self.config.refill.source == "past":
            super().collect(groups, tools, step)
        rows, bounds = self.store.candidates(), self.config.refill
        old = rows.age(step + 1) > bounds.max_age_steps
        self.store.drop(rows.row[old], "age")
        self.store.drop(rows.row[~old & (rows.use_count >= bounds.reps)], "reuse")

    @staticmethod
    def placed(trajectory: Trajectory) -> Placed:
        """With 1 - k/K, also where rewards are not 0 and 1."""
        return Placed(trajectory, 1.0 - trajectory.provenance.successes / trajectory.provenance.size)

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        return rollouts * min(steps, config.refill.max_age_steps)

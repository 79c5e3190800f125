"""Zero-variance refill (ours): past successes take the places of groups whose rewards do not differ.

Such a group has no advantage; it leaves the update, and its sequences are the budget. The budget is filled with stored groups:
the successes of one earlier mixed group, with their behaviour log-probs and their advantage 1 - k/K frozen at collection. No
rollout and no updated sequence is added, and the normaliser stays the number of sequences.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recipe.exgrpo.core.buffer import Candidates, ExperienceBuffer, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Placed, Tools
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.core.policies.rules import needs_scores
from recipe.exgrpo.core.selection import Scores


class Refill(Replay):
    """Admit successes of mixed groups, draw rare ones first, while they are recent, into the rows of zero-variance groups."""

    OWN = Replay.OWN | {"rank": "rarity", "gate": "recent"}

    @property
    def loss(self) -> LossConfig:
        """Replayed tokens are PPO-clipped against the stored log-probs, whatever `exgrpo.loss.shaping` says.

        The shaping w / (w + beta) has gradient beta / (1 + beta)^2 = 0.083 at w = 1; the clipped weight has 1.
        """
        return replace(self.config.loss, shaping="clip", importance="past")

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        """Stored groups for the rows of zero-variance groups; nothing while inactive.

        Drawn before this step's successes are stored: the update holds those already. `source: current` is the control that
        trains on just those twice.
        """
        if not self.active:
            return Arrangement()
        leave = self.place(groups, self.context(step))
        self.report.zero_variance_groups, self.report.freed = len({i for i, _ in leave}), len(leave)
        store = self.store
        if self.config.refill.source == "current":
            store = ExperienceBuffer(self.group_size)
            self._collect(store, groups, tools, step)
        return Arrangement(leave, self._draw(store, len(leave), tools, step) if leave else ())

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store this step's successes of mixed groups, and drop what can never be drawn again: memory stays bounded."""
        self.report.partial_groups = sum(group.size != self.group_size for group in groups)
        if self.config.refill.source == "past":
            self.report.added = self._collect(self.store, groups, tools, step)
        rows, bounds = self.store.candidates(), self.config.refill
        old = rows.age(step + 1) > bounds.max_age_steps
        self.store.drop(rows.row[old], "age")
        self.store.drop(rows.row[~old & (rows.use_count >= bounds.reps)], "reuse")

    def _collect(self, store: ExperienceBuffer, groups: Sequence[Group], tools: Tools, step: int) -> int:
        """Store what is admitted of every whole mixed group, with its prompt; returns how many."""
        kept = {
            i: self.admits(group, self.context(step))
            for i, group in enumerate(groups)
            if group.size == self.group_size and 0 < self.successes(group) < self.group_size
        }
        # A group is drawn as a whole, so that equal responses count as often as they were sampled.
        return self.admit(groups, kept, tools, step, store, keep_prompt=True, keep_duplicates=True)

    def _draw(self, store: ExperienceBuffer, budget: int, tools: Tools, step: int) -> list[Placed]:
        """Stored groups in the order of the rank rule, as far as they fit into `budget` rows; their use is counted."""
        rows = store.candidates()
        _, first, sizes = np.unique(rows.group, return_index=True, return_counts=True)
        may = self.gate(rows[first], self.context(step)) & rows.has_prompt[first]
        heads, sizes = rows[first[may]], sizes[may]
        if not len(heads):
            return []
        scores = self._scores(store, heads, tools)
        order = self.rank(heads, scores, self.context(step))
        taken = fitting(order, sizes, budget)
        self.consider(heads, scores, order, taken, store)
        placed = []
        for i in taken:
            members = rows.row[rows.group == heads.group[i]]
            placed += [self._placed(self.take(int(row), step, store)) for row in members]
            self.report.drawn_groups += 1
        return placed

    def _scores(self, store: ExperienceBuffer, heads: Candidates, tools: Tools) -> Scores | None:
        """Scores of the first trajectory of each stored group, where the rank rule needs them."""
        if not needs_scores(self.rank):
            return None
        self.report.scored = len(heads)
        return tools.score([store.trajectory(int(row)) for row in heads.row])

    @staticmethod
    def _placed(trajectory: Trajectory) -> Placed:
        return Placed(trajectory, 1.0 - trajectory.provenance.successes / trajectory.provenance.size)

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        return rollouts * min(steps, config.refill.max_age_steps)


def fitting(order: np.ndarray, sizes: np.ndarray, budget: int) -> list[int]:
    """The first of `order` whose `sizes` (rows) fit into `budget`; one too big for what is left is skipped.

    Skipping, instead of stopping, fills as many rows as there is something for; it favours small groups only in the last few
    rows, and those are the rare successes that the weights favour as well.
    """
    taken, left = [], budget
    for i in order.tolist():
        if sizes[i] <= left:
            taken.append(i)
            left -= int(sizes[i])
        if left == 0:
            break
    return taken

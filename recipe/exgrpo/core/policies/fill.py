"""What policies share that bring stored trajectories into the update as rows of their own (refill, headroom, anchored, ...).

They take the rows of zero-variance groups, which have no advantage: no sequence is added, and the normaliser stays the number
of sequences. With `exgrpo.rows.extra` they come on top of the batch instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from recipe.exgrpo.core.buffer import Candidates, ExperienceBuffer, Trajectory
from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Placed, Tools
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.core.policies.rules import needs_scores
from recipe.exgrpo.core.sampler import share_of
from recipe.exgrpo.core.selection import Scores


class Fill(Replay):
    """Rollouts of mixed groups are kept with their prompts; `drawn` says which come back, with the advantage they had then."""

    @property
    def loss(self) -> LossConfig:
        """Stored tokens are PPO-clipped against the stored log-probs, whatever `exgrpo.loss.shaping` says.

        The shaping w / (w + beta) has gradient beta / (1 + beta)^2 = 0.083 at w = 1; the clipped weight has 1.
        """
        return replace(self.config.loss, shaping="clip", importance="past")

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        """Stored rows for the budget of this step; nothing while inactive.

        Drawn before this step's rollouts are stored: the update holds those already.
        """
        if not self.active:
            return Arrangement()
        if self.config.rows.extra:
            budget = share_of(sum(group.size for group in groups), self.config.rows.extra)
            return Arrangement(extra=self.drawn(budget, groups, tools, step))
        leave = self.place(groups, self.context(step))
        self.report.zero_variance_groups, self.report.freed = len({i for i, _ in leave}), len(leave)
        return Arrangement(leave, self.drawn(len(leave), groups, tools, step) if leave else ())

    def drawn(self, budget: int, groups: Sequence[Group], tools: Tools, step: int) -> Sequence[Placed]:
        """At most `budget` stored trajectories for this step's update."""
        raise NotImplementedError

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store what is admitted of every whole mixed group."""
        self.report.partial_groups = sum(group.size != self.group_size for group in groups)
        self.report.added = self.admit_mixed(self.store, groups, tools, step)

    def admit_mixed(self, store: ExperienceBuffer, groups: Sequence[Group], tools: Tools, step: int) -> int:
        """Store what is admitted of every whole group with successes and failures, with its prompt; returns how many."""
        kept = {
            i: self.admits(group, self.context(step))
            for i, group in enumerate(groups)
            if group.size == self.group_size and 0 < self.successes(group) < self.group_size
        }
        # Equal responses count as often as they were sampled.
        return self.admit(groups, kept, tools, step, store, keep_prompt=True, keep_duplicates=True)

    def entering(self, rows: Candidates, step: int) -> Candidates:
        """Those of `rows` that may stand in this step's batch: with a prompt, and let in by the gate rule."""
        return rows[rows.has_prompt & self.gate(rows, self.context(step))]

    def scores_of(self, store: ExperienceBuffer, candidates: Candidates, tools: Tools) -> Scores | None:
        """Scores of all `candidates` by one forward pass, where the rank rule needs them."""
        if not needs_scores(self.rank):
            return None
        self.report.scored += len(candidates)
        return tools.score([store.trajectory(int(row)) for row in candidates.row])

    @staticmethod
    def placed(trajectory: Trajectory) -> Placed:
        """With the advantage that the trajectory had in the group that it was collected in."""
        return Placed(trajectory, trajectory.provenance.advantage)


@dataclass(frozen=True)
class StoredGroups:
    """Groups of a store in order of collection: `heads` has the first trajectory of each, `rows` the handles of all members."""

    heads: Candidates
    rows: list[np.ndarray]

    @classmethod
    def of(cls, store: ExperienceBuffer) -> "StoredGroups":
        """Those that can stand in a batch: collected in a group, and with a prompt."""
        found = store.candidates()
        found = found[found.has_prompt & (found.group >= 0)]
        order = np.argsort(found.group, kind="stable")
        _, first = np.unique(found.group[order], return_index=True)
        return cls(found[order[first]], np.split(found.row[order], first[1:]) if len(first) else [])

    @property
    def sizes(self) -> np.ndarray:
        """Members of each, int64 [n]."""
        return np.array([len(rows) for rows in self.rows], np.int64)

    def __getitem__(self, keep: np.ndarray) -> "StoredGroups":
        """Those where `keep`, bool [n] or positions."""
        positions = np.arange(len(self.rows))[keep]
        return StoredGroups(self.heads[positions], [self.rows[i] for i in positions])


def pooled(scores: Scores, tokens: Sequence[int], sizes: Sequence[int]) -> Scores:
    """Scores of groups of `sizes` trajectories each: means over the `tokens` of all their members, not over members."""
    owner, weight = np.repeat(np.arange(len(sizes)), sizes), np.asarray(tokens, np.float64)
    total = np.bincount(owner, weight, len(sizes))
    names = [field.name for field in fields(Scores)]
    return Scores(**{name: np.bincount(owner, weight * getattr(scores, name), len(sizes)) / total for name in names})


def fitting(order: Sequence[int] | np.ndarray, sizes: np.ndarray, budget: int) -> list[int]:
    """The first of `order` whose `sizes` (rows) fit into `budget`; one too big for what is left is skipped.

    Skipping, instead of stopping, fills as many rows as there is something for; it favours small groups only in the last few
    rows.
    """
    taken, left = [], budget
    for i in order:
        if left and sizes[i] <= left:
            taken.append(int(i))
            left -= int(sizes[i])
    return taken

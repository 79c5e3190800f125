"""Headroom-Drift Replay (arXiv 2609.03941): stored mixed groups with room left to learn, while the policy is near to theirs.

A group is replayed whole, successes and failures, with the advantages it had. Groups come in the order of the headroom that
was last known of them: at collection that of the stored log-probs, later what was found when they were last looked at. Those
whose drift is above `exgrpo.rows.max_drift` are refused and stay, and the next is looked at (Algorithm 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Fill, StoredGroups, fitting, pooled
from recipe.exgrpo.core.policies.policy import Group, Placed, Tools
from recipe.exgrpo.core.policies.rank import RANK
from recipe.exgrpo.core.policies.rules import needs_scores
from recipe.exgrpo.core.selection import Scores, headroom

LOOK_AHEAD = 2  # the first forward pass of a step is over as many groups as fill the budget so many times


class Headroom(Fill):
    """Whole mixed groups by headroom, under the gate of drift."""

    OWN = Fill.OWN | {"admit": "everything", "rank": "headroom", "gate": "drift"}

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        if needs_scores(self.rank) and self.rank is not RANK["headroom"]:
            raise ValueError(
                f"exgrpo.rank={config.rank}: exgrpo.policy=headroom scores only groups that it is about to draw."
            )
        self.known: dict[int, float] = {}  # headroom by group

    def drawn(self, budget: int, groups: Sequence[Group], tools: Tools, step: int) -> list[Placed]:
        stored = StoredGroups.of(self.store)
        if not stored.rows:
            return []
        sizes, known = stored.sizes, self._scores(stored)
        ahead = Ahead(lambda groups: self._score(groups, tools), stored, unknown(len(sizes)))
        waiting = order = self.rank(stored.heads, known, self.context(step))
        taken: list[int] = []
        while len(waiting := waiting[sizes[waiting] <= budget]):
            asked = np.array(fitting(waiting, sizes, budget), np.int64)
            found = ahead.of(asked, waiting, budget)
            put(known, asked, found)
            self.known |= dict(zip(stored.heads.group[asked].tolist(), found.headroom.tolist(), strict=True))
            waiting = waiting[~np.isin(waiting, asked)]
            passed = asked[self.gate(replace(stored.heads[asked], drift=found.drift), self.context(step))]
            self.report.refused += len(asked) - len(passed)
            new = fitting(passed, sizes, budget)
            taken, budget = taken + new, budget - int(sizes[new].sum())
        self.consider(stored.heads, known, order, taken)
        self.report.drew(known[np.array(taken, np.int64)])
        return [self.placed(self.take(int(row), step)) for i in taken for row in stored.rows[i]]

    def _scores(self, stored: StoredGroups) -> Scores:
        """What is known of the groups before this step's forward passes: their headroom."""
        for group, rows in zip(stored.heads.group.tolist(), stored.rows, strict=True):
            if group not in self.known:
                self.known[group] = at_collection(self.store, rows)
        known = np.array([self.known[group] for group in stored.heads.group.tolist()])
        return replace(unknown(len(stored.rows)), headroom=known)

    def _score(self, stored: StoredGroups, tools: Tools) -> Scores:
        """Scores of whole groups by one forward pass; those of single trajectories are noted in the store."""
        rows = np.concatenate(stored.rows)
        trajectories = [self.store.trajectory(int(row)) for row in rows]
        scores = tools.score(trajectories)
        self.report.scored += len(rows)
        self.store.mark_scored(rows, scores.entropy, scores.nll, scores.drift)
        return pooled(scores, [trajectory.mask.sum() for trajectory in trajectories], stored.sizes)

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store whole groups; of more than `rows.capacity` batches of them the oldest go."""
        super().collect(groups, tools, step)
        stored = StoredGroups.of(self.store)
        over = max(0, len(stored.rows) - round(self.config.rows.capacity * len(groups)))
        if over:
            self.store.drop(np.concatenate(stored.rows[:over]), "age")
        left = set(stored.heads.group[over:].tolist())
        self.known = {group: value for group, value in self.known.items() if group in left}

    def state_dict(self) -> dict:
        return super().state_dict() | {"headroom": {str(group): value for group, value in self.known.items()}}

    def load_state_dict(self, state: dict, store: ExperienceBuffer) -> None:
        super().load_state_dict(state, store)
        self.known = {int(group): value for group, value in state["headroom"].items()}

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        return rollouts * min(steps, config.rows.capacity)


@dataclass
class Ahead:
    """Scores of stored groups ahead of their turn, so that a step has two forward passes at most, however many are refused.

    The first is over the next groups that fill the budget `LOOK_AHEAD` times, the second over all that are left. What was
    scored and not looked at is forgotten: the order of later steps does not depend on how much was scored at once.
    """

    score: Callable[[StoredGroups], Scores]
    stored: StoredGroups
    found: Scores

    def of(self, asked: np.ndarray, waiting: np.ndarray, budget: int) -> Scores:
        """Scores of the groups `asked`, positions among those `waiting`, which are in the order of their turns."""
        missing = np.isnan(self.found.drift)
        if missing[asked].any():
            fill = fitting(waiting, self.stored.sizes, LOOK_AHEAD * budget)
            next_ones = np.union1d(asked, fill).astype(np.int64) if missing.all() else waiting
            new = next_ones[missing[next_ones]]
            put(self.found, new, self.score(self.stored[new]))
        return self.found[asked]


def unknown(n: int) -> Scores:
    """Scores of `n` groups that nothing is known of."""
    return Scores(*np.full((4, n), np.nan))


def put(scores: Scores, positions: np.ndarray, found: Scores) -> None:
    """Write `found` into `scores` at `positions`."""
    for field in fields(scores):
        getattr(scores, field.name)[positions] = getattr(found, field.name)


def at_collection(store: ExperienceBuffer, rows: np.ndarray) -> float:
    """Headroom of a group by its stored log-probs."""
    found, tokens = [], []
    for trajectory in map(store.trajectory, rows.tolist()):
        own = trajectory.log_probs[trajectory.mask].astype(np.float64)
        found.append(headroom(np.exp(own).mean(), trajectory.provenance.advantage))
        tokens.append(len(own))
    return float(np.average(found, weights=tokens))

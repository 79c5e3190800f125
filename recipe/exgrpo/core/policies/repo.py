"""RePO (arXiv 2506.09340): an off-policy term for each question of the batch, over earlier rollouts of the question itself.

The stored rollouts come on top of the batch. Their advantages are among themselves (the paper's split estimation), so that
fresh rollouts keep theirs; a selection whose rewards do not differ has none and is left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Fill
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Placed, Tools
from recipe.exgrpo.core.policies.replay import Replay


class RePO(Fill):
    """Keep all rollouts; the `rows.per_question` newest of a question come back with it."""

    OWN = Fill.OWN | {"admit": "everything", "rank": "newest"}

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options)
        if config.place is not None:
            raise ValueError("exgrpo.policy=repo brings its rows on top of the batch: exgrpo.place has no say.")

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        room, extra = sum(group.size for group in groups), []
        for question in dict.fromkeys(group.question for group in groups) if self.active else ():
            extra += self._past(question, room - len(extra), tools, step)
        return Arrangement(extra=extra)

    def _past(self, question: str, room: int, tools: Tools, step: int) -> list[Placed]:
        """Earlier rollouts of `question` with their advantages among themselves; none where there are too few of them."""
        size = min(self.config.rows.per_question, self.group_size)  # no more than there are fresh ones
        rows = self.entering(self.store.candidates(self.store.rows(question)), step)
        if len(rows) < size or room < size:
            return []
        scores = self.scores_of(self.store, rows, tools)
        order = self.rank(rows, scores, self.context(step))
        rewards = rows.reward[order[:size]]
        taken = order[:size] if np.ptp(rewards) else order[:0]
        self.consider(rows, scores, order, taken)
        centred = (rewards - rewards.mean()).tolist()
        return [
            Placed(self.take(int(row), step), advantage)
            for row, advantage in zip(rows.row[taken], centred, strict=False)
        ]

    def collect(self, groups: Sequence[Group], tools: Tools, step: int) -> None:
        """Store what is admitted of every group, of whatever rewards; `buffer.max_per_question` bounds it."""
        Replay.collect(self, groups, tools, step)

"""What a policy looked at when it took stored trajectories, and what decided: for history.jsonl and `exgrpo browse`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from recipe.exgrpo.core.buffer import Candidates, ExperienceBuffer
from recipe.exgrpo.core.selection import Scores

SHOWN = 16  # candidates of a choice that are kept besides those taken: a store has thousands


@dataclass(frozen=True)
class Choice:
    """Stored trajectories that competed for places in one step's update, best ranked first: lists with one entry each.

    Kept of the `considered` are the SHOWN best and all that were `taken`. `row` are handles (-1: of no store that is kept);
    `question` has a single entry where it is the same for all; `solved` are successes of the group at collection; `use_count`
    is that before this step; `entropy` and `nll` (nats per token, under the policy of this step) are None where they were not
    asked for.
    """

    considered: int
    question: list[str]
    row: list[int]
    birth_step: list[int]
    use_count: list[int]
    solved: list[int]
    entropy: list[float | None]
    nll: list[float | None]
    taken: list[bool]

    @classmethod
    def of(
        cls,
        store: ExperienceBuffer,
        candidates: Candidates,
        scores: Scores | None,
        order: np.ndarray,
        taken: Sequence[int] | np.ndarray,
    ) -> "Choice":
        """From positions in `candidates`: `order` has all of them, best first, and `taken` those that were taken."""
        chosen = np.isin(order, taken)
        kept = np.flatnonzero(chosen | (np.arange(len(order)) < SHOWN))
        shown = candidates[order[kept]]
        names = [store.question_of(row) for row in shown.row.tolist()]
        nothing = np.full(len(kept), math.nan)
        return cls(
            considered=len(order),
            question=names if len(set(names)) > 1 else names[:1],
            row=shown.row.tolist(),
            birth_step=shown.birth_step.tolist(),
            use_count=shown.use_count.tolist(),
            solved=shown.successes.tolist(),
            entropy=_short(nothing if scores is None else scores.entropy[order[kept]]),
            nll=_short(nothing if scores is None else scores.nll[order[kept]]),
            taken=chosen[kept].tolist(),
        )

    def as_dict(self) -> dict:
        return asdict(self)


def _short(values: np.ndarray) -> list[float | None]:
    """Five digits, None for what is not a number."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]

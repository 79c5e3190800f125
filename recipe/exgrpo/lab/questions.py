"""Training and held-out questions of a family, and the endless stream of training questions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipe.exgrpo.lab.families import Family


@dataclass(frozen=True)
class Splits:
    """Sizes of the disjoint splits, the same for every base and seed of a family."""

    train: int = 512
    heldout: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "heldout"):
            if getattr(self, name) < 1:
                raise ValueError(f"splits.{name} must be at least 1; got {getattr(self, name)}.")


def make_splits(task: Family, sizes: Splits) -> tuple[list, list]:
    """Training and held-out questions, disjoint."""
    made = task.questions(sizes.train + sizes.heldout, np.random.default_rng(sizes.seed))
    return made[: sizes.train], made[sizes.train :]


class Stream:
    """A `core.policies.policy.Dataset`: ids of all questions in a new random order every epoch, as verl's loader gives them."""

    def __init__(self, ids: list[str], rng: np.random.Generator) -> None:
        self.ids, self._rng, self._left = ids, rng, []

    def next(self) -> str:
        """The next question of the epoch."""
        if not self._left:
            self._left = [self.ids[i] for i in self._rng.permutation(len(self.ids))][::-1]
        return self._left.pop()

    def __len__(self) -> int:
        return len(self.ids)

    def draw(self, skip: Callable[[str], bool]) -> str:
        """The next question that is not to be skipped; any question when all are.

        Two rounds are looked through: one that begins in the middle of an epoch may miss a question by the new order.
        """
        question = self.next()
        for _ in range(2 * len(self.ids) - 1):
            if not skip(question):
                break
            question = self.next()
        return question

"""Responses of several turns: what a family's tool adds to a response while it is sampled, and whose tokens are whose."""

from collections.abc import Sequence

import numpy as np
import torch

from recipe.exgrpo.lab.families import Family, ToolFamily
from recipe.exgrpo.lab.vocabulary import Vocabulary


class Turns:
    """The tool of a family in token ids: its answer follows every call that the model closes."""

    def __init__(self, task: ToolFamily, vocabulary: Vocabulary) -> None:
        self._task, self._vocabulary = task, vocabulary
        (self.close,) = vocabulary.encode(task.close)

    def reply(self, response: Sequence[int]) -> list[int]:
        """What the tool writes behind a response that ends with a closed call."""
        return self._vocabulary.encode(self._task.reply(self._vocabulary.decode(response)))

    def own(self, response: Sequence[int]) -> np.ndarray:
        """Which tokens of a response the model wrote, bool [L]."""
        own, place = np.ones(len(response), bool), 0
        while place < len(response):
            place += 1
            if response[place - 1] == self.close:
                stop = place + len(self.reply(response[:place]))
                own[place:stop] = False
                place = stop
        return own

    def answer(self, out: torch.Tensor, place: int) -> None:
        """Write the tool's answer to a call that the model has closed at `place` into a row of responses, as far as it fits."""
        ids = torch.tensor(self.reply(out[: place + 1].tolist()))
        out[place + 1 : place + 1 + len(ids)] = ids[: len(out) - place - 1]


def turns_of(task: Family, vocabulary: Vocabulary) -> Turns | None:
    """The turns of a family with a tool; None for one whose responses are the model's alone."""
    return Turns(task, vocabulary) if isinstance(task, ToolFamily) else None

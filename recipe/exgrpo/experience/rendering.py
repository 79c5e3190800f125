"""Prompts and responses as token ids, as the run's rollouts have them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

Render = Callable[[list[dict[str, str]]], Sequence[int]]
# A chat template may open the assistant's turn with the thought, and a written trace begin with it once more.
OPENINGS = ("<think>\n", "<think>")


class Renderer:
    """The run's tokenizer and chat template; `render` makes the prompt ids of chat messages (default: the template).

    A response is its text without special tokens and then the end of turn, on which rollouts stop: `tokenizer.eos_token_id`.
    """

    def __init__(
        self, tokenizer: Any, arguments: Mapping[str, Any] | None = None, render: Render | None = None
    ) -> None:
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self.render = render or self._rendered
        self.special = frozenset(tokenizer.all_special_ids)
        self._opening: str | None = None

    def prompt_ids(self, messages: list[dict[str, str]]) -> np.ndarray:
        """Ids of a prompt with the assistant's turn opened, int32 [P]."""
        return np.asarray(self.render(messages), np.int32)

    def response_ids(self, texts: Sequence[str], messages: list[dict[str, str]], limit: int) -> list[np.ndarray]:
        """Ids of responses, int32 [L] each with the end of turn. `messages` is the prompt of any question of the run.

        Of a text that must be longer than `limit` tokens only the beginning is tokenised, more than `limit` still: the merges
        of a tokenizer take minutes for megabytes without a space.
        """
        if not texts:
            return []
        opening = self._opened(messages)
        bare = [text[len(opening) :] if opening and text.startswith(opening) else text for text in texts]
        end = self.tokenizer.eos_token
        bare = [text.removesuffix(end) if end else text for text in bare]
        bare = [text[: (limit + 1) * self.longest] for text in bare]
        found = self.tokenizer(bare, add_special_tokens=False)["input_ids"]
        return [np.asarray([*ids, self.tokenizer.eos_token_id], np.int32) for ids in found]

    @cached_property
    def longest(self) -> int:
        """Characters that one token stands for, at the most."""
        return max(map(len, self.tokenizer.get_vocab()))

    def special_inside(self, ids: np.ndarray) -> str | None:
        """The first special token before the last position, by name: a trace that has one could end or open turns."""
        inside = next((token for token in ids[:-1].tolist() if token in self.special), None)
        return None if inside is None else self.tokenizer.convert_ids_to_tokens(inside)

    def text(self, ids: np.ndarray) -> str:
        """Text without special tokens, as the reward sees it."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def _rendered(self, messages: list[dict[str, str]]) -> Sequence[int]:
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **self.arguments)
        return ids["input_ids"] if isinstance(ids, Mapping) or hasattr(ids, "input_ids") else ids

    def _opened(self, messages: list[dict[str, str]]) -> str:
        """What the template writes of the assistant's turn itself; "" for nothing."""
        if self._opening is None:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.arguments
            )
            self._opening = next((opening for opening in OPENINGS if text.endswith(opening)), "")
        return self._opening

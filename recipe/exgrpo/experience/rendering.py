"""Prompts and responses as token ids, as the run's rollouts have them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer.inspection import own_text

Render = Callable[..., Sequence[int]]  # (messages, tools=schemas or None)
# A chat template may open the assistant's turn with the thought, and a written trace begin with it once more.
OPENINGS = ("<think>\n", "<think>")


class Renderer:
    """The run's tokenizer and chat template; `render` makes the prompt ids of chat messages (default: the template).

    A response is its text without special tokens and then the end of turn, on which rollouts stop: `tokenizer.eos_token_id`.
    `model_type`, that of the model's config.json, tells verl what its template writes between turns.
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, Any] | None = None,
        render: Render | None = None,
        model_type: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.tokenizer, self.arguments, self.model_type = tokenizer, dict(arguments or {}), model_type
        self.render = render or self._rendered
        self.special = frozenset(tokenizer.all_special_ids)
        self._opening: str | None = None

    def prompt_ids(
        self, messages: list[dict[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> np.ndarray:
        """Ids of a prompt that shows the schemas `tools`, with the assistant's turn opened, int32 [P]."""
        return np.asarray(self.render(messages, tools=tools), np.int32)

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
        found = self.tokenizer([self._first(text, limit) for text in bare], add_special_tokens=False)["input_ids"]
        return [np.asarray([*ids, self.tokenizer.eos_token_id], np.int32) for ids in found]

    def turn_ids(
        self, turns: Sequence[Mapping[str, str]], messages: list[dict[str, str]], limit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [L] of a response in which tools speak, and which of them the model wrote, bool [L].

        Turns are joined by what verl's agent loop joins them with: the end of turn is the model's, what the template writes
        around a tool's words is not. Raises ValueError, a clause, where a turn holds a special token, or the template cannot
        go on from one.
        """
        said, ids = list(messages), self.prompt_ids(messages).tolist()
        prompt, mask = len(ids), []
        for own, group in groupby(turns, lambda message: message["role"] == "assistant"):
            added = [message | {"content": self._first(message["content"], limit)} for message in group]
            if own:
                (answer,) = self.response_ids([added[0]["content"]], messages, limit)
                self.require_plain(answer[:-1])
                merged = self._joiner.merge_assistant_tokens(ids, answer.tolist())
            else:
                for message in added:
                    self.require_plain(self.tokenizer(message["content"], add_special_tokens=False)["input_ids"])
                merged = self._joiner.merge_context_tokens(said, said + added, ids)
            (mask, _), ids, said = self._joiner.align_response_metadata(merged, mask), merged.token_ids, said + added
        return np.asarray(ids[prompt:], np.int32), np.asarray(mask, bool)

    def require_plain(self, ids: Sequence[int]) -> None:
        """Raise ValueError, a clause, for the first special token: text that has one could end or open turns."""
        if (inside := next((token for token in ids if int(token) in self.special), None)) is not None:
            raise ValueError(
                f"the response contains the special token {self.tokenizer.convert_ids_to_tokens(int(inside))}"
            )

    def _first(self, text: str, limit: int) -> str:
        """Text, or of one that must be longer than `limit` tokens a beginning that still is."""
        return text[: (limit + 1) * self.longest]

    @cached_property
    def _joiner(self):
        """verl's builder of token ids over turns; its import takes seconds."""
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        return create_continuous_token_builder(
            self.tokenizer, hf_model_type=self.model_type(), chat_template_kwargs=self.arguments
        )

    @cached_property
    def longest(self) -> int:
        """Characters that one token stands for, at the most."""
        return max(map(len, self.tokenizer.get_vocab()))

    def text(self, ids: np.ndarray, mask: np.ndarray | None = None) -> str:
        """Text of the model's own tokens (`mask`, None: all) without special ones, as the reward sees it."""
        return own_text(ids, mask, lambda part: self.tokenizer.decode(part, skip_special_tokens=True))

    def _rendered(
        self, messages: list[dict[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Sequence[int]:
        arguments = self.arguments | {"tools": tools, "add_generation_prompt": True, "tokenize": True}
        ids = self.tokenizer.apply_chat_template(messages, **arguments)
        return ids["input_ids"] if isinstance(ids, Mapping) or hasattr(ids, "input_ids") else ids

    def _opened(self, messages: list[dict[str, str]]) -> str:
        """What the template writes of the assistant's turn itself; "" for nothing."""
        if self._opening is None:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.arguments
            )
            self._opening = next((opening for opening in OPENINGS if text.endswith(opening)), "")
        return self._opening

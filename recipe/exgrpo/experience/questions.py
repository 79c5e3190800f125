"""The training questions that traces belong to: found by id, by the whole prompt, or by the question alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipe.exgrpo.experience.traces import Trace
from verl_ext.text import normalised


class Questions:
    """`rows` by question id, in verl's schema. A prompt that two questions share finds neither."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], prompt_key: str = "prompt") -> None:
        self.rows, self.prompt_key = rows, prompt_key
        self._by_prompt: dict[str, str | None] = {}
        for question in rows:
            messages = self.messages(question)
            for key in {_key(messages), _key(messages[-1:])}:
                self._by_prompt[key] = question if key not in self._by_prompt else None

    def messages(self, question: str) -> list[dict[str, str]]:
        """The question's prompt as chat messages."""
        return [dict(message) for message in self.rows[question][self.prompt_key]]

    def find(self, trace: Trace) -> str | None:
        """The id of the question that `trace` answers; None when it is none of these."""
        for name in _names(trace.question):
            if name in self.rows:
                return name
        if trace.prompt is None:
            return None
        messages = [{"content": trace.prompt}] if isinstance(trace.prompt, str) else trace.prompt
        found = self._by_prompt.get(_key(messages))
        # Another system prompt is still the question; what was said before it is not.
        alone = all(message["role"] == "system" for message in messages[:-1])
        return self._by_prompt.get(_key(messages[-1:])) if found is None and alone else found


def _names(question: str | None) -> Iterator[str]:
    """An id, and the integer that pandas made a float of, as it does where another row has none."""
    if question is not None:
        yield question
        whole, _, rest = question.partition(".")
        if whole.isdecimal() and rest == "0":
            yield whole


def _key(messages: Sequence[Mapping[str, str]]) -> str:
    return "\0".join(normalised(message["content"]) for message in messages)

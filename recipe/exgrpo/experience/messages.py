"""Chat messages as files of traces have them, made plain: a list of {role, content}, all text."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

CONVERSATION_KEYS = ("messages", "conversations")  # columns of whole conversations
# As ShareGPT's `from` names them; others are what they are.
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}
# What a message may hold beside its content, words of the model too: a trace without them would be another one.
BESIDE = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")


def plain(value: Any) -> list[dict[str, str]]:
    """The messages of `value`: {role, content} or ShareGPT's {from, value}, content as text or as a list of parts of text.

    Raises ValueError, the end of a sentence, on the first that is none, or that says more than its content.
    """
    found = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if not found:
        raise _unreadable(value)
    return [_message(message) for message in found]


def split(messages: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A conversation as prompt and response: what came after the last user or system message, turns of tools included."""
    asked = max((i for i, message in enumerate(messages) if message["role"] not in ("assistant", "tool")), default=-1)
    return list(messages[: asked + 1]), list(messages[asked + 1 :])


def takes_turns(response: Sequence[dict[str, str]]) -> bool:
    """Whether these are an assistant's messages with a tool's, one or more, between each two."""
    roles = [message["role"] for message in response]
    ends = roles[:1] == roles[-1:] == ["assistant"]
    return ends and not any(a == b == "assistant" for a, b in pairwise(roles)) and set(roles) <= {"assistant", "tool"}


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise _unreadable(message)
    if beside := next((name for name in BESIDE if message.get(name) not in (None, "", [])), None):
        raise ValueError(f"have {beside} in one of them, which must stand in its content as the model writes it")
    role, content = message.get("role", message.get("from")), _joined(message.get("content", message.get("value")))
    if not isinstance(role, str) or not isinstance(content, str):
        raise _unreadable(message)
    return {"role": ROLES.get(role, role), "content": content}


def _unreadable(value: Any) -> ValueError:
    return ValueError(f"must be text or a list of messages {{role, content}}; got {shown(value)}")


def _joined(content: Any) -> Any:
    """Text of a list of parts {type: text, text}; anything else as it is."""
    parts = list(content) if isinstance(content, list | tuple | np.ndarray) else []
    text = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    whole = parts and len(text) == len(parts) and all(isinstance(piece, str) for piece in text)
    return "".join(text) if whole else content


def shown(value: Any) -> str:
    """A value of a file in a message: short, and spelled out."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""The result of grading one response, and the pieces of text a rule is given."""

from __future__ import annotations

from dataclasses import dataclass

END_OF_THOUGHT = "</think>"
EXTRACTED_LIMIT = 200  # characters of the answer kept in the metrics and in dumped generations


@dataclass(frozen=True)
class Grade:
    """What a rule returns.

    Attributes:
        score: reward in [0, 1]; the rules of this package return 0.0 or 1.0.
        extracted: the answer that was graded, "" if the text holds none.
        timeout: grading was killed at its deadline (score 0).
        error: grading failed, e.g. the gold answer cannot be parsed or a worker ran out of memory (score 0).
        precheck: refused before grading as too large, too deep or not written in ASCII digits (score 0).
    """

    score: float
    extracted: str = ""
    timeout: bool = False
    error: bool = False
    precheck: bool = False


def solution_text(response: str, think_format: bool) -> str | None:
    """The part of a response that is graded (method.md, "Reward and evaluation").

    With the think format, the text after the last `</think>`, and None where there is no `</think>`: the caller gives
    reward 0. The last one counts, so that repeating the tag cannot offer several solutions. Without, all of it.
    """
    if not think_format:
        return response
    _, tag, solution = response.rpartition(END_OF_THOUGHT)
    return solution if tag else None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, in linear time; None if there is none or the last one is never closed.

    Only the last box is looked at: an earlier one is never a second chance.
    """
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    opening = start + len("\\boxed")
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if opening == len(text) or text[opening] != "{":
        return None
    closing = _closing_brace(text, opening)
    return None if closing is None else text[opening + 1 : closing].strip()


def _closing_brace(text: str, opening: int) -> int | None:
    depth, position = 0, opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace does not count
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def shorten(text: str) -> str:
    """At most EXTRACTED_LIMIT characters that every encoder accepts (lone surrogates replaced)."""
    return text[:EXTRACTED_LIMIT].encode("utf-8", "replace").decode("utf-8")

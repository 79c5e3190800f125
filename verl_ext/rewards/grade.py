"""The result of grading one response, and the pieces of text a rule is given."""

from __future__ import annotations

import re
from dataclasses import dataclass

END_OF_THOUGHT = "</think>"
THINK_ENDS = ("last", "first")
BOX = "\\boxed"
EXTRACTED_LIMIT = 200  # characters of the answer kept in the metrics and in dumped generations
_LONGEST_JOINT = 60  # characters between two boxes of one answer
_JOINT = re.compile(
    r"(?:\s|[$,;&]|\\[,;:! ]|\\[()\[\]]|\\q?quad(?![A-Za-z])|\\text\s*\{[\s,]*(?:and|or)?[\s,]*\}|\b(?:and|or)\b)*"
)
_JOINS = re.compile(r"[,;&]|quad|\b(?:and|or)\b")
_BARE = re.compile(r"\s*([^\s{}$\\]+|\\[A-Za-z]+(?:\s*\{[^{}]*\})+)")


@dataclass(frozen=True)
class Grade:
    """What a rule returns.

    Attributes:
        score: reward in [0, 1]; the rules of this package return 0.0 or 1.0.
        extracted: the answer that was graded, "" if the text holds none.
        timeout: grading was killed at its deadline (score 0).
        error: grading failed, e.g. the gold answer is a placeholder or a worker ran out of memory (score 0).
        precheck: refused before grading as too large, too deep or written in digits without a reading (score 0).
    """

    score: float
    extracted: str = ""
    timeout: bool = False
    error: bool = False
    precheck: bool = False


def solution_text(response: str, think_format: bool, think_end: str = "last") -> str | None:
    """The part of a response that is graded (method.md, "Reward and evaluation").

    With the think format, the text after the last `</think>`, and None where there is no `</think>`: the caller gives
    reward 0. The last one counts, so that repeating the tag cannot offer several solutions. With `think_end` "first" it is
    the text between the first and the second, as in the authors' released run. Without the think format, all of it.
    """
    if not think_format:
        return response
    if think_end == "first":
        _, tag, solution = response.partition(END_OF_THOUGHT)
        return solution.partition(END_OF_THOUGHT)[0] if tag else None
    _, tag, solution = response.rpartition(END_OF_THOUGHT)
    return solution if tag else None


def final_answer(text: str) -> str | None:
    r"""What is boxed last, in linear time; None if there is no box or the last one is never closed.

    Boxes with nothing but "and", "or", commas or quads between them are one list, written "a, b". No other earlier box is
    looked at: it would be a second chance.
    """
    start = text.rfind(BOX)
    answer = last_boxed(text)
    if answer is None:
        return None
    answers = [answer]
    while (before := text.rfind(BOX, 0, start)) >= 0:
        extent = _extent(text, before)
        if extent is None or not _is_joint(text[extent[1] + 1 : start]):
            break
        answers.append(text[extent[0] + 1 : extent[1]].strip())
        start = before
    return ", ".join(reversed(answers))


def last_boxed(text: str) -> str | None:
    r"""Content of the last box alone, in linear time; None if there is none or it is never closed.

    `\boxed 42` holds 42, although TeX would frame the 4.
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    extent = _extent(text, start)
    if extent is not None:
        return text[extent[0] + 1 : extent[1]].strip()
    after = text[start + len(BOX) : start + len(BOX) + EXTRACTED_LIMIT]
    bare = None if after[:1].isalpha() else _BARE.match(after)
    return bare[1].rstrip(".,;:") or None if bare else None


def shorten(text: str) -> str:
    """At most EXTRACTED_LIMIT characters that every encoder accepts (lone surrogates replaced)."""
    return text[:EXTRACTED_LIMIT].encode("utf-8", "replace").decode("utf-8")


def _is_joint(between: str) -> bool:
    return (
        len(between) <= _LONGEST_JOINT and _JOINT.fullmatch(between) is not None and _JOINS.search(between) is not None
    )


def _extent(text: str, start: int) -> tuple[int, int] | None:
    """Positions of the braces of the box at `start`."""
    opening = start + len(BOX)
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if opening == len(text) or text[opening] != "{":
        return None
    closing = _closing_brace(text, opening)
    return None if closing is None else (opening, closing)


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

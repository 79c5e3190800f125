"""Equivalence of an answer with the gold answer. Runs inside a grading worker, never in the trainer: it may take any time."""

from __future__ import annotations

import logging
from functools import lru_cache

from verl_ext.rewards.answers import Answer, Value
from verl_ext.rewards.equality import equal
from verl_ext.rewards.placeholders import is_placeholder
from verl_ext.rewards.prechecks import ANSWER_LIMIT, is_absurd
from verl_ext.rewards.reading import read
from verl_ext.rewards.statements import stated_answer

for _name in ("math_verify.parser", "math_verify.grader"):  # they warn in every worker that time limits are off
    logging.getLogger(_name).setLevel(logging.ERROR)


def grade_answer(answer: str, gold: str) -> tuple[bool, str]:
    """Whether `answer`, the content of a box, is equivalent to `gold`. Returns (correct, answer).

    Raises ValueError if the gold answer is empty or a placeholder.
    """
    reference = _read_gold(gold)
    return bool(answer.strip() and equal(reference, read(answer))), answer


def grade_text(text: str, gold: str) -> tuple[bool, str]:
    """Whether the answer that a text without a box states is equivalent to `gold`. Returns (correct, the answer or "").

    Raises ValueError if the gold answer is empty or a placeholder.
    """
    answer = stated_answer(text)
    return not is_absurd(answer, ANSWER_LIMIT) and grade_answer(answer, gold)[0], answer


def grade_golds(golds: list[str]) -> list[tuple[bool, bool]]:
    """For each gold answer: whether it is equivalent to itself, and whether it is read as mathematics.

    One that is not equals only the same text. A placeholder is not equivalent to itself. Raises ValueError if one is empty.
    """
    return [_check_gold(gold, read(gold)) for gold in golds]


def _check_gold(gold: str, reading: Answer) -> tuple[bool, bool]:
    if not reading.key:
        raise ValueError(f"the gold answer {gold!r} is empty")
    return not is_placeholder(gold) and equal(reading, read(gold)), _is_mathematics(reading)


@lru_cache(maxsize=256)
def _read_gold(gold: str) -> Answer:
    reading = read(gold)
    if not reading.key or is_placeholder(gold):
        raise ValueError(f"the gold answer {gold!r} is no answer")
    return reading


def _is_mathematics(answer: Answer) -> bool:
    if type(answer) is Value:
        return answer.numeral is not None or answer.expression is not None
    return type(answer) is not Answer

r"""Grading rules, and the registry that picks one by `data_source`.

A rule is one function `rule(text, ground_truth, grader, truncated=False) -> Grade`. It runs in the trainer's process on
untrusted model output, so whatever is not linear in the length of the text belongs in `grader.run(function, *args)`, which
executes a module-level function in a worker that is killed at its deadline.

What counts as the answer, and what it equals, is written down in docs/rewards.md.
"""

from __future__ import annotations

import inspect
from typing import Protocol

from verl_ext.rewards.choice import chosen_letter
from verl_ext.rewards.equivalence import grade_answer, grade_text
from verl_ext.rewards.grade import BOX, Grade, final_answer, last_boxed
from verl_ext.rewards.numerals import numeral, numerals_equal
from verl_ext.rewards.placeholders import is_placeholder
from verl_ext.rewards.pool import Grader, GradingError, GradingTimeout
from verl_ext.rewards.prechecks import ANSWER_LIMIT, is_absurd
from verl_ext.rewards.spelling import canonical, without_thousands

TEXT_LIMIT = 2000  # characters, from the end, of a text without a box
_PLAIN_LIMIT = 40  # characters of an answer that may be a plain number


class Rule(Protocol):
    """`text`: the solution, untrusted. `ground_truth`: the gold answer. `truncated`: cut off at the length limit."""

    def __call__(self, text: str, ground_truth: str, grader: Grader, truncated: bool = False) -> Grade: ...


def math_rule(text: str, ground_truth: str, grader: Grader, truncated: bool = False) -> Grade:
    """Equivalence of the boxed answer with the gold answer; without a box of the stated one, unless the text is cut off."""
    boxed = BOX in text
    answer = final_answer(text) if boxed else "" if truncated else _tail(text)
    if not answer:
        return Grade(0.0)
    if is_placeholder(ground_truth):
        return Grade(0.0, answer, error=True)
    if boxed and is_absurd(answer, ANSWER_LIMIT) and answer != ground_truth.strip():
        return Grade(0.0, answer, precheck=True)
    equal = plainly_equal(answer, ground_truth) if boxed else None
    if equal is not None:
        return Grade(float(equal), answer)
    try:
        correct, extracted = grader.run(grade_answer if boxed else grade_text, answer, ground_truth)
    except GradingTimeout:
        return Grade(0.0, answer, timeout=True)
    except GradingError:
        return Grade(0.0, answer, error=True)
    return Grade(float(correct), extracted)


def choice_rule(text: str, ground_truth: str, grader: Grader, truncated: bool = False) -> Grade:
    """Multiple choice: the letter that the response ends with; a text that is cut off has none without a box."""
    letter = None if truncated and BOX not in text else chosen_letter(text)
    return Grade(float(letter is not None and letter == ground_truth.strip().upper()), letter or "")


def exact_boxed_rule(text: str, ground_truth: str, grader: Grader, truncated: bool = False) -> Grade:
    r"""The content of the last `\boxed{}` is the gold answer, character for character; a placeholder is never right."""
    answer = last_boxed(text) or ""
    if is_placeholder(ground_truth):
        return Grade(0.0, answer, error=True)
    return Grade(float(answer == ground_truth.strip()), answer)


_RULES: dict[str, Rule] = {
    "toy_modular": exact_boxed_rule,
    "arc_c": choice_rule,
    "gpqa": choice_rule,
    "mmlu_pro": choice_rule,
}


def register_rule(data_source: str, rule: Rule) -> None:
    """Grade every data source whose name is or starts with `data_source` by `rule`; the longest match wins.

    Raises ValueError for an empty name and for what cannot be called as a rule is.
    """
    if not data_source or not _is_rule(rule):
        raise ValueError(
            "register_rule needs a data_source and a function rule(text, ground_truth, grader, truncated=False)"
        )
    _RULES[data_source] = rule


def find_rule(data_source: str) -> Rule:
    """The rule registered for the longest prefix of `data_source`, else the math rule."""
    prefixes = [prefix for prefix in _RULES if data_source.startswith(prefix)]
    return _RULES[max(prefixes, key=len)] if prefixes else math_rule


def plainly_equal(answer: str, gold: str) -> bool | None:
    """Whether two answers are equal that need no parser: the same text, or two numbers. None if they need one."""
    if answer.strip() == gold.strip():
        return True
    if max(len(answer), len(gold)) > _PLAIN_LIMIT:
        return None
    numbers = [numeral(without_thousands(canonical(text))) for text in (gold, answer)]
    return None if None in numbers else numerals_equal(*numbers)


def _is_rule(rule: object) -> bool:
    try:
        inspect.signature(rule).bind("text", "gold", None, truncated=False)
    except (TypeError, ValueError):
        return False
    return True


def _tail(text: str) -> str:
    """The last TEXT_LIMIT characters, without a number or word cut in two."""
    text = text.strip()
    if len(text) <= TEXT_LIMIT:
        return text
    return "".join(text[-TEXT_LIMIT:].split(maxsplit=1)[1:])

r"""Grading rules, and the registry that picks one by `data_source`.

A rule is one function `rule(text, ground_truth, grader) -> Grade`. It runs in the trainer's process on untrusted model
output, so whatever is not linear in the length of the text belongs in `grader.run(function, *args)`, which executes a
module-level function in a worker that is killed at its deadline.

What counts as the answer: the content of the last `\boxed{}`; earlier boxes are ignored, and a last box that is never
closed is no answer. Several candidates in that box are a list, which equals the gold answer only if that is the same
list. A text without any box is graded by what Math-Verify extracts last from its last TEXT_LIMIT characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from verl_ext.rewards.equivalence import grade_answer, grade_text
from verl_ext.rewards.grade import Grade, last_boxed
from verl_ext.rewards.pool import Grader, GradingError, GradingTimeout

Rule = Callable[[str, str, Grader], Grade]

ANSWER_LIMIT = 1000  # characters in a box; the longest gold answer of the six benchmarks has 210
TEXT_LIMIT = 2000  # characters, from the end, of a text without a box
DEPTH_LIMIT = 8  # nested brackets; gold answers of the six benchmarks have 4 at most
DIGITS_LIMIT = 400  # consecutive digits

_GIANT_NUMBER = re.compile(rf"\d{{{DIGITS_LIMIT + 1}}}")
_BOXED_LETTER = re.compile(r"\(?([A-J])\)?(?:[\s.:),].*)?", re.DOTALL)
_STATED_LETTER = re.compile(r"(?i:answer|option|choice)[\s*]{0,4}(?i:is\b|:)[\s:*(]{0,6}(?!I['\s]\s*[a-z])([A-J])\b")
_MORE_LETTERS = re.compile(r"[)*.:\s]*(?:,|/|;|&|\||or\b|and\b)\s*[*(]{0,3}[A-J]\b")


def math_rule(text: str, ground_truth: str, grader: Grader) -> Grade:
    """Math-Verify equivalence with the gold answer, in a worker process."""
    boxed = "\\boxed" in text
    answer = last_boxed(text) if boxed else _tail(text)
    if not answer:
        return Grade(0.0)
    if is_absurd(answer, ANSWER_LIMIT if boxed else TEXT_LIMIT):
        return Grade(0.0, answer, precheck=True)
    try:
        correct, extracted = grader.run(grade_answer if boxed else grade_text, answer, ground_truth)
    except GradingTimeout:
        return Grade(0.0, answer, timeout=True)
    except GradingError:
        return Grade(0.0, answer, error=True)
    return Grade(float(correct), extracted)


def choice_rule(text: str, ground_truth: str, grader: Grader) -> Grade:
    r"""Multiple choice: the letter in the last `\boxed{}`, else after the last "answer is". Two letters are none."""
    letter = _chosen_letter(text)
    return Grade(float(letter is not None and letter == ground_truth.strip().upper()), letter or "")


def exact_boxed_rule(text: str, ground_truth: str, grader: Grader) -> Grade:
    r"""The content of the last `\boxed{}` is the gold answer, character for character."""
    answer = last_boxed(text)
    return Grade(float(answer is not None and answer == ground_truth.strip()), answer or "")


_RULES: dict[str, Rule] = {
    "toy_modular": exact_boxed_rule,
    "arc_c": choice_rule,
    "gpqa": choice_rule,
    "mmlu_pro": choice_rule,
}


def register_rule(data_source: str, rule: Rule) -> None:
    """Grade every data source whose name is or starts with `data_source` by `rule`; the longest match wins."""
    if not data_source or not callable(rule):
        raise ValueError("register_rule needs a non-empty data_source and a callable rule(text, ground_truth, grader)")
    _RULES[data_source] = rule


def find_rule(data_source: str) -> Rule:
    """The rule registered for the longest prefix of `data_source`, else the math rule."""
    prefixes = [prefix for prefix in _RULES if data_source.startswith(prefix)]
    return _RULES[max(prefixes, key=len)] if prefixes else math_rule


def is_absurd(text: str, limit: int) -> bool:
    """True for what no gold answer looks like and a parser may choke on; linear in `limit`, not in the text.

    Digits other than 0-9 are refused as well: superscripts and look-alikes are read wrongly or not at all.
    """
    if len(text) > limit or _GIANT_NUMBER.search(text):
        return True
    return _depth(text) > DEPTH_LIMIT or any(unicodedata.category(c) in ("Nd", "No") for c in text if c > "\x7f")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _tail(text: str) -> str:
    """The last TEXT_LIMIT characters, without a number or word cut in two."""
    text = text.strip()
    if len(text) <= TEXT_LIMIT:
        return text
    return "".join(text[-TEXT_LIMIT:].split(maxsplit=1)[1:])


def _chosen_letter(text: str) -> str | None:
    if "\\boxed" in text:
        answer = re.sub(r"\\(?:textbf|text|mathrm|mathbf)\s*|[{}$]", "", last_boxed(text) or "").strip()
        match = _BOXED_LETTER.fullmatch(answer)
    else:
        answer = text[-TEXT_LIMIT:]
        match = max(_STATED_LETTER.finditer(answer), key=re.Match.end, default=None)
    if match is None or _MORE_LETTERS.match(answer, match.end(1)):
        return None
    return match.group(1)

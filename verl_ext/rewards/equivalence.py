r"""Math-Verify equivalence of an answer with the gold answer. Runs inside a grading worker, never in the trainer.

Math-Verify's own time limits use SIGALRM and are switched off: the pool kills the worker at its deadline instead.
On top of Math-Verify, three of its leniencies that would let a wrong answer pass are closed:

* decimals are compared at 6 decimal places, so 0 would equal a gold answer of 1.6e-19: we also ask for 1 % relative;
* `2 = 3` is read as 3: constants on the other side of an equals sign must equal the gold answer too;
* scientific notation (4.5e33) is read as a product with Euler's number: it is rewritten before parsing.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.parser import equation_split_regex
from sympy import Basic, Float, Number

RELATIVE_TOLERANCE = 1e-2
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

for _name in ("math_verify.parser", "math_verify.grader"):  # warns in every worker that time limits are off
    logging.getLogger(_name).setLevel(logging.ERROR)


def grade_answer(answer: str, gold: str) -> tuple[bool, str]:
    r"""Whether `answer` (the content of a box) is equivalent to `gold`. Returns (correct, answer).

    Raises ValueError if the gold answer cannot be parsed.
    """
    parsed = _parse_box(answer)
    return _equivalent(parsed, gold) and _no_contradiction(answer, gold), answer


def grade_text(text: str, gold: str) -> tuple[bool, str]:
    """Whether the last answer Math-Verify finds in a text without a box is equivalent to `gold`.

    Returns (correct, extracted answer). Raises ValueError if the gold answer cannot be parsed.
    """
    parsed = parse(text, _EXTRACTION, parsing_timeout=None)
    extracted = next((item for item in reversed(parsed) if isinstance(item, str)), "")
    return _equivalent(parsed, gold) and _no_contradiction(extracted, gold), extracted


def _equivalent(parsed: list, gold: str) -> bool:
    reference = _parse_gold(gold)
    if not reference:
        raise ValueError(f"the gold answer {gold!r} cannot be parsed")
    return verify(list(reference), parsed, timeout_seconds=None) and _close(reference[0], parsed[0])


@lru_cache(maxsize=256)
def _parse_gold(gold: str) -> tuple:
    return tuple(_parse_box(gold))


def _parse_box(answer: str) -> list:
    answer = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", answer) if _SCIENTIFIC.fullmatch(answer) else answer
    return parse("\\boxed{" + answer + "}", _EXTRACTION, parsing_timeout=None)


def _close(gold: Basic | str, answer: Basic | str) -> bool:
    """False only for two numbers, one of them a decimal, that differ by more than RELATIVE_TOLERANCE."""
    if not (isinstance(gold, Basic) and isinstance(answer, Basic) and gold.is_number and answer.is_number):
        return True
    if not (gold.has(Float) or answer.has(Float)) or gold.is_zero:
        return True
    error = abs((gold.evalf() - answer.evalf()) / gold.evalf())
    return not isinstance(error, Number) or bool(error <= RELATIVE_TOLERANCE)


def _no_contradiction(answer: str, gold: str) -> bool:
    """Constants left of an equals sign must equal the gold answer as well (`6/2 = 3` may, `2 = 3` may not)."""
    if "=" not in answer or "=" in gold:
        return True
    parts = (_parse_box(part) for part in equation_split_regex.split(answer)[:-1])
    constants = [part for part in parts if part and getattr(part[0], "is_number", False)]
    return all(verify(list(_parse_gold(gold)), part, timeout_seconds=None) for part in constants)

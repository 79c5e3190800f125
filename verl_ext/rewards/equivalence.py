r"""Math-Verify equivalence of an answer with the gold answer. Runs inside a grading worker, never in the trainer.

Math-Verify's own time limits use SIGALRM and are switched off: the pool kills the worker at its deadline instead.
The content of a box is parsed as a whole, not searched for something that parses. On top of Math-Verify, leniencies
that let a wrong answer pass are closed, and two notations it misreads are handled:

* decimals are compared at 6 decimal places, so 0 would equal a gold answer of 1.6e-19: we also ask for 1 % relative;
* `2 = 3` and `2 \to 3` are read as 3: constants on the other side must equal the gold answer too;
* 4.5e33 is read as a product with Euler's number: it is rewritten after units are off (2e-1 stays Euler's, 2.0e-1 not);
* 50\% in a box is not read at all: the sign is taken off and the number marked as a percentage, as outside a box.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, convert_to_pct, normalize_latex
from math_verify import parse, verify
from math_verify.grader import is_assignment_relation
from math_verify.parser import parse_latex_cached
from sympy import Basic, Float, Number

RELATIVE_TOLERANCE = 1e-2
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)
_MATH_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_SCIENTIFIC = re.compile(r"(?=[+-]?(?:\d+\.|1e|\d+e\d|\d+e[+-]\d\d))([+-]?\d+(?:\.\d+)?)e([+-]?\d+)", re.IGNORECASE)
_POINT = re.compile(r"(?<=\d)\.(?=[/)*+])|\.+$")  # of "-1./3" and at the end of a sentence
_PERCENT = re.compile(r"(.*\d)\s*\\?%", re.DOTALL)
_JOINT = re.compile(r"(?<![\\<>!])=|\\(?:to|implies|iff|approx|equiv|(?:[lL]ong)?[rR]ightarrow)(?![A-Za-z])")

for _name in ("math_verify.parser", "math_verify.grader"):  # they warn in every worker that time limits are off
    logging.getLogger(_name).setLevel(logging.ERROR)


def grade_answer(answer: str, gold: str) -> tuple[bool, str]:
    """Whether `answer`, the content of a box, is equivalent to `gold`. Returns (correct, answer).

    Raises ValueError if the gold answer cannot be parsed.
    """
    return _correct(parse_answer(answer), answer, gold), answer


def grade_text(text: str, gold: str) -> tuple[bool, str]:
    """Whether the last answer that Math-Verify finds in a text without a box is equivalent to `gold`.

    Returns (correct, the answer found or ""). Raises ValueError if the gold answer cannot be parsed.
    """
    parsed = parse(text, parsing_timeout=None)
    answer = next((item for item in reversed(parsed) if isinstance(item, str)), "")
    return _correct(parsed, answer, gold), answer


def parse_answer(answer: str) -> list[Basic | str]:
    """[SymPy expression, normalised LaTeX] of an answer; only the LaTeX if it is not mathematics; [] if it is empty."""
    answer = _POINT.sub("", _MATH_DELIMITER.sub("", answer).strip())
    percent = _PERCENT.fullmatch(answer)
    number = percent.group(1) if percent else answer
    latex = normalize_latex(number, _NORMALIZATION)
    if not latex:
        return []
    if scientific := _SCIENTIFIC.fullmatch(latex):
        latex = rf"{scientific.group(1)} \times 10^{{{scientific.group(2)}}}"
    try:
        expression = parse_latex_cached(latex)
    except Exception:  # noqa: BLE001 - the grammar raises many types on text that is not mathematics
        return [latex]
    return [convert_to_pct(expression) if percent else expression, latex]


def grade_golds(golds: list[str]) -> list[tuple[bool, bool]]:
    """For each gold answer: whether it is equivalent to itself, and whether Math-Verify reads it as mathematics.

    One that it does not read equals only the same text. Raises ValueError if one cannot be parsed.
    """
    return [(grade_answer(gold, gold)[0], len(parse_answer(gold)) == 2) for gold in golds]


@lru_cache(maxsize=256)
def _parse_gold(gold: str) -> tuple[Basic | str, ...]:
    return tuple(parse_answer(gold))


def _correct(parsed: list[Basic | str], answer: str, gold: str) -> bool:
    reference = list(_parse_gold(gold))
    if not reference:
        raise ValueError(f"the gold answer {gold!r} cannot be parsed")
    equal = bool(parsed) and verify(reference, parsed, timeout_seconds=None)
    return equal and _close(reference[0], parsed[0]) and _consistent(answer, gold)


def _close(gold: Basic | str, answer: Basic | str) -> bool:
    """False only for two numbers, one of them a decimal, that differ by more than RELATIVE_TOLERANCE."""
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    if not (gold.has(Float) or answer.has(Float)) or gold.is_zero:
        return True
    error = abs((gold.doit().evalf() - answer.doit().evalf()) / gold.doit().evalf())
    return not isinstance(error, Number) or bool(error <= RELATIVE_TOLERANCE)


def _consistent(answer: str, gold: str) -> bool:
    r"""Constants joined to the answer by = or an arrow must equal the gold answer as well: 6/2 = 3 may, 2 = 3 may not."""
    reference = list(_parse_gold(gold))
    if _JOINT.search(gold) and not is_assignment_relation(reference[0]):
        return True  # x^2 + y^2 = 1 may be written the other way round
    parts = (parse_answer(part) for part in _JOINT.split(answer)[:-1])
    constants = [part for part in parts if part and getattr(part[0], "is_number", False)]
    return all(verify(reference, part, timeout_seconds=None) for part in constants)

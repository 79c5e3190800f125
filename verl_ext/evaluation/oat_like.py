r"""A grader that takes answers as the paper's evaluation did, to show what the difference to the training reward is worth.

The paper grades with Oat's `boxed_reward_fn`. As there: the answer is the last `\boxed{}` or `\fbox{}` of the whole
response, with or without `</think>`; a response without a box is wrong; correct is what equals the gold answer after the
string normalisation of the MATH benchmark, or by Math-Verify. Not as there: no list of unit words is taken off, SymPy never
evaluates a string, and Math-Verify runs with the training reward's stricter settings. Other data sources than mathematics
keep their rule.
"""

import re

from verl_ext.rewards.equivalence import grade_answer
from verl_ext.rewards.grade import last_boxed
from verl_ext.rewards.pool import Grader, GradingError, GradingTimeout
from verl_ext.rewards.rules import ANSWER_LIMIT, find_rule, is_absurd, math_rule

_SAME = {
    "\n": "", "\\!": "", "\\left": "", "\\right": "", "\\$": "", "\\%": "", "%": "", "^{\\circ}": "", "^\\circ": "",
    "tfrac": "frac", "dfrac": "frac", "\\neq": "\\ne", "\\leq": "\\le", "\\geq": "\\ge", "bmatrix": "pmatrix",
}  # fmt: skip
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_UNIT = re.compile(r"\\text\{[^{}]*\}$")
_BARE_FRACTION = re.compile(r"\\frac\s*([^{\s\\])\s*(?:([^{\s\\])|(?=\{))")
_BARE_ROOT = re.compile(r"\\sqrt\s*([^{\s\\\[])")
_QUOTIENT = re.compile(r"(-?\d+)/(-?\d+)")


def oat_like_score(data_source: str, text: str, gold: str, grader: Grader, truncated: bool = False) -> float:
    """1.0 if the response `text` (untrusted) counts as correct, else 0.0. `truncated`: cut off at the length limit."""
    rule = find_rule(data_source)
    if rule is not math_rule:
        return rule(text, gold, grader, truncated=truncated).score
    answer = boxed_answer(text)
    if not answer or is_absurd(answer, ANSWER_LIMIT):
        return 0.0
    if normalised(answer) == normalised(gold):
        return 1.0
    try:
        return float(grader.run(grade_answer, answer, gold)[0])
    except (GradingTimeout, GradingError):
        return 0.0


def boxed_answer(text: str) -> str | None:
    r"""Content of the last `\boxed{}`, or of the last `\fbox{}` where there is no `\boxed` at all."""
    return last_boxed(text if "\\boxed" in text else text.replace("\\fbox", "\\boxed"))


def normalised(answer: str) -> str:
    r"""An answer in one spelling: \frac12 and 1/2 as \frac{1}{2}, units, percent signs and white space gone, x=5 as 5."""
    whole = _WHOLE_TEXT.fullmatch(answer.strip())
    answer = whole.group(1) if whole else answer
    for spelling, replacement in _SAME.items():
        answer = answer.replace(spelling, replacement)
    answer = _UNIT.sub("", answer.strip()) or answer
    left, equals, right = answer.partition("=")
    answer = right if equals and "=" not in right and len(left.strip()) <= 2 else answer
    answer = _BARE_FRACTION.sub(lambda m: f"\\frac{{{m[1]}}}" + (f"{{{m[2]}}}" if m[2] else ""), answer)
    answer = "".join(_BARE_ROOT.sub(r"\\sqrt{\1}", answer).split())
    answer = "0" + answer if answer.startswith(".") else answer
    quotient = _QUOTIENT.fullmatch("1/2" if answer == "0.5" else answer)
    return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else answer

r"""What an answer can be. `reading.py` makes these of text, `equality.py` compares them.

Each keeps the canonical text it was read from; two answers with the same text are equal whatever they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy import Basic, I, MatrixBase

from verl_ext.rewards.numerals import Numeral, numeral, write_fractions
from verl_ext.rewards.spelling import compact, unwrapped
from verl_ext.rewards.units import Unit

# By default the grammar takes N for n, so that R^2 - r^2 is 0, and 2 1/2 for 3/2.
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_PROSE = re.compile(r"(?<!_)(?<!_\{)\\text\s*\{[^{}]*[^\W\d_]{2}[^{}]*\}|(?<![\\A-Za-z{])[A-Za-z]{4}")
_PRIME = re.compile(r"([A-Za-z])(?:_\{(\w+)\})?('+)")
_MISREAD = (  # the grammar takes \gamma for the function, and knows neither E_1 nor M_\odot
    (re.compile(r"\\gamma(?![A-Za-z])"), r"\\mathrm{g}"),
    (re.compile(r"\\Gamma(?![A-Za-z]|\s*\()"), r"\\mathrm{G}"),
    (re.compile(r"(?<![\\A-Za-z])E(?=\s*_)"), r"\\mathrm{E}"),
    (re.compile(r"_\s*\{?\s*\\([A-Za-z]+)\s*(?:\}|(?![A-Za-z{}]))"), r"_{\1}"),
)
_ADJACENT_NUMBERS = re.compile(r"\d [\d.]")


def _for_grammar(text: str) -> str:
    """What the grammar drops, misreads or refuses in forms that it keeps: x' as x_{prime}."""
    text = _PRIME.sub(lambda m: f"{m[1]}_{{{m[2] or ''}{'prime' * len(m[3])}}}", text)
    for pattern, replacement in _MISREAD:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True)
class Answer:
    """Text that has no other reading: equal to the same text only."""

    text: str

    @cached_property
    def key(self) -> str:
        """The text without what makes no difference."""
        return compact(self.text)


class Value(Answer):
    """An expression, a relation, a set written with operators, or a matrix: what Math-Verify's grammar reads as one."""

    @cached_property
    def numeral(self) -> Numeral | None:
        return numeral(unwrapped(self.text))

    @cached_property
    def expression(self) -> Basic | MatrixBase | None:
        """Its SymPy expression, with `i` as the imaginary unit; None if it is no mathematics. May take any time.

        Prose is none, nor are numbers side by side: the grammar would multiply their letters and digits.
        """
        text = _for_grammar(write_fractions(unwrapped(self.text)))
        if _PROSE.search(self.text) or _ADJACENT_NUMBERS.search(text):
            return None
        try:
            expression = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=_CONVERSION)
        except Exception:  # noqa: BLE001 - the grammar raises many types on text that is not mathematics
            return None
        units = [s for s in getattr(expression, "free_symbols", ()) if s.name == "i"]
        return expression.subs(dict.fromkeys(units, I)) if units else expression


@dataclass(frozen=True)
class Word(Answer):
    """Letters only, whose order counts: a name, a sequence of coin flips, the points of `figure` (an angle, a segment)."""

    letters: str
    figure: str = ""


@dataclass(frozen=True)
class Based(Answer):
    """Digits with the base they are written in, such as 2516_8."""

    digits: str
    base: int


@dataclass(frozen=True)
class Quantity(Answer):
    r"""A value with a unit.

    Attributes:
        value: the number in front of the unit.
        unit: see units.py.
        letter: the unit is a single letter without `\text`, which may be a variable: 6m.
        compound: the sum of several, such as 3 hours 20 minutes, already in base units.
    """

    value: Value
    unit: Unit
    letter: bool = False
    compound: bool = False


@dataclass(frozen=True)
class Ratio(Answer):
    """1:2:3, which is 2:4:6 and not 1/6."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Equation(Answer):
    r"""left = right, or a chain such as x = 10/2 = 5 or \sqrt{2} \approx 1.41.

    Attributes:
        left: text of the first part.
        right: the last part.
        named: the left side names what the right side says: x = 5, f(x) = 2x, x \in [0, 1].
        others: the parts that are neither a name nor the last one.
    """

    left: str
    right: Answer
    named: bool
    others: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Sequence(Answer):
    r"""Several answers. `brackets` are "" for a list, "{}" for a set and "\cup" for a union, whose order is free, else those
    of a tuple or interval: "()", "(]", "[)", "[]"."""

    parts: tuple[Answer, ...]
    brackets: str = ""

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}", "\\cup")

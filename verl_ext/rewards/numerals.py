r"""Numbers as people write them, read exactly: 12 345, 1,234.5, 2 1/2, \frac{5}{2}, 0.\overline{3}, 4.5e33.

Pure functions over canonical text (see spelling.py). Nothing here needs SymPy, and all of it is linear in the text, so
two plain numbers are compared without a worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

DECIMAL_PLACES = 6  # Math-Verify's: decimals are equal if they round to the same number at so many places,
RELATIVE_TOLERANCE = Fraction(1, 100)  # and are as close as this, so that 0 is not 1.6e-19
ROUNDED_DIGITS = 5  # a decimal with so many significant digits stands for the exact number that it is the rounding of
LARGEST_EXPONENT = 400

_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:,\d{3})+)(?!,?\d)")
_LAKHS = re.compile(r"(?<![\d.,])([1-9]\d?)((?:,\d{2})*,0\d(?:,\d{2})*)(,\d{3})(?![\d,])")  # 1,00,000
_SPACED = re.compile(r"(?<![\d.,] )(?<![\d.,])([1-9]\d{0,2})((?: \d{3})+)(?! ?[\d/])(?!\s*\\frac)")
_APOSTROPHES = re.compile(r"(?<![\d.,'])([1-9]\d{0,2})((?:'\d{3})+)(?![\d'])")
_INTEGER = r"(\d+)"
_BRACED = r"\{\s*([+-]?\s*\d+)\s*\}"
_FRACTION = re.compile(rf"(?:{_INTEGER}\s*/\s*{_INTEGER}|\\frac\s*{_BRACED}\s*{_BRACED})")
_MIXED = re.compile(
    rf"(?<![\d.,^_}}/])(\d+)(?:\s+{_INTEGER}\s*/\s*{_INTEGER}|\s*\\frac\s*{_BRACED}\s*{_BRACED})(?![\d.])"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}|\((\d+)\))")
_DECIMAL = re.compile(r"(\d+)(?:\.(\d*))?|\.(\d+)")
# 2e-1 is 2e - 1 with Euler's number; 2.0e-1, 1e-3, 3e8 and 1e-27 are powers of ten.
_E_NOTATION = re.compile(r"(\d+\.\d+|1|\d+(?=e\d|e[+-]\d\d))e([+-]?\d+)", re.IGNORECASE)
_POWER_OF_TEN = re.compile(r"(?:(\d+(?:\.\d*)?)\s*(?:\\(?:times|cdot)|\*)\s*)?10\^(?:\{\s*([+-]?\d+)\s*\}|(\d+))")


@dataclass(frozen=True)
class Numeral:
    """A number as it is written.

    Attributes:
        value: its exact value.
        unit_in_last_place: of a decimal (0.01 of 2.50), None for an integer, a fraction or a repeating decimal.
        digits: significant digits of a decimal, 0 otherwise.
    """

    value: Fraction
    unit_in_last_place: Fraction | None = None
    digits: int = 0

    @property
    def exact(self) -> bool:
        return self.unit_in_last_place is None


def numeral(text: str) -> Numeral | None:
    """The number that the whole of `text` is, or None."""
    text = text.strip()
    negative = text.startswith(("-", "+")) and text[0]
    magnitude = text[1:].strip() if negative else text
    if not magnitude or magnitude[0] in "+-":
        return None
    number = next((found for read in _READERS if (found := read(magnitude)) is not None), None)
    if number is None or negative != "-":
        return number
    return Numeral(-number.value, number.unit_in_last_place, number.digits)


def join_thousands(text: str) -> str:
    """`text` with 1,234, 12 345 and 12'345 as numbers of digits alone. A list without spaces, 100,200, is one as well; of
    India's way, 1,00,000, what can be no list: 12,34,567 may be three numbers."""
    text = _LAKHS.sub(lambda m: (m[1] + m[2] + m[3]).replace(",", ""), text)
    text = _THOUSANDS.sub(lambda m: m[1] + m[2].replace(",", ""), text)
    text = _APOSTROPHES.sub(lambda m: m[1] + m[2].replace("'", ""), text)
    return _SPACED.sub(lambda m: m[1] + m[2].replace(" ", ""), text)


def write_fractions(text: str) -> str:
    r"""`text` with mixed numbers and repeating decimals as fractions that no parser misreads: (2+\frac{1}{2})."""
    return _MIXED.sub(_mixed_as_sum, _REPEATING.sub(_repeating_as_fraction, text))


def numerals_equal(gold: Numeral, answer: Numeral) -> bool:
    """Exact numbers are equal if they are the same; a decimal to its last places, or as the rounding of an exact number."""
    if gold.exact and answer.exact:
        return gold.value == answer.value
    return decimals_equal(gold.value, answer.value) or any(
        is_rounding(short, exact.value) for short, exact in ((answer, gold), (gold, answer)) if exact.exact
    )


def decimals_equal(gold: Fraction, answer: Fraction) -> bool:
    """Equal at DECIMAL_PLACES and within RELATIVE_TOLERANCE; only 0 is equal to 0."""
    if gold == 0 or answer == 0:
        return gold == answer
    return round(gold, DECIMAL_PLACES) == round(answer, DECIMAL_PLACES) and abs(
        gold - answer
    ) <= RELATIVE_TOLERANCE * abs(gold)


def is_rounding(short: Numeral, exact: Fraction, digits: int = ROUNDED_DIGITS) -> bool:
    """Whether a decimal of at least `digits` significant digits, places after the point among them, is `exact` rounded."""
    return (
        short.unit_in_last_place is not None
        and short.unit_in_last_place < 1
        and short.digits >= digits
        and 2 * abs(short.value - exact) <= short.unit_in_last_place
    )


def _read_decimal(text: str) -> Numeral | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole, places = match[1] or "0", (match[2] if match[1] else match[3]) or ""
    value = Fraction(int(whole + places), 10 ** len(places))
    if not places:
        return Numeral(value)
    return Numeral(value, Fraction(1, 10 ** len(places)), len((whole + places).lstrip("0")))


def _read_scientific(text: str) -> Numeral | None:
    match = _E_NOTATION.fullmatch(text) or _POWER_OF_TEN.fullmatch(text)
    if match is None:
        return None
    mantissa = _read_decimal(match[1] or "1")
    exponent = int(next(group for group in match.groups()[1:] if group is not None))
    if mantissa is None or abs(exponent) > LARGEST_EXPONENT:
        return None
    power = Fraction(10) ** exponent
    place = mantissa.unit_in_last_place
    return Numeral(mantissa.value * power, None if place is None else place * power, mantissa.digits)


def _read_fraction(text: str) -> Numeral | None:
    match = _FRACTION.fullmatch(text)
    return None if match is None else _quotient(*_two(match.groups()))


def _read_mixed(text: str) -> Numeral | None:
    match = _MIXED.fullmatch(text)
    if match is None:
        return None
    above, below = _two(match.groups()[1:])
    return Numeral(int(match[1]) + Fraction(above, below)) if 0 < above < below else None


def _read_repeating(text: str) -> Numeral | None:
    match = _REPEATING.fullmatch(text)
    return None if match is None else Numeral(_repeating_value(match))


_READERS = (_read_decimal, _read_fraction, _read_mixed, _read_repeating, _read_scientific)


def _two(groups: tuple[str | None, ...]) -> tuple[int, int]:
    above, below = (int(group.replace(" ", "")) for group in groups if group is not None)
    return above, below


def _quotient(above: int, below: int) -> Numeral | None:
    return Numeral(Fraction(above, below)) if below else None


def _repeating_value(match: re.Match) -> Fraction:
    whole, places, period = match[1] or "0", match[2], match[3] or match[4]
    first = Fraction(int(whole + places), 10 ** len(places))
    return first + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places))


def _mixed_as_sum(match: re.Match) -> str:
    above, below = _two(match.groups()[1:])
    return f"({match[1]}+\\frac{{{above}}}{{{below}}})" if 0 < above < below else match[0]


def _repeating_as_fraction(match: re.Match) -> str:
    value = _repeating_value(match)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"

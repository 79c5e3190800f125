"""Reads a value and its unit: $18.90, 5 cents, 90^\\circ, 28\\%, 5 m^2, 3 hours 20 minutes."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from verl_ext.rewards.answers import Quantity, Value
from verl_ext.rewards.numerals import numeral
from verl_ext.rewards.spelling import unwrapped
from verl_ext.rewards.units import LETTERS, Unit, is_measure, parse_unit

_CURRENCY = re.compile(r"([+-]?)\s*(\\\$|[€£₹]|Rs\.?|USD|US\s*\\?\$)\s*(?=[\d\\(.])(.+)", re.DOTALL)
_MARKED = re.compile(
    r"(.*?[\w})\]!.])\s*((?:\\text\s*\{|\^\{\\circ\}|\\?%|\\\$|[€£¢\u3040-\u30ff\u4e00-\u9fff]).*)", re.DOTALL
)
_PLAIN = re.compile(
    r"(.*?[\d})])\s*((?:(?<=[ \d])|(?<=[})]))[^\W\d_][^\d^(){}\\]*(?:\^\{?\d\}?)?(?:/[a-z]+(?:\^\{?\d\}?)?)?)",
    re.DOTALL,
)
_UNIT_TEXT = re.compile(
    r"(?:[^\W\d_]|[ ./%$€£¢°·]|\^\{?-?\d\}?|\\(?:text\s*\{[^{}]*\}|[%$]|cdot(?![a-z]))|\^\{\\circ\})+"
)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\.?\s*(?:,|and(?![A-Za-z]))?\s*")
_MATHEMATICAL = frozenset((
    *("sin", "cos", "tan", "mod", "choose", "base", "factorial", "pi", "sqrt", "where", "if"),
    *("when", "with", "to", "is", "not"),
))  # fmt: skip


def read_quantity(text: str) -> Quantity | None:
    """The value and unit that `text` is as a whole."""
    return _read_currency(text) or _read_marked(text) or _read_plain(text)


def read_compound(text: str) -> Quantity | None:
    """3 hours 20 minutes: two or more measures of one kind, each smaller than the one before."""
    parts = _parts(unwrapped(text))
    if len(parts) < 2:
        return None
    units = [parse_unit(name) if is_measure(name) else None for _, name in parts]
    kinds = {unit and unit.powers for unit in units}
    if len(kinds) > 1 or None in kinds or any(a.factor <= b.factor for a, b in pairwise(units)):
        return None
    total = sum(numeral(number).value * unit.factor for (number, _), unit in zip(parts, units, strict=True))
    value = Value(f"{total.numerator}/{total.denominator}")
    return Quantity(text, value, Unit(Fraction(1), units[0].powers), compound=True)


def _parts(text: str) -> list[tuple[str, str]]:
    """(number, unit) for each part, if there is nothing else in the text."""
    parts, position = [], 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return []
        parts.append((match[1], match[2]))
        position = match.end()
    return parts


def _read_currency(text: str) -> Quantity | None:
    match = _CURRENCY.fullmatch(text)
    if match is None:
        return None
    rest = _read_marked(match[3]) or _read_plain(match[3])  # $5 million, $18.90 per hour
    amount = rest.text[: len(rest.value.text)] if rest else match[3]
    after = match[3][len(amount) :]
    unit = parse_unit(f"{match[2].replace('US', '')} {after}".replace("..", "."))
    return Quantity(text, Value(match[1] + amount.strip()), unit)


def _read_marked(text: str) -> Quantity | None:
    r"""The unit begins with \text, a degree, percent or currency sign."""
    match = _MARKED.fullmatch(text)
    if match is None or not _UNIT_TEXT.fullmatch(match[2]) or not _is_value(match[1]) or _is_prose(match[2]):
        return None
    return Quantity(text, Value(match[1].strip()), parse_unit(match[2]))


def _read_plain(text: str) -> Quantity | None:
    """The unit is a known measure, or a noun after a plain number."""
    match = _PLAIN.fullmatch(text)
    if match is None or not _UNIT_TEXT.fullmatch(match[2]) or not _is_value(match[1]) or _is_prose(match[2]):
        return None
    words = re.findall(r"[^\W\d_]+", match[2])
    measures = all(is_measure(word) or word in ("per", "square", "sq", "cubic", "cu") for word in words)
    apart = match[2][0] != text[match.end(1)]
    nouns = apart and numeral(match[1]) is not None and all(len(word) > 2 or word in ("of", "a") for word in words)
    if not measures and not nouns:
        return None
    letter = all(word in LETTERS for word in words)
    return Quantity(text, Value(match[1].strip()), parse_unit(match[2]), letter=letter)


def _is_value(text: str) -> bool:
    """Whether what stands before a unit may be a number: balanced, and no words in it."""
    balanced = text.count("{") == text.count("}")
    return balanced and "\\text" not in text and not re.search(r"(?<!\\)(?<![^\W\d_])[^\W\d_]{2}", text)


def _is_prose(unit: str) -> bool:
    return any(word.lower() in _MATHEMATICAL for word in re.findall(r"[A-Za-z]+", unit))

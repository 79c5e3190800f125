r"""Reads what is not arithmetic although it looks like it: words, points, digits in a base, ratios."""

from __future__ import annotations

import re

from verl_ext.rewards.answers import Based, Ratio, Value, Word
from verl_ext.rewards.spelling import unwrapped
from verl_ext.rewards.splitting import split

_WORDS = re.compile(r"[^\W\d_]+\.?(?:[ '/][^\W\d_]+\.?)*|[^\W\d_]{2,}(?:[ -][^\W\d_]{2,})+")
_POINTS = re.compile(r"(?:[A-Z](?:_\{\w+\}|'+)?\s*){2,}")
_FIGURE = re.compile(
    r"\\(angle|triangle|overline|overrightarrow|overleftrightarrow|vec|widehat|measuredangle)\s*(?:\{([^{}]*)\}|([A-Z].*))"
)
_ARTICLE = re.compile(r"^(?:the|an|a) (?=\w{2})", re.IGNORECASE)
_BASED = re.compile(r"\(?\s*([0-9A-Fa-f]+)\s*\)?\s*(?:_\s*\{?\s*(\w+)\s*\}?|,?\s*\(?\s*(?:in )?base[ -]*(\w+)\s*\)?)")
_NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASES = {name: base for base, name in enumerate(_NAMES, 2)} | {"sixteen": 16}
_COLON = re.compile(r":")


def read_word(text: str) -> Word | None:
    """Two or more letters, as words or as points, if nothing else is there."""
    figure = _FIGURE.fullmatch(text)
    inner = unwrapped(text) if figure is None else unwrapped(figure[2] or figure[3])
    if not (_WORDS.fullmatch(inner) or _POINTS.fullmatch(inner)) or sum(map(str.isalpha, inner)) < 2:
        return None
    letters = _ARTICLE.sub("", inner).replace(" ", "").replace(".", "")
    return Word(text, letters, figure[1] if figure else "")


def read_based(text: str) -> Based | None:
    """Digits with a base as subscript or in words. A_{12} is a variable, 1A_{12} a number."""
    match = _BASED.fullmatch(unwrapped(text))
    if match is None:
        return None
    digits, name = match[1].upper(), (match[2] or match[3]).lower()
    base = int(name) if name.isdecimal() else _BASES.get(name, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    if not digits[0].isdigit() and (len(digits) < 2 or not match[1].isupper()):
        return None
    return Based(text, digits.lstrip("0") or "0", base)


def read_ratio(text: str) -> Ratio | None:
    """Values with colons between them."""
    parts = split(text, _COLON)
    if len(parts) < 2 or not all(parts) or re.search(r"\\text|\\to(?![a-z])|[<>=]", text):
        return None
    return Ratio(text, tuple(map(Value, parts)))

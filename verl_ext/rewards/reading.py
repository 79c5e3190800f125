r"""Reads an answer: lists, tuples, sets, intervals, equations, units, ratios, bases and words, before any parser.

Math-Verify's grammar multiplies, adds or drops what stands side by side (1 2 3, ABC, 2516_8, 1:2:3). Here the structure is
taken from the text first, and only what is one expression is left to the grammar.
"""

from __future__ import annotations

import re

from verl_ext.rewards.answers import Answer, Equation, Sequence, Value
from verl_ext.rewards.notations import read_based, read_ratio, read_word
from verl_ext.rewards.numerals import numeral
from verl_ext.rewards.quantities import read_compound, read_quantity
from verl_ext.rewards.spelling import canonical, compact, without_thousands
from verl_ext.rewards.splitting import enclosed, split

_SEPARATORS = re.compile(
    r",?\s*(?:(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\\l(?:or|and)(?![a-z])|[,;])"
)
_WORDED_LIST = re.compile(r"\\text\s*\{([^{}]*(?:[,;]|\b(?:and|or)\b)[^{}]*)\}")
_JOINTS = re.compile(r"(?<![<>!\\])=|\\(?:to|Rightarrow|iff|approx|equiv)(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|notin|subset|subseteq|mid|pmod|forall)(?![A-Za-z])")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_OTHER_SIGN = re.compile(r"\\mp(?![A-Za-z])")
_CASES = re.compile(r"\\begin\{(?:cases|aligned|array)\}(?:\{[^{}]*\})?(.*)\\end\{\w+\}", re.DOTALL)
_SUBSCRIPT = r"(?:\s*_\s*(?:\{[^{}]*\}|\w))?(?:'+|\^\{?\\prime\}?)?"
_NAME = re.compile(
    rf"(?:\\text\s*\{{[^{{}}]*\}}|\\?[A-Za-z]+){_SUBSCRIPT}(?:\s*\([^()]*\))?|[A-Za-z]+(?: [A-Za-z]+)*"
    rf"|\\(?:angle|triangle|overline|vec|dot|hat)\s*(?:\{{[^{{}}]*\}}|[A-Z0-9_{{}} ]+){_SUBSCRIPT}|\|[^|]*\|"
)
_TEXT = re.compile(r"\\text\s*\{([^{}]+)\}")
_CONDITION = re.compile(
    r"\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid(?![A-Za-z])|[|:])\s*(.*(?:[<>=]|\\(?:le|ge|ne|in)(?![A-Za-z])).*)",
    re.DOTALL,
)
_NUMBERS = re.compile(r"[+-]?[\d./]+(?: [+-]?[\d./]+)+")


def read(answer: str) -> Answer:
    """The reading of an answer as a model or a data set wrote it."""
    return read_list(_WORDED_LIST.sub(r" \1 ", without_thousands(canonical(answer))).strip())


def read_list(text: str) -> Answer:
    """A list of items, or the one item there is."""
    compound = read_compound(text)
    if compound is not None:
        return compound
    items = _items(text)
    return items[0] if len(items) == 1 else Sequence(text, _named_alike(items)) if items else Answer(text)


def read_item(text: str) -> Answer:
    """The first reading that fits."""
    readings = (reader(text) for reader in _READERS)
    return next((found for found in readings if found is not None), None) or Value(text)


def _items(text: str) -> tuple[Answer, ...]:
    parts = [part for part in split(text, _SEPARATORS) if part]
    if len(parts) == 1 and _NUMBERS.fullmatch(parts[0]) and numeral(parts[0]) is None:
        parts = parts[0].split()
    return tuple(item for part in parts for item in _both_signs(part))


def _both_signs(text: str) -> list[Answer]:
    r"""a \pm b is two answers; \mp in it has the other sign."""
    if len(split(text, _SIGN)) < 2:
        return [read_item(text)]
    signs = (("+", "-"), ("-", "+"))
    texts = (_OTHER_SIGN.sub(other, _SIGN.sub(sign, text)).removeprefix("+").strip() for sign, other in signs)
    return [read_item(signed) for signed in texts]


def _named_alike(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """x = 1, 2 says x = 1, x = 2."""
    first = items[0]
    if not isinstance(first, Equation) or not first.named or any(isinstance(item, Equation) for item in items[1:]):
        return items
    return (first, *(Equation(f"{first.left}={item.text}", first.left, item, True) for item in items[1:]))


def _read_enclosed(text: str) -> Answer | None:
    r"""(1, 2), [1, 2), \{1, 2\}, or what a pair of brackets around one item encloses."""
    found = enclosed(text)
    if found is None:
        return None
    brackets, inner = found
    condition = _CONDITION.fullmatch(inner) if brackets in ("{}", "") else None
    if condition is not None:
        return read_item(condition[1])  # {x | x > 2} says x > 2
    if brackets == "{}" and re.search(r"\\mid|[|:]", inner):
        return None
    items = _items(inner)
    if len(items) < 2 and brackets != "{}":
        return items[0] if items else None
    if brackets == "" or (brackets == "[]" and len(items) > 2):
        brackets = "{}" if brackets == "" else ""  # {1, 2} is meant as a set, [1, 2, 3] as a list
    return Sequence(text, items, brackets)


def _read_text(text: str) -> Answer | None:
    match = _TEXT.fullmatch(text)
    return match and read_item(match[1].strip())


def _read_union(text: str) -> Answer | None:
    parts = split(text, _UNION)
    if len(parts) < 2 or _MEMBER.search(text) or _RELATION.search(text):
        return None
    return Sequence(text, tuple(map(read_item, parts)), "\\cup")


def _read_cases(text: str) -> Answer | None:
    r"""\begin{cases} x = 1 \\ y = 2 \end{cases} is a list."""
    match = _CASES.fullmatch(text)
    return match and read_list(", ".join(part for part in match[1].replace("&", " ").split(r"\\") if part.strip()))


def _read_equation(text: str) -> Answer | None:
    """x = 5, x in A, (x, y) = (1, 2), and chains of them."""
    if _RELATION.search(text):
        return None
    member = split(text, _MEMBER)
    if len(member) == 2 and _NAME.fullmatch(member[0]):
        return Equation(text, compact(member[0]), read_item(member[1]), True)
    parts = split(text, _JOINTS)
    if len(parts) < 2 or not all(parts):
        return None if len(parts) < 2 else Answer(text)
    return _by_components(text, parts) or _equation(text, parts)


def _equation(text: str, parts: list[str]) -> Equation:
    if len(parts) == 2 and _NAME.fullmatch(parts[1]) and not _NAME.fullmatch(parts[0]):
        parts = parts[::-1]  # 5 = x
    named = _NAME.fullmatch(parts[0]) is not None
    others = tuple(read_item(part) for part in parts[int(named) : -1])
    return Equation(text, compact(parts[0]), read_item(parts[-1]), named, others)


def _by_components(text: str, parts: list[str]) -> Sequence | None:
    """(x, y) = (1, 2) says x = 1, y = 2."""
    pairs = [enclosed(part) for part in parts]
    if len(parts) != 2 or not all(pairs):
        return None
    names, values = (split(inner, _SEPARATORS) for _, inner in pairs)
    if len(names) < 2 or len(names) != len(values) or not all(map(_NAME.fullmatch, names)):
        return None
    named = (Equation(f"{n}={v}", compact(n), read_item(v), True) for n, v in zip(names, values, strict=True))
    return Sequence(text, tuple(named))


_READERS = (
    _read_text,
    _read_cases,
    _read_equation,
    read_based,
    _read_enclosed,
    _read_union,
    read_ratio,
    read_word,
    read_quantity,
)

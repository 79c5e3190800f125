r"""The answer of a text without a box: what follows the last "answer is", else the last formula or number.

What is found is read like the content of a box. Quadratic in the text at worst: callers bound its length.
"""

from __future__ import annotations

import re

from verl_ext.rewards.characters import to_latex
from verl_ext.rewards.units import is_measure

_ANNOUNCED = re.compile(r"\banswers?\**\s*(?:(?:is|are)\b\s*:?|:|=)[\s*]*", re.IGNORECASE)
_SENTENCE = re.compile(r".*?(?=\.\s|\n|$)", re.DOTALL)
_EQUALS = re.compile(r"(?<![<>!\\])=\s*(?=[-+$\\\d(])")
_FORMULA = r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>[^$\n]+)(?<!\\)\$|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]"
_SIGN = r"(?:(?<![\w.)}])[-+])?(?:\\?\$|[€£₹])?"
_PLAIN = r"(?:\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)(?:\s+\d+/\d+)?"
_NUMBER = (
    rf"(?P<number>{_SIGN}(?<![A-Za-z\d_^.]){_PLAIN}(?:\s*(?:\*\*|[-+*/^])\s*{_PLAIN})*(?:\s*\\?%|\^\{{\\circ\}})?)"
    r"(?P<word>\s*[A-Za-z]+(?![A-Za-z]))?"
)
_ANSWER = re.compile(f"{_FORMULA}|{_NUMBER}", re.DOTALL)
_JOINT = re.compile(r"[\s,;]*(?:and|or|,|;)[\s,;]*")


def stated_answer(text: str) -> str:
    """The answer that a text without a box gives, "" if there is none."""
    text = to_latex(text)
    announced = max((match.end() for match in _ANNOUNCED.finditer(text)), default=None)
    if announced is not None:
        found = _found(_after_equals(_SENTENCE.match(text, announced)[0]))
        if found:
            return _joined(found)
    found = _found(text)
    last = len(found) - 1
    while last > 0 and found[last - 1].lastgroup != "number" and _are_joined(found[last - 1], found[last]):
        last -= 1
    return _joined(found[last:]) if found else ""


def _found(text: str) -> list[re.Match]:
    return list(_ANSWER.finditer(text))


def _after_equals(sentence: str) -> str:
    """3 + 4 = 7 gives 7."""
    ends = [match.end() for match in _EQUALS.finditer(sentence) if sentence.count("$", 0, match.start()) % 2 == 0]
    return sentence[ends[-1] :] if ends else sentence


def _joined(found: list[re.Match]) -> str:
    """The first answer, and those that "and" or a comma joins to it."""
    count = 1
    while count < len(found) and _are_joined(found[count - 1], found[count]):
        count += 1
    return ", ".join(map(_content, found[:count]))


def _are_joined(one: re.Match, other: re.Match) -> bool:
    return _JOINT.fullmatch(one.string, one.end(), other.start()) is not None


def _content(match: re.Match) -> str:
    if not match["number"]:
        return next(match[name] for name in "abcd" if match[name]).strip()
    number, word = match["number"].rstrip(","), (match["word"] or "").strip()
    return f"{number} {word}" if is_measure(word) and len(word) > 1 else number

r"""Splits LaTeX where it is not inside brackets. Linear scans; unbalanced text is split as if the rest were balanced."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}|\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPENING = {"(": "(", "[": "[", "{": "", "\\{": "{", "\\langle": "(", "\\lfloor": "", "\\lceil": ""}
_CLOSING = {")": ")", "]": "]", "}": "", "\\}": "}", "\\rangle": ")", "\\rfloor": "", "\\rceil": ""}


def split(text: str, separator: re.Pattern) -> list[str]:
    """Parts of `text` between the matches of `separator` that are outside brackets, stripped; empty ones are kept."""
    parts, start, position, depth = [], 0, 0, 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match is not None and match.end() > position:
            parts.append(text[start:position].strip())
            start = position = match.end()
            continue
        token = _TOKEN.match(text, position)[0]
        depth = max(0, depth + _step(token))
        position += len(token)
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str] | None:
    r"""("()", inside) if one pair of brackets encloses the whole text: (), [], (], [), "{}" for \{\}, "" for TeX's own {}."""
    text = text.strip()
    first = _TOKEN.match(text)
    if first is None or first[0] not in _OPENING:
        return None
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += _step(token[0])
        if depth == 0:
            if token.end() < len(text) or token[0] not in _CLOSING:
                return None
            return _OPENING[first[0]] + _CLOSING[token[0]], text[first.end() : token.start()].strip()
    return None


def _step(token: str) -> int:
    if token in _OPENING or token.startswith("\\begin"):
        return 1
    return -1 if token in _CLOSING or token.startswith("\\end") else 0

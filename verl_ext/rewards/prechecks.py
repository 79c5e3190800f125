"""What is refused before any parser sees it; linear in the limits, not in the text."""

from __future__ import annotations

import re

from verl_ext.rewards.characters import unread_digit

ANSWER_LIMIT = 1000  # characters in a box; the longest gold answer of the six benchmarks has 210
DEPTH_LIMIT = 8  # nested brackets; gold answers of the six benchmarks have 4 at most
DIGITS_LIMIT = 400  # consecutive digits

_GIANT_NUMBER = re.compile(rf"\d{{{DIGITS_LIMIT + 1}}}")


def is_absurd(text: str, limit: int) -> bool:
    """True for what no gold answer looks like and a parser may choke on.

    Characters that look like digits and have no reading, such as circled ones, are refused as well.
    """
    return len(text) > limit or bool(_GIANT_NUMBER.search(text)) or _depth(text) > DEPTH_LIMIT or unread_digit(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest

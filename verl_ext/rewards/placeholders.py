"""Gold answers that stand for a missing one. A policy that writes the same word would be paid for it."""

from __future__ import annotations

import re

from verl_ext.rewards.characters import to_latex

_PLACEHOLDERS = frozenset((
    *("answer", "nan", "none", "null", "pending", "proof", "proofs", "proven", "solution", "tba", "tbd", "todo", "unknown"),
    *("noanswer", "notanswered", "notapplicable", "notavailable", "notfound", "notgiven", "notprovided", "unavailable"),
    *("seeproof", "seesolution", "seeabove"),
))  # fmt: skip
_NOT_AVAILABLE = re.compile(r"n\.?/a\.?|N\.?/A\.?|NA|na|#N/A")  # Na is sodium
_DECORATION = re.compile(r"\\(?:text|mathrm|textbf|mathbf|boxed)\s*|[^\w\\]|_")


def is_placeholder(gold: object) -> bool:
    """Whether a gold answer is one of `proof`, `notfound`, `None`, `N/A`, `TBD`, NaN and their like, or has no character
    that says anything.

    "no solution", "undefined" and "does not exist" are answers.
    """
    if gold is None or gold != gold:  # NaN
        return True
    text = to_latex(str(gold)).strip(" \t\n.$")
    word = _DECORATION.sub("", text).lower()
    return not word or word in _PLACEHOLDERS or _NOT_AVAILABLE.fullmatch(text) is not None

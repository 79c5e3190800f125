r"""Multiple choice: the letter that a response ends with.

It stands in the last `\boxed{}`, after the last "answer is" or "Answer:", or alone on the last line; whichever comes last
counts. A box without a letter (a formula) is skipped; one with several letters is no answer.
"""

from __future__ import annotations

import re

from verl_ext.rewards.grade import BOX, final_answer

_MARKUP = re.compile(r"\\(?:textbf|textit|text|mathrm|mathbf|boldsymbol)\s*|[{}$*]")
_BOXED = re.compile(r"(?:(?i:the |correct |answer |is |option |choice |:)*)\(?([A-Ja-j])\)?(?:[\s.:),].*)?", re.DOTALL)
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)s?\**\s*(?:is\b|:)|\b(?:correct|right)\s+(?:option|choice|answer)\s+is\b)"
    r"[\s:*]*(?i:\b(?:option|choice|letter)\b)?[\s:*($\\]*(?:(?:textbf|text|mathrm|mathbf|boxed)\s*)?[\s{(]*"
    r"(?:(?!I['\s]\s*[a-z])(?P<capital>[A-J])\b|(?P<small>[a-j])(?=[\s$*})]*(?:\.\s*)?(?:\n|$)|[)}]))"
)
_LAST_LINE = re.compile(r"[\s*_$({]*(?i:option\s+)?[($]*(?P<letter>[A-J])[)}$]*[\s*_.]*")
_MORE = re.compile(r"[)}$*.:\s]*(?:,|/|;|&|\||or\b|and\b)\s*[*($]{0,3}(?i:option\s+)?[A-Ja-j]\b")
_WINDOW = 2000  # characters from the end in which a letter is looked for


def chosen_letter(text: str) -> str | None:
    """The letter A to J that a response chooses; None if it names none, or several at once."""
    ending = text[-_WINDOW:]
    start = text.rfind(BOX)
    boxed, named = _boxed_letter(text)
    stated = max(_STATED.finditer(ending), key=re.Match.end, default=None)
    offset = len(text) - len(ending)
    if stated is not None and (not named or offset + stated.start() > start):
        return _single(ending, stated)
    if named:
        return boxed
    last = next((line for line in reversed(ending.splitlines()) if line.strip()), "")
    alone = _LAST_LINE.fullmatch(last)
    return alone["letter"] if alone and len(last.strip()) <= 20 else None


def _boxed_letter(text: str) -> tuple[str | None, bool]:
    """(the letter in the last box, whether that box is about letters at all)."""
    if BOX not in text:
        return None, False
    answer = final_answer(text)
    if answer is None:
        return None, True  # cut off
    plain = _MARKUP.sub("", answer).strip()
    match = _BOXED.fullmatch(plain)
    if match is None:
        return None, False
    return (None if _MORE.match(plain, match.end(1)) else match[1].upper()), True


def _single(text: str, match: re.Match) -> str | None:
    group = "capital" if match["capital"] else "small"
    return None if _MORE.match(text, match.end(group)) else match[group].upper()

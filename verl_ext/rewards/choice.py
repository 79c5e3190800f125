r"""Multiple choice: the letter that a response ends with.

It stands in the last `\boxed{}`, after the last "answer is" or "Answer:", or alone on the last line; whichever comes last
counts. A box without a letter (a formula) is skipped; one with several letters, or cut off, is no answer.
"""

from __future__ import annotations

import re

from verl_ext.rewards.grade import BOX, final_answer

_WINDOW = 2000  # characters from the end in which a letter is looked for
_BLANKS = (
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r"\n[ \n]*"), "\n"),
)  # so that no pattern meets a long run of them
_MARKUP = re.compile(r"\\(?:textbf|textit|text|mathrm|mathbf|boldsymbol|boxed)\s*|\\[()\[\]]|[{}$*_]")
_BOXED = re.compile(r"(?i:(?:the |correct |answer |option |choice |is )*)\(?([A-Ja-j])\)?(?:[\s.:),].*)?", re.DOTALL)
_STATED = re.compile(
    r"(?i:\b(?:answers?|options?|choices?)(?: is\b| ?:)|\b(?:correct|right) (?:option|choice|answer) is\b)"
    r"[ :]{0,3}\n?(?i:option |choice |letter )?[ (]{0,3}"
    r"(?:(?!I['\s] ?[a-z])(?P<capital>[A-J])\b|(?P<small>[a-j])(?= ?[.)]? ?(?:\n|$)))"
)
_LAST_LINE = re.compile(r" ?(?i:option )?\(?(?P<letter>[A-J])\)?\.? ?")
_MORE = re.compile(r"[). ]{0,3}(?:,|/|;|&|\||or\b|and\b) ?\(?(?i:option )?\(?[A-Ja-j]\b")


def chosen_letter(text: str) -> str | None:
    """The letter A to J that a response chooses; None if it names none, or several at once."""
    start = text.rfind(BOX)
    boxed, about_letters = _boxed_letter(text)
    if about_letters:
        later = _stated(_plain(text[start:][-_WINDOW:]))
        return later[0] if later else boxed
    ending = _plain(text[-_WINDOW:])
    stated = _stated(ending)
    return stated[0] if stated else _alone_on_last_line(ending)


def _boxed_letter(text: str) -> tuple[str | None, bool]:
    """(the letter in the last box, whether that box is about letters at all)."""
    if BOX not in text:
        return None, False
    answer = final_answer(text)
    if answer is None:
        return None, True  # cut off
    plain = _plain(answer[:_WINDOW]).strip()
    match = _BOXED.fullmatch(plain)
    if match is None:
        return None, False
    return (None if _MORE.match(plain, match.end(1)) else match[1].upper()), True


def _stated(plain: str) -> tuple[str | None] | None:
    """(the letter of the last statement, None if it names several); None if nothing is stated."""
    match = max(_STATED.finditer(plain), key=re.Match.end, default=None)
    if match is None:
        return None
    group = "capital" if match["capital"] else "small"
    return (None if _MORE.match(plain, match.end(group)) else match[group].upper(),)


def _alone_on_last_line(plain: str) -> str | None:
    match = _LAST_LINE.fullmatch(plain.strip().rpartition("\n")[2])
    return match["letter"] if match else None


def _plain(text: str) -> str:
    """Without Markdown and LaTeX around the words, and with single blanks."""
    text = _MARKUP.sub("", text)
    for blanks, one in _BLANKS:
        text = blanks.sub(one, text)
    return text

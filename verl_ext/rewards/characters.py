r"""Unicode as LaTeX: models write ½, 90°, √3, ∞, （3,5）and −5 where gold answers have \frac{1}{2}, 90^\circ and so on.

Only characters with one reading are translated; everything else stays as it is and is compared as text.
"""

from __future__ import annotations

import re
import unicodedata

_COMMANDS = {
    "times": "×✕", "cdot": "·⋅∙・", "le": "≤≦⩽", "ge": "≥≧⩾", "ne": "≠", "approx": "≈≒", "infty": "∞", "pm": "±",
    "mp": "∓", "in": "∈", "notin": "∉", "cup": "∪", "cap": "∩", "emptyset": "∅", "setminus": "∖", "to": "→",
    "Rightarrow": "⇒", "therefore": "∴", "angle": "∠", "triangle": "△", "sum": "∑", "prod": "∏", "int": "∫",
    "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "langle": "⟨〈", "rangle": "⟩〉", "land": "∧", "lor": "∨",
    "neg": "¬", "forall": "∀", "ldots": "…⋯", "mathbb{R}": "ℝ", "mathbb{Z}": "ℤ", "mathbb{Q}": "ℚ", "mathbb{N}": "ℕ",
    "mathbb{C}": "ℂ", "subset": "⊂", "subseteq": "⊆", "perp": "⊥", "parallel": "∥", "sqrt": "√", "sqrt[3]": "∛",
    "sqrt[4]": "∜",
}  # fmt: skip
_PLAIN = {
    "-": "‐‑‒–—―−﹣", "/": "÷∕⁄", "'": "′‘’ʹ", "''": "″“”", ",": "、", ".": "。", "^{\\circ}": "°˚º", "^{\\circ}C": "℃",
    "^{\\circ}F": "℉", "[": "【〔", "]": "】〕", ":": "∶", "*": "∗",
}  # fmt: skip
_GREEK_CAPITALS = "ΓΔΘΛΞΠΣΦΨΩ"  # the others look like Latin letters and have no LaTeX command
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ", "0123456789+-()ni", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_OVERLINED = re.compile("(?:\\d[\u0304\u0305])+")  # 0.3̅
_DOTTED = re.compile("(\\d)\u0307")  # 0.3̇
_COMPATIBLE = ((0xFF01, 0xFF5E), (0x1D400, 0x1D7FF))  # full-width ASCII, mathematical letters and digits


def _greek() -> dict[str, str]:
    letters = [chr(code) for code in range(0x3B1, 0x3CA)] + list(_GREEK_CAPITALS)
    names = {letter: unicodedata.name(letter).split()[-1] for letter in letters}
    return {
        letter: f"\\{name.lower() if letter.islower() else name.title()} ".replace("lamda", "lambda")
        for letter, name in names.items()
        if name != "OMICRON"
    }


def _table() -> dict[str, str]:
    table = {character: f"\\{command} " for command, characters in _COMMANDS.items() for character in characters}
    table |= {character: text for text, characters in _PLAIN.items() for character in characters}
    return table | {character: _vulgar_fraction(character) for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"} | _greek()


def _vulgar_fraction(character: str) -> str:
    above, below = unicodedata.normalize("NFKC", character).split("⁄")
    return f" \\frac{{{above}}}{{{below}}}"


_TABLE = _table()


def to_latex(text: str) -> str:
    """`text` with every character that has one reading in LaTeX written so; linear in its length. ASCII is unchanged."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _OVERLINED.sub(lambda m: f"\\overline{{{m[0][::2]}}}", text)
    text = _DOTTED.sub(r"\\dot{\1}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m[0]) + "}", text)
    return "".join(map(_translated, text))


def unread_digit(text: str) -> bool:
    """Whether a digit-like character is left that has no reading, such as a circled digit."""
    return any(unicodedata.category(c) in ("Nd", "No") for c in to_latex(text) if c > "\x7f")


def _translated(character: str) -> str:
    if character <= "\x7f":
        return character
    code = ord(character)
    if any(first <= code <= last for first, last in _COMPATIBLE):
        character = unicodedata.normalize("NFKC", character)
    if character in _TABLE:
        return _TABLE[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("Zs", "Zl", "Zp"):
        return " "
    return "" if category == "Cf" else character

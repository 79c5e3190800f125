"""Untrusted text, such as a model's output, as a terminal may show it; and what counts as the same text."""

import unicodedata


def printable(text: str, keep: str = "\n\t") -> str:
    """Text with every control character spelled out but those in `keep` (line breaks and tabs)."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Text for a cell or a heading: every control character spelled out."""
    return printable(text, keep="")


def normalised(text: str) -> str:
    """NFC, with every run of white space made one space: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())

"""What a check found: one sentence that names the key and the remedy, and how bad it is."""

from dataclasses import dataclass

ERROR, IMPOSSIBLE, WARNING, NOTE = "error", "impossible", "warning", "note"


class PreflightError(ValueError):
    """The run cannot work as configured; the message says which key and what to do."""


@dataclass(frozen=True)
class Finding:
    """`severity` is `error` (refused everywhere), `impossible` (an estimate far over its limit: refused by `exgrpo check`, a
    warning in a run), `warning` or `note`."""

    severity: str
    text: str


def error(text: str) -> Finding:
    return Finding(ERROR, text)


def impossible(text: str) -> Finding:
    return Finding(IMPOSSIBLE, text)


def warning(text: str) -> Finding:
    return Finding(WARNING, text)


def note(text: str) -> Finding:
    return Finding(NOTE, text)

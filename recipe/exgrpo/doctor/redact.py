"""Text that may be pasted in public: no names of people, hosts or homes, no secrets of the environment."""

import getpass
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.exgrpo.presets.compose import ROOT

SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|COOKIE|AUTH|(^|_)KEY($|_)|API_?KEY|PROXY|WEBHOOK|DSN", re.IGNORECASE)
SETTING = re.compile(r"_(MODE|METHOD|TYPE)$", re.IGNORECASE)  # says how something is told, such as RAY_AUTH_MODE=token
NOBODY = ("root", "user", "ubuntu")  # names of nobody in particular
SHORTEST = 4  # characters of a name or secret that is looked for: shorter ones are parts of words
PATTERNS = (
    (re.compile(r"\b(hf|ghp|gho|github_pat|glpat|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}"), "<secret>"),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), "<secret>"),
    (re.compile(r"(?i)\b((?:authorization:? +)?bearer|authorization:?)\s+[^\s'\",}]{6,}"), r"\1 <secret>"),
    (re.compile(r"(?i)\b(token=|password=|api_key=)[^\s'\",}&]{6,}"), r"\1<secret>"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "<secret>@"),
    (re.compile(r"(?<=/home/)[^/\s'\"]+|(?<=/Users/)[^/\s'\"]+"), "<user>"),
    (re.compile(r"(?<![\d.])(?!127\.|0\.0\.0\.0)(\d{1,3}\.){3}\d{1,3}(?=:\d)|(?<=ip=)[\d.]+|(?<=ip: )[\d.]+"), "<ip>"),
)


class Redactor:
    """Replaces what is private to a machine; `env` is where secrets are looked for, by the names of their variables."""

    def __init__(
        self, out: Path, env: Mapping[str, str] = os.environ, home: Path | None = None, user: str | None = None
    ):
        user = user if user is not None else _user()
        words = {value: f"<{name}>" for name, value in env.items() if SECRET.search(name) and not SETTING.search(name)}
        words |= {str(out.absolute()): "OUT", str(ROOT): "CHECKOUT", str(home or Path.home()): "~"}
        words |= {platform.node(): "<host>"} | ({} if user in NOBODY else {user: "<user>"})
        kept = (word for word in words if len(word) >= SHORTEST and word != "localhost")
        self._words = [(_finds(word), words[word]) for word in sorted(kept, key=len, reverse=True)]

    def text(self, text: str) -> str:
        """One text, longest words first: a path before the home that it begins with."""
        for word, instead in self._words:
            text = word.sub(lambda _, said=instead: said, text)
        for pattern, instead in PATTERNS:
            text = pattern.sub(instead, text)
        return text

    def all(self, value: Any) -> Any:
        """Every text within a JSON value; keys are names of this project's own."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {str(key): self.all(one) for key, one in value.items()}
        return [self.all(one) for one in value] if isinstance(value, (list, tuple)) else value


def _finds(word: str) -> re.Pattern[str]:
    """A name or a word of letters alone by itself, not within a longer word; anything else wherever it stands."""
    return re.compile(rf"(?<![A-Za-z]){word}(?![A-Za-z])" if word.isalpha() else re.escape(word))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""

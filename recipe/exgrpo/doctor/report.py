"""`doctor.json`, and the same as a text for an issue."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.exgrpo.doctor.plan import SECTIONS
from recipe.exgrpo.doctor.redact import Redactor
from recipe.exgrpo.doctor.verdicts import FAILED, Verdict, counts
from verl_ext.files import write_atomically

FORMAT = 1
FILE, TEXT = "doctor.json", "doctor.txt"
LOG_LINES = 12  # of a start that failed, in the text


@dataclass
class Report:
    """What was found so far. `about`: the machine, the commit and the time; `logs`: the end of the log of each start that
    failed; `commands`: what was started, to be typed again."""

    about: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)
    logs: dict[str, Sequence[str]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(verdict.verdict == FAILED for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """The content of doctor.json."""
        return {
            "format": FORMAT,
            **self.about,
            "counts": counts(self.verdicts),
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "commands": self.commands,
            "logs": {name: list(lines) for name, lines in self.logs.items()},
        }

    def write(self, out: Path, redactor: Redactor) -> dict[str, Any]:
        """Write both files without what is private; returns what doctor.json holds."""
        content = redactor.all(self.as_dict())
        write_atomically(
            out / FILE, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        )
        write_atomically(out / TEXT, text(content))
        return content


def text(content: dict[str, Any]) -> str:
    """A line for each verdict, and the ends of the logs of what failed."""
    found = ", ".join(f"{number} {name}" for name, number in content["counts"].items() if number)
    lines = [f"exgrpo doctor, {content['device']}: {found or 'nothing was checked'}", _about(content)]
    for section in SECTIONS:
        of_section = [verdict for verdict in content["verdicts"] if verdict["section"] == section]
        lines += ["", section] if of_section else []
        lines += [f"  {one['verdict']:8} {one['check']:18} {one['sentence']}" for one in of_section]
    for name, log in content["logs"].items():
        lines += ["", f"log of {name}", *(f"  {line}" for line in log[-LOG_LINES:])]
    return "\n".join([*lines, ""])


def _about(content: dict[str, Any]) -> str:
    commit = content.get("commit") or "no checkout"
    kind = "quick" if content.get("quick") else "full" if len(content.get("sections", ())) == len(SECTIONS) else "part"
    kind += "" if content["complete"] else ", not to its end"
    return f"{content['started']}, {content['seconds']:.0f} s, {kind}, commit {commit}"

"""What a check of the doctor says: one sentence, its figures, and whether it is good."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
VERDICTS = (OK, WARNING, FAILED, SKIPPED)
Figure = float | int | str | bool | None


@dataclass(frozen=True)
class Verdict:
    """`section` and `check` name it; `verdict` is one of VERDICTS (`skipped`: what it needs is not there); the figures are what
    the sentence was made from, with their units in the names."""

    section: str
    check: str
    verdict: str
    sentence: str
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {self.verdict!r}")

    def as_dict(self) -> dict:
        return asdict(self)


def graded(value: float, fine: float, bad: float = math.inf) -> str:
    """OK up to `fine`, a warning up to `bad`, else failed; NaN failed."""
    if value <= fine:
        return OK
    return WARNING if value <= bad else FAILED


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many there are of each kind."""
    found = [verdict.verdict for verdict in verdicts]
    return {name: found.count(name) for name in VERDICTS}

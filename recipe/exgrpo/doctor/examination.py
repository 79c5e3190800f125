"""The examination itself: section after section, each start judged, and whatever was found on disk after each of them."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from recipe.exgrpo.checks.findings import Finding
from recipe.exgrpo.checks.preflight import inspect_run
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.doctor.cards import Card, used_bytes
from recipe.exgrpo.doctor.collective import collective_verdict
from recipe.exgrpo.doctor.judge import judge, skipped
from recipe.exgrpo.doctor.locks import lock_verdict
from recipe.exgrpo.doctor.machine import Facts, findings_verdict, machine_verdicts
from recipe.exgrpo.doctor.model import make_model
from recipe.exgrpo.doctor.plan import EXGRPO, MODEL, RESUME, SECTIONS, Device, Start, starts
from recipe.exgrpo.doctor.redact import Redactor
from recipe.exgrpo.doctor.report import Report
from recipe.exgrpo.doctor.speed import bench
from recipe.exgrpo.doctor.training import Outcome, train
from recipe.exgrpo.doctor.verdicts import FAILED, Verdict
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.runs.record import git_state

GLOO_RANKS = 2
Train = Callable[[Start, float, Callable[[], float] | None, Callable[[str], None]], Outcome]


@dataclass
class Examination:
    """One call of the doctor.

    Attributes:
        out: folder of everything it writes.
        facts, device: the machine, and what of it is trained on.
        sections: those asked for; `quick`: ExGRPO and its resume on the toy task alone.
        limit_s: seconds after which a start is ended.
        told: called with a line whenever something begins.
        train: how a start is run; a test brings recorded outcomes. `check`: what is said to its configuration.
    """

    out: Path
    facts: Facts
    device: Device
    sections: Sequence[str] = SECTIONS
    quick: bool = False
    limit_s: float = 600.0
    told: Callable[[str], None] = lambda _: None
    train: Train = train
    check: Callable[[DictConfig], Iterable[Finding]] = inspect_run

    def run(self) -> Report:
        """Everything asked for; doctor.json and its text are there from the first section on."""
        began, redactor = time.time(), Redactor(self.out)
        report = Report(self._about())
        report.write(self.out, redactor)
        try:
            for section in [name for name in SECTIONS if name in self.sections]:
                for verdict in self._section(section, report):
                    report.verdicts.append(verdict)
                    report.about["seconds"] = round(time.time() - began, 1)
                    report.write(self.out, redactor)
            report.about["complete"] = True
            report.write(self.out, redactor)
        finally:
            self._tidy()
        return report

    def _about(self) -> dict:
        git = git_state(ROOT)
        return {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "device": self.facts.cards[0].name if self.facts.cards and self.device.kind != "cpu" else self.device.kind,
            "sections": list(self.sections),
            "quick": self.quick,
            "complete": False,
            "commit": git and git["commit"][:9] + ("+" if git["changed"] else ""),
        }

    def _section(self, section: str, report: Report) -> Iterator[Verdict]:
        self.told(section)
        if section == "machine":
            yield from self._machine()
        elif section == "speed":
            yield from () if self.quick else [bench(self.device, self.limit_s)]
        else:
            yield from self._starts(section, report)

    def _machine(self) -> Iterator[Verdict]:
        toy = starts("toy", self.out, self.device)[0]
        yield from machine_verdicts(self.facts, self.device, Run.of(toy.compose()))
        yield lock_verdict(self.device.kind)
        backend, ranks = ("gloo", GLOO_RANKS) if self.device.kind == "cpu" else ("nccl", max(1, len(self.facts.cards)))
        self.told(f"all-reduce with {backend}")
        yield collective_verdict(backend, ranks)

    def _starts(self, section: str, report: Report) -> Iterator[Verdict]:
        """A start that fails does not keep the others from being made, but the resume of one that left nothing."""
        planned, failed = starts(section, self.out, self.device, self.quick), set()
        for start in planned:
            if start.kind == RESUME and EXGRPO in failed:
                yield skipped(start, f"{section} {EXGRPO} left nothing to continue")
                continue
            report.commands[start.name] = start.command
            try:
                verdicts = list(self._start(start, report))
            except (OSError, ValueError) as problem:  # a full disk, a setting, a damaged file
                verdicts = [Verdict(section, start.kind, FAILED, f"could not be made: {problem}")]
            failed |= {start.kind for one in verdicts if (one.verdict, one.check) == (FAILED, start.kind)}
            yield from verdicts

    def _start(self, start: Start, report: Report) -> Iterator[Verdict]:
        say = partial(self._say, start)
        if start.model:
            say("a model with random weights")
            make_model(start.model, small=self.device.kind == "cpu")
        run = Run.of(start.compose())
        outcome = self.train(start, self.limit_s, self._card_bytes(), say)
        if start.kind == EXGRPO:  # after the run, which makes the data
            yield findings_verdict(start.section, "exgrpo check", list(self.check(_as_new(start))))
        verdicts = list(judge(start, outcome, run))
        if verdicts[0].verdict == FAILED:
            report.logs[start.name] = outcome.log
        yield from verdicts

    def _card_bytes(self) -> Callable[[], float] | None:
        """Reads what our processes add to the card; None on CPU, and without a card that nvidia-smi can measure."""
        if self.device.kind == "cpu":
            return None
        cards: Sequence[Card] = [card for card in self.facts.cards[:1] if not card.mig]
        return (lambda: used_bytes(cards[0]) - cards[0].used) if cards else _unknown

    def _say(self, start: Start, word: str) -> None:
        self.told(f"{start.name}: {word}")

    def _tidy(self) -> None:
        """Random weights are of no use to anybody: logs and metrics stay."""
        for path in [*self.out.glob("*/global_step_*"), self.out / MODEL]:
            shutil.rmtree(path, ignore_errors=True)


def _as_new(start: Start) -> DictConfig:
    """Its configuration in a folder of its own: that its run has a checkpoint by now is no finding."""
    return replace(start, run=start.run.with_name(f"{start.run.name}-new")).compose()


def _unknown() -> float:
    raise ValueError("this card's memory is not known")

"""Verdicts on the machine and its environment, before anything is started."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from recipe.exgrpo.checks.cores import FEW, core_findings
from recipe.exgrpo.checks.environment import environment_findings
from recipe.exgrpo.checks.findings import ERROR, IMPOSSIBLE, NOTE, Finding
from recipe.exgrpo.checks.machine import Machine
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.sizes import GB, GIB, gb, gib
from recipe.exgrpo.doctor.cards import Card
from recipe.exgrpo.doctor.plan import Device
from recipe.exgrpo.doctor.verdicts import FAILED, OK, SKIPPED, WARNING, Figure, Verdict
from verl_ext.packages import installed

SHM = Path("/dev/shm")
LITTLE_SHM = 1 * GIB  # Ray's object store and the weight sync of a small model; Docker gives 64 MiB
LITTLE_RAM, LITTLE_DISK = 12 * GIB, 12 * GB  # the demo's need; environment apart: a checkpoint, a model, logs
OTHERS = 1 * GIB  # on a card before anything of ours runs
BFLOAT16 = 8.0  # compute capability from which cards calculate in it (CUDA programming guide, arithmetic instructions)


@dataclass(frozen=True)
class Facts:
    """What the machine has, read once. Sizes in bytes; `cards` as CUDA_VISIBLE_DEVICES leaves them."""

    machine: Machine
    ram: int
    available: int
    disk_free: int
    shm_total: int | None
    cards: Sequence[Card]
    torch: str | None

    @classmethod
    def here(cls, out: Path, cards: Sequence[Card]) -> "Facts":
        memory = psutil.virtual_memory()
        existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        shm = shutil.disk_usage(SHM).total if SHM.is_dir() else None
        free = shutil.disk_usage(existing).free
        return cls(Machine.here(), memory.total, memory.available, free, shm, cards, installed("torch"))


def machine_verdicts(facts: Facts, device: Device, run: Run) -> Iterator[Verdict]:
    """Of everything but packages and the collective; `run` is a start of the toy task on this device."""
    yield _device(facts, device)
    yield from _cards(facts, device)
    yield findings_verdict(
        "machine",
        "environment",
        [*environment_findings(run, machine=facts.machine), *core_findings(run, facts.machine)],
    )
    yield _cores(facts)
    yield _size("memory", facts.available, LITTLE_RAM, f"{gib(facts.available)} of {gib(facts.ram)} are available")
    yield _size("disk", facts.disk_free, LITTLE_DISK, f"{gb(facts.disk_free)} are free where this runs")
    yield _shm(facts)


def findings_verdict(section: str, check: str, findings: Sequence[Finding]) -> Verdict:
    """What `exgrpo check` finds, its worst first; its notes are no verdict."""
    bad = [finding.text for finding in findings if finding.severity in (ERROR, IMPOSSIBLE)]
    doubtful = [finding.text for finding in findings if finding.severity not in (ERROR, IMPOSSIBLE, NOTE)]
    figures = {"errors": len(bad), "warnings": len(doubtful)}
    if not bad and not doubtful:
        return Verdict(section, check, OK, "exgrpo check has nothing against it", figures)
    return Verdict(section, check, FAILED if bad else WARNING, " ".join([*bad, *doubtful]), figures)


def _device(facts: Facts, device: Device) -> Verdict:
    """A card that this environment cannot use is what people meet first."""
    machine = facts.machine
    figures: dict[str, Figure] = {"device": device.kind, "hardware": device.hardware, "torch": facts.torch}
    figures |= {"python": _dotted(machine.python), "glibc": _dotted(machine.glibc), "driver": machine.driver}
    if device.kind == "cpu" and machine.driver is not None:
        sentence = f"torch {facts.torch} does not use this machine's NVIDIA driver, so that the CPU is measured: make setup-gpu"
        return Verdict("machine", "device", WARNING, sentence, figures)
    return Verdict(
        "machine", "device", OK, f"{device.kind} with hardware={device.hardware}, torch {facts.torch}", figures
    )


def _cards(facts: Facts, device: Device) -> Iterator[Verdict]:
    if device.kind == "cpu":
        return
    if not facts.cards:
        sentence = "nvidia-smi names no card that CUDA_VISIBLE_DEVICES leaves: sizes and memory are not known"
        yield Verdict("machine", "card", WARNING, sentence)
        return
    card = facts.cards[0]
    figures = {
        "name": card.name,
        "driver": card.driver,
        "total_gib": round(card.total / GIB, 1),
        "used_gib": round(card.used / GIB, 1),
        "compute_capability": card.capability,
        "mig": card.mig,
        "cards": len(facts.cards),
    }
    sentence = f"{card.name}, {gib(card.total)}, driver {card.driver}, the first of {len(facts.cards)}"
    problems = list(_card_problems(card))
    verdict = FAILED if 0 < card.capability < BFLOAT16 else WARNING if problems else OK
    yield Verdict("machine", "card", verdict, "; ".join([sentence, *problems]), figures)


def _card_problems(card: Card) -> Iterator[str]:
    if 0 < card.capability < BFLOAT16:
        yield f"compute capability {card.capability:g} has no bfloat16 ({BFLOAT16:g} has), in which verl and vLLM calculate"
    if card.used > OTHERS:
        yield f"{gib(card.used)} of it are in use by others"
    if card.mig:
        yield "it is cut into instances (MIG), whose memory nvidia-smi does not give this way"


def _cores(facts: Facts) -> Verdict:
    """For one card. That Ray wants more is its own matter (core_findings)."""
    cores = facts.machine.cores
    few = cores < FEW and facts.machine.accelerator
    sentence = f"{cores} usable" + (f"; fewer than {FEW} for a card wait for each other" if few else "")
    return Verdict("machine", "cores", WARNING if few else OK, sentence, {"cores": cores})


def _size(check: str, found: float, wanted: float, sentence: str) -> Verdict:
    enough = found >= wanted
    more = "" if enough else f"; {gib(wanted) if check == 'memory' else gb(wanted)} are wanted"
    return Verdict("machine", check, OK if enough else WARNING, sentence + more, {"gib": round(found / GIB, 1)})


def _shm(facts: Facts) -> Verdict:
    if facts.shm_total is None:
        return Verdict("machine", "shm", SKIPPED, f"there is no {SHM}")
    figures, sentence = {"gib": round(facts.shm_total / GIB, 2)}, f"{SHM} has {gib(facts.shm_total)}"
    if facts.shm_total >= LITTLE_SHM:
        return Verdict("machine", "shm", OK, sentence, figures)
    return Verdict(
        "machine", "shm", WARNING, f"{sentence}, {gib(LITTLE_SHM)} are wanted (Docker: --shm-size=8g)", figures
    )


def _dotted(version: tuple[int, ...] | None) -> str | None:
    return version and ".".join(map(str, version))

"""The installed packages against the lock of their environment."""

from collections.abc import Callable, Mapping
from pathlib import Path

from recipe.exgrpo.doctor.verdicts import OK, WARNING, Verdict
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.runs.record import PACKAGES
from verl_ext.packages import installed

LOCKS = {"cpu": ROOT / "requirements-cpu.lock", "cuda": ROOT / "requirements-gpu.lock"}
SHOWN = 8


def read_lock(path: Path) -> dict[str, str]:
    """Package -> pinned version."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def differences(
    lock: Mapping[str, str], version: Callable[[str], str | None] = installed
) -> dict[str, tuple[str, str | None]]:
    """Package -> (pinned, installed or None), for those that are not as pinned; local versions ("+cpu") do not count."""
    found = {name: version(name) for name in lock}
    return {
        name: (pinned, found[name]) for name, pinned in lock.items() if (found[name] or "").partition("+")[0] != pinned
    }


def lock_verdict(device: str, version: Callable[[str], str | None] = installed) -> Verdict:
    """A warning where packages differ: an image may have others that work, and the runs decide."""
    lock = read_lock(LOCKS[device])
    differ = differences(lock, version)
    shaping = {name.lower() for name in PACKAGES}
    names = sorted(differ, key=lambda name: (name not in shaping, name))
    figures = {"packages": len(lock), "differ": len(differ)} | {
        name: version(name) for name in PACKAGES if version(name) is not None
    }
    if not differ:
        return Verdict(
            "machine", "versions", OK, f"all {len(lock)} packages are those of {LOCKS[device].name}", figures
        )
    listed = ", ".join(f"{name} {differ[name][1] or 'missing'} ({differ[name][0]})" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    sentence = f"{len(differ)} of {len(lock)} packages are not those of {LOCKS[device].name}: {listed}{more}"
    return Verdict("machine", "versions", WARNING, sentence, figures)

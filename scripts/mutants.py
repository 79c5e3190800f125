"""One-line faults and the tests that must turn red: each is planted in a copy of the tree, and its tests are run there.

    python scripts/mutants.py [WORD ...] [--list FILE] [--jobs 2] [--json]

The list is tests/mutants.yaml: `file`, `was` (text that stands there once), `now`, and `tests` (pytest arguments). WORDs
choose faults whose name holds one of them. A fault is killed when its tests fail; if it survives, the exit code is
1. Tests that cannot run at all (nothing collected, a text that is not there any more) give exit code 2.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.yaml"
IGNORED = shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
FAILED, PASSED = 1, 0  # pytest's exit codes
LIMIT_S = 300


@dataclass(frozen=True)
class Mutant:
    """A fault: the text `was` of `file` becomes `now`, and `tests` must turn red."""

    name: str
    file: str
    was: str
    now: str
    tests: Sequence[str]

    def plant(self, tree: Path) -> str:
        """Write the fault into `tree`; returns what the file held. ValueError unless `was` stands there exactly once."""
        path = tree / self.file
        source = path.read_text(encoding="utf-8")
        if source.count(self.was) != 1:
            raise ValueError(f"{self.name}: {self.file} holds the text {source.count(self.was)} times, not once")
        path.write_text(source.replace(self.was, self.now), encoding="utf-8")
        return source


@dataclass(frozen=True)
class Verdict:
    """What became of a fault; `detail` is the end of pytest's output unless it was killed."""

    name: str
    outcome: str
    detail: str = ""


def load(path: Path) -> list[Mutant]:
    """The faults of a list; ValueError for one that lacks a key or whose name is taken."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        mutants = [Mutant(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    names = [mutant.name for mutant in mutants]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: {min(twice)!r} is there twice.")
    return mutants


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Plant a fault in `tree`, run its tests there, and take it out again."""
    try:
        source = mutant.plant(tree)
    except (OSError, ValueError) as error:
        return Verdict(mutant.name, BROKEN, str(error))
    try:
        code, output = run_tests(mutant.tests, tree)
    finally:
        (tree / mutant.file).write_text(source, encoding="utf-8")
    outcome = {FAILED: KILLED, PASSED: SURVIVED}.get(code, BROKEN)
    return Verdict(mutant.name, outcome, "" if outcome == KILLED else output[-1500:])


def run_tests(tests: Sequence[str], tree: Path) -> tuple[int, str]:
    """Exit code and output of pytest in `tree`, whose modules come before those of the checkout that is installed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"no end within {LIMIT_S} s"  # a fault that hangs its tests is noticed
    return done.returncode, done.stdout + done.stderr


def judge_all(mutants: Sequence[Mutant], jobs: int, console: Console) -> list[Verdict]:
    """Verdicts in the order of `mutants`, `jobs` at a time, each in a copy of its own."""
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for i in range(jobs):
            free.put(Path(shutil.copytree(ROOT, Path(folder) / str(i), ignore=IGNORED)))

        def one(mutant: Mutant) -> Verdict:
            tree = free.get()
            try:
                return judge(mutant, tree)
            finally:
                free.put(tree)

        return list(track(pool.map(one, mutants), "mutants", total=len(mutants), console=console, transient=True))


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Survivors and broken ones with the end of their output, and the count."""
    table = Table("fault", "outcome")
    for verdict in verdicts:
        table.add_row(verdict.name, verdict.outcome, style=None if verdict.outcome == KILLED else "red")
    console.print(table)
    for verdict in verdicts:
        if verdict.detail:
            console.rule(f"{verdict.name}: {verdict.outcome}")
            console.print(verdict.detail, markup=False, highlight=False)
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in (KILLED, SURVIVED, BROKEN)}
    console.print(f"{len(verdicts)} faults: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the chosen faults; 0 when all are killed, 1 when one survives, 2 when one could not be judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only faults whose name holds one of these")
    parser.add_argument("--list", type=Path, default=LIST, help="the list of faults (tests/mutants.yaml)")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree at work (2)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    console = Console(stderr=args.json)
    try:
        mutants = [m for m in load(args.list) if not args.words or any(word in m.name for word in args.words)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    verdicts = judge_all(mutants, args.jobs, console)
    show(console, verdicts)
    if args.json:
        sys.stdout.write(json.dumps([asdict(verdict) for verdict in verdicts]) + "\n")
    outcomes = {verdict.outcome for verdict in verdicts}
    return 2 if BROKEN in outcomes or not verdicts else int(SURVIVED in outcomes)


if __name__ == "__main__":
    sys.exit(main())

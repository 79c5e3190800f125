"""One-line faults and the tests that must turn red: each is planted in a copy of the tree, and its tests are run there.

    python scripts/mutants.py [WORD ...] [--list FILE] [--jobs 2] [--json]

The list is tests/mutants.yaml: `name`, `file`, `was` (text that stands there once), `now`, and `tests` (pytest arguments).
WORDs choose faults whose name holds one of them, or whose file ends with one. All tests are first run on the tree as it is:
they must pass there, or their failing says nothing. A fault is killed when one of its tests then fails.

Exit codes: 0 all killed; 1 at least one survived; 2 at least one says nothing (a text that is not there, tests that fail
without the fault, that cannot be collected, whose fixtures end in errors, or that do not end).
"""

import argparse
import json
import os
import re
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
IGNORED = shutil.ignore_patterns(".git", ".venv*", "outputs", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
FAILED, PASSED = 1, 0  # pytest's exit codes
FAILURE = re.compile(r"^FAILED (\S+)", re.MULTILINE)  # an error in a fixture is an ERROR, and no verdict on the fault
LIMIT_S, BASELINE_LIMIT_S = 600, 3600
TAIL = 1500  # characters of pytest's output that are shown


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

    def matches(self, word: str) -> bool:
        return word in self.name or self.file.endswith(word)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault; `detail` is the test that failed, or the end of pytest's output where none did."""

    name: str
    outcome: str
    detail: str


def load(path: Path) -> list[Mutant]:
    """The faults of a list; ValueError for one that lacks a key or changes nothing, or whose name is taken."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        mutants = [Mutant(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    names = [mutant.name for mutant in mutants]
    twice = {name for name in names if names.count(name) > 1}
    idle = {mutant.name for mutant in mutants if mutant.was == mutant.now or not mutant.tests}
    if twice or idle:
        raise ValueError(f"{path}: {min(twice | idle)!r} is there twice, changes nothing, or has no test.")
    return mutants


def run_tests(tests: Sequence[str], tree: Path, limit_s: float) -> tuple[int | None, str]:
    """Exit code (None: no end within `limit_s` seconds) and output of pytest in `tree`.

    Modules of `tree` come before those of the checkout that is installed.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return None, f"no end within {limit_s} s"
    return done.returncode, done.stdout + done.stderr


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Plant a fault in `tree`, run its tests there, and take it out again."""
    try:
        source = mutant.plant(tree)
    except (OSError, ValueError) as error:
        return Verdict(mutant.name, BROKEN, str(error))
    try:
        code, output = run_tests(mutant.tests, tree, LIMIT_S)
    finally:
        (tree / mutant.file).write_text(source, encoding="utf-8")
    failed = FAILURE.search(output)
    if code == FAILED and failed:
        return Verdict(mutant.name, KILLED, failed[1])
    return Verdict(mutant.name, SURVIVED if code == PASSED else BROKEN, output[-TAIL:])


def judge_all(mutants: Sequence[Mutant], jobs: int, folder: Path, console: Console) -> list[Verdict]:
    """Verdicts in the order of `mutants`, `jobs` at a time, each in a copy of the tree of its own."""
    free: SimpleQueue[Path] = SimpleQueue()
    for i in range(jobs):
        free.put(copy_of_tree(folder / str(i)))

    def one(mutant: Mutant) -> Verdict:
        tree = free.get()
        try:
            return judge(mutant, tree)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        verdicts = pool.map(one, mutants)
        return list(track(verdicts, "faults", total=len(mutants), console=console, transient=True))


def copy_of_tree(path: Path) -> Path:
    return Path(shutil.copytree(ROOT, path, ignore=IGNORED))


def baseline(mutants: Sequence[Mutant], folder: Path) -> str | None:
    """Run every test of `mutants` without a fault; the end of pytest's output where they do not pass."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    code, output = run_tests(list(tests), copy_of_tree(folder / "baseline"), BASELINE_LIMIT_S)
    return None if code == PASSED else output[-TAIL:]


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """A line for each fault, what is known of those that were not killed, and the count."""
    table = Table("fault", "outcome", "by")
    for verdict in verdicts:
        killed = verdict.outcome == KILLED
        table.add_row(verdict.name, verdict.outcome, verdict.detail if killed else "", style=None if killed else "red")
    console.print(table)
    for verdict in verdicts:
        if verdict.outcome != KILLED:
            console.rule(f"{verdict.name}: {verdict.outcome}")
            console.print(verdict.detail, markup=False, highlight=False)
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in (KILLED, SURVIVED, BROKEN)}
    console.print(f"{len(verdicts)} faults: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the chosen faults; see the exit codes above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only faults whose name holds, or file ends with, one")
    parser.add_argument("--list", type=Path, default=LIST, help="the list of faults (tests/mutants.yaml)")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree at work (2)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    console = Console(stderr=args.json)
    try:
        mutants = [m for m in load(args.list) if not args.words or any(map(m.matches, args.words))]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not mutants:
        parser.error("no fault has such a name or file.")
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        with console.status("the tests without a fault"):
            trouble = baseline(mutants, Path(name))
        if trouble:
            console.print("The tests fail without a fault:", trouble, sep="\n", markup=False, highlight=False)
            return 2
        verdicts = judge_all(mutants, args.jobs, Path(name), console)
    show(console, verdicts)
    if args.json:
        sys.stdout.write(json.dumps([asdict(verdict) for verdict in verdicts]) + "\n")
    outcomes = {verdict.outcome for verdict in verdicts}
    return 2 if BROKEN in outcomes else int(SURVIVED in outcomes)


if __name__ == "__main__":
    sys.exit(main())

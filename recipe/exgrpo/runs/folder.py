"""What is in a run folder: its checkpoints, which of them are whole, and the one that verl's tracker file names.

verl saves a checkpoint in place, file by file, and writes the tracker last; an interrupted save leaves a folder that only its
missing or cut files give away. Files are looked at, not loaded: no torch is imported, and a checkpoint of 91 GB takes
milliseconds.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from recipe.exgrpo.checkpoint.errors import CorruptState, ExperienceStateError
from recipe.exgrpo.checkpoint.format import FOLDER, NEW, OLD, folder_of, step_dirs, step_number
from recipe.exgrpo.checkpoint.stored import Stored

TRACKER = "latest_checkpointed_iteration.txt"
SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
# verl's load_contents -> how it calls the files.
KINDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
# What a run writes into global_step_N; anything else there belongs to somebody.
OURS = ("actor", "critic", "data.pt", "data.json", "transfer_queue", FOLDER, NEW, OLD)


class TrackerError(ValueError):
    """The tracker file does not hold the number of a step."""


@dataclass(frozen=True)
class Checkpoint:
    """One `global_step_N`. `kinds` are the files that a start will load of each rank (`KINDS`)."""

    path: Path
    kinds: tuple[str, ...] = tuple(KINDS.values())

    @property
    def step(self) -> int:
        return step_number(self.path)

    @cached_property
    def shards(self) -> dict[str, dict[int, set[int]]]:
        """Kind of file -> number of ranks it was saved by -> the ranks that are there."""
        found: dict[str, dict[int, set[int]]] = {}
        for match in filter(None, (SHARD.fullmatch(file.name) for file in self.path.glob("actor/*.pt"))):
            found.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(int(match[3]))
        return found

    @property
    def ranks(self) -> int | None:
        """How many ranks saved the weights; None without weights."""
        return max(self.shards.get("model", ()), default=None)

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """What is missing or cut, one clause a file; empty for a whole checkpoint."""
        return tuple(self._problems())

    @property
    def whole(self) -> bool:
        return not self.problems

    @property
    def bytes(self) -> int:
        """Size on disk of what a run saved there."""
        files = (file for name in OURS for file in (self.path / name, *(self.path / name).rglob("*")))
        return sum(file.stat().st_size for file in files if file.is_file())

    def _problems(self) -> Iterator[str]:
        if not self.path.is_dir():
            yield f"{self.path} is not there"
            return
        if self.ranks is None:
            yield f"{self.path / 'actor'} has no weights (model_world_size_*.pt)"
            return
        for kind in self.kinds:
            for rank in range(self.ranks):
                yield from _file_problem(self.path / "actor" / f"{kind}_world_size_{self.ranks}_rank_{rank}.pt")
        yield from _file_problem(self.path / "data.pt")
        yield from _record_problem(self.path / "data.json")
        yield from _experience_problem(self.path)


def _file_problem(path: Path) -> Iterator[str]:
    """torch saves zip archives, whose directory is at the end: a cut file has none."""
    if not path.is_file():
        yield f"{path} is missing"
    elif not zipfile.is_zipfile(path):
        yield f"{path} is cut short or damaged ({path.stat().st_size:,} bytes)"


def _record_problem(path: Path) -> Iterator[str]:
    """Which data `data.pt` stands in; an older checkpoint does not say."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": 0}
    except ValueError:
        found = None
    if not isinstance(found, dict) or "rows" not in found:
        yield f"{path} is damaged"


def _experience_problem(path: Path) -> Iterator[str]:
    """A policy without a store saves none; of one that is there, sizes are compared, not checksums."""
    if folder_of(path) is None:
        return
    try:
        stored = Stored.open(path)
        for name, record in stored.files.items():
            file = stored.folder / name
            if not file.is_file() or file.stat().st_size != record.bytes:
                raise CorruptState(file, "missing, or not of the size in its manifest")
    except ExperienceStateError as error:
        yield str(error).rstrip(".")


def checkpoints(root: str | Path, kinds: Sequence[str] = tuple(KINDS.values())) -> list[Checkpoint]:
    """Every `global_step_N` in `root`, newest first."""
    return [Checkpoint(path, tuple(kinds)) for path in step_dirs(root)]


def newest_whole(root: str | Path, kinds: Sequence[str] = tuple(KINDS.values())) -> Checkpoint | None:
    """The newest whole checkpoint in `root`, tracker or not."""
    return next((found for found in checkpoints(root, kinds) if found.whole), None)


def tracked_step(root: str | Path) -> int | None:
    """The step in the tracker file; None without one. Raises TrackerError when it holds something else."""
    try:
        text = (Path(root) / TRACKER).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not re.fullmatch(r"\s*\d+\s*", text):
        raise TrackerError(f"{Path(root) / TRACKER} " + (f"holds {text[:40]!r}" if text.strip() else "is empty"))
    return int(text)


def followed(root: str | Path) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The checkpoint that the tracker names (None if that is not there), and those that are newer, newest first.

    Raises TrackerError.
    """
    step, found = tracked_step(root), checkpoints(root)
    if step is None:
        return None, found
    named = next((checkpoint for checkpoint in found if checkpoint.step == step), None)
    return named, [checkpoint for checkpoint in found if checkpoint.step > step]


def to_look_at(root: str | Path) -> tuple[list[Path], list[str]]:
    """The folders to look for a run's state in, best first, and what to know about those that are newer.

    That is the checkpoint that the tracker names, which a start resumes from; without a usable tracker all, newest first.
    """
    try:
        named, newer = followed(root)
    except TrackerError as problem:
        return step_dirs(root), [f"{problem}; showing the newest checkpoint."]
    if named is None:
        return step_dirs(root), []
    return [named.path], [_note(checkpoint, named) for checkpoint in newer]


def _note(checkpoint: Checkpoint, named: Checkpoint) -> str:
    state = "whole" if checkpoint.whole else f"incomplete ({checkpoint.problems[0]})"
    return f"{checkpoint.path.name} is newer than {named.path.name}, which {TRACKER} names, and {state}."


def remove_checkpoint(path: Path) -> None:
    """Remove what a run saved in `global_step_N`, and the folder if nothing else is in it.

    The weights go first: a removal that is interrupted leaves a folder that nobody takes for a checkpoint. Of what was moved
    to another disk, and linked to, the link goes.
    """
    if path.is_symlink():
        path.unlink()
        return
    for name in OURS:
        found = path / name
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def prune(root: str | Path, keep: int, step: int) -> list[Path]:
    """Remove all but the newest `keep` whole checkpoints of steps up to `step`, torn ones among them; returns what went.

    verl's own pruning forgets at a restart what was saved before it.
    """
    old = [found for found in checkpoints(root) if found.step <= step]
    kept = [found for found in old if found.whole][:keep]
    gone = [found.path for found in old if found not in kept and found.step != step]
    for path in gone:
        remove_checkpoint(path)
    return gone

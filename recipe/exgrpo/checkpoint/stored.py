"""The experience of a checkpoint as one object: opened, verified, restored."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open

from recipe.exgrpo.checkpoint.errors import CorruptState, ExperienceStateError, MissingState
from recipe.exgrpo.checkpoint.format import (
    FOLDER,
    QUESTIONS,
    ROWS,
    SegmentFile,
    folder_of,
    read_manifest,
    step_dirs,
    step_number,
)
from recipe.exgrpo.checkpoint.reader import restore
from recipe.exgrpo.checkpoint.tensors import check_file, read_tensors
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import spans
from recipe.exgrpo.core.config import BufferConfig
from verl_ext.files import FileRecord

READERS = 4  # threads that read and hash
PLACE = ("row_serial", "row_prompt_length", "row_length")


@dataclass(frozen=True)
class Stored:
    """A checkpoint's experience, of which the manifest has been read and nothing else."""

    folder: Path
    manifest: dict

    @classmethod
    def open(cls, path: str | Path) -> "Stored":
        """That of `global_step_N` or of its `experience` folder.

        Raises MissingState, ForeignState, NewerState or CorruptState.
        """
        folder = folder_of(Path(path))
        if folder is None:
            raise MissingState(Path(path) / FOLDER, "there is no experience state here.")
        return cls(folder, read_manifest(folder))

    @property
    def extra(self) -> dict:
        """What was saved beside the buffer."""
        return self.manifest["extra"]

    @property
    def fingerprint(self) -> dict:
        """What the saving run said about itself."""
        return self.manifest["fingerprint"]

    @property
    def step(self) -> int | None:
        """N of `global_step_N`; None where the folder was moved."""
        try:
            return step_number(self.folder.resolve().parent)
        except ValueError:
            return None

    @cached_property
    def files(self) -> dict[str, FileRecord]:
        """Size and SHA-256 of every file but the manifest."""
        return {name: FileRecord(entry["bytes"], entry["sha256"]) for name, entry in self.manifest["files"].items()}

    @property
    def segment_names(self) -> list[str]:
        return sorted(name for name in self.files if name.startswith("segment-"))

    def verify(self) -> list[ExperienceStateError]:
        """What is wrong, file by file; empty when every byte and every relation is as saved."""
        problems = []
        for name, record in self.files.items():
            try:
                check_file(self.folder / name, record)
            except ExperienceStateError as error:
                problems.append(error)
        if not problems:
            try:
                self.buffer(verify=False)
            except ExperienceStateError as error:
                problems.append(error)
        return problems

    def buffer(self, config: BufferConfig | None = None, *, verify: bool = True) -> ExperienceBuffer:
        """The buffer as it was saved; `config` gives its bounds and log-prob dtype (None: no bounds, the dtype as saved).

        Without `verify` checksums are not compared, for a reader in a hurry. Raises MissingState or CorruptState.
        """
        meta = self.manifest["buffer"]
        with ThreadPoolExecutor(READERS) as pool:
            index, questions, *segments = pool.map(
                lambda name: read_tensors(self.folder / name, self.files[name], verify),
                [ROWS, QUESTIONS, *self.segment_names],
            )
        try:
            config = config or BufferConfig(log_prob_dtype=meta["log_prob_dtype"])
            return restore(index | questions, segments, meta, config)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptState(self.folder, f"its files contradict each other ({error})") from error

    def segments(self) -> list[SegmentFile]:
        """What each segment holds, for a writer that goes on from this checkpoint; tokens are not read."""
        return [self._segment(name) for name in self.segment_names]

    def _segment(self, name: str) -> SegmentFile:
        with safe_open(self.folder / name, framework="numpy") as file:
            place = {column: file.get_tensor(column) for column in PLACE}
        return SegmentFile(name, self.files[name], np.array(place["row_serial"]), spans(place))


def problems_of(path: str | Path) -> list[ExperienceStateError]:
    """What is wrong with a checkpoint that may not even open; empty when it is intact."""
    try:
        return Stored.open(path).verify()
    except ExperienceStateError as error:
        return [error]


def newest_intact(
    root: str | Path, before: int | None = None
) -> tuple[Path | None, dict[Path, list[ExperienceStateError]]]:
    """The newest `global_step_N` in `root` (N < `before`) with intact experience, and what is wrong with newer ones."""
    problems = {}
    for path in step_dirs(root):
        if before is None or step_number(path) < before:
            found = problems_of(path)
            if not found:
                return path, problems
            problems[path] = found
    return None, problems

"""Saving the experience of a run step by step, and loading it: what a checkpoint shares with the one before is kept here."""

import json
import logging
import weakref
from collections.abc import Iterable
from pathlib import Path

from recipe.exgrpo.checkpoint.errors import CorruptState, ExperienceStateError, ForeignState, MissingState
from recipe.exgrpo.checkpoint.format import FOLDER, SegmentFile, folder_of, step_dirs, step_number
from recipe.exgrpo.checkpoint.stored import Stored, newest_intact
from recipe.exgrpo.checkpoint.writer import remove, worth_keeping, write_checkpoint
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import BufferConfig

logger = logging.getLogger(__name__)


class ExperienceCheckpointer:
    """Saves and loads the experience of one run; `fingerprint`, JSON-able, goes into every manifest (see `resume`)."""

    def __init__(self, fingerprint: dict, *, max_dead_share: float = 0.3):
        self.fingerprint = dict(fingerprint)
        self.max_dead_share = max_dead_share
        self._folder: Path | None = None
        self._segments: list[SegmentFile] = []
        self._buffer = lambda: None  # weak reference to the buffer that `_segments` belong to

    def save(self, step_dir: str | Path, buffer: ExperienceBuffer, extra: dict) -> None:
        """Write `step_dir/experience` with `extra` (JSON-able) in its manifest; returns once it is on the disk.

        Raises UnsavedState on a full disk and the like; the earlier state stays.
        """
        if self._buffer() is not buffer:
            self._segments = []
        frozen, extra, step_dir = buffer.snapshot(), json.loads(json.dumps(extra)), Path(step_dir)
        kept = worth_keeping(self._segments, frozen, self.max_dead_share)
        self._segments = write_checkpoint(step_dir, frozen, kept, self._folder, self.fingerprint, extra)
        self._folder, self._buffer = step_dir / FOLDER, weakref.ref(buffer)

    def load(
        self, step_dir: str | Path, config: BufferConfig | None = None, *, fall_back: bool = False
    ) -> tuple[ExperienceBuffer, Stored]:
        """The buffer saved in `step_dir`, every byte checked, and what it was restored from.

        With `fall_back` a missing or damaged state is replaced by the newest intact one of an earlier step beside it, and
        what that loses is logged as an error. Raises an ExperienceStateError.
        """
        try:
            return self._load(Stored.open(step_dir), config)
        except (MissingState, CorruptState, ForeignState) as error:
            if not fall_back:
                raise
            found, _ = newest_intact(Path(step_dir).parent, before=step_number(step_dir))
            if found is None:
                raise
            logger.error("LOST EXPERIENCE: %s %s", error, _loss(step_dir, found))
            return self._load(Stored.open(found), config)

    def prune(self, root: str | Path, keep: Iterable[str | Path]) -> list[Path]:
        """Remove the experience of every `global_step_N` in `root` but those in `keep`; returns the folders it was in."""
        kept = {Path(path).resolve() for path in keep}
        removed = [path for path in step_dirs(root) if path.resolve() not in kept and folder_of(path) is not None]
        for path in removed:
            remove(path)
        return removed

    def _load(self, stored: Stored, config: BufferConfig | None) -> tuple[ExperienceBuffer, Stored]:
        buffer = stored.buffer(config)
        self._folder, self._segments, self._buffer = stored.folder, stored.segments(), weakref.ref(buffer)
        return buffer, stored


def _loss(step_dir: str | Path, found: Path) -> str:
    """What falling back to the checkpoint `found` loses, in words."""
    have = Stored.open(found).manifest["counts"]
    lost = f"Falling back to {found}, {have['trajectories']} trajectories of {have['questions']} questions"
    try:
        had = Stored.open(step_dir).manifest["counts"]
    except ExperienceStateError:
        return f"{lost}; how many the lost state had is not known."
    return f"{lost}; the lost state had {had['trajectories']} of {had['questions']}."

"""Checkpoints of the experience buffer: `global_step_N/experience/`, costing what is new.

    manifest.json            format, version, counts, schema, size and SHA-256 of every file, fingerprint, buffer meta, extra
    rows.safetensors         per live trajectory: serial, question, use count, entropy        (rewritten by every save)
    questions.safetensors    ids, latest counts, cooldowns, retired, buckets in draw order     (rewritten by every save)
    segment-*.safetensors    tokens, log-probs, reward, birth step, digest: immutable, shared between checkpoints by hard link

Trajectories that died stay in their segment until they are more than a share of it; then its live rows are written anew.
A checkpoint is written to `.experience.new`, flushed, and renamed, so `experience` is complete or absent. Saving a step
again moves the earlier state to `.experience.old` first: between two renames only that exists, and loading then reads it.
Hard links share bytes on disk: a segment damaged there is damaged in every checkpoint that has it.

No verl, no Ray, no torch.
"""

import hashlib
import json
import logging
import shutil
import weakref
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from recipe.exgrpo.checkpoint.format import (
    FOLDER,
    NEW,
    SegmentFile,
    existing_folder,
    folder_of,
    step_dirs,
    step_number,
)
from recipe.exgrpo.checkpoint.reader import (
    find_newest_intact,
    open_checkpoint,
    read_manifest,
    restore,
    verify_checkpoint,
)
from recipe.exgrpo.checkpoint.tensors import (
    CorruptState,
    ExperienceStateError,
    ForeignState,
    MismatchedState,
    MissingState,
    NewerState,
    UnsavedState,
)
from recipe.exgrpo.checkpoint.writer import carry_over, publish, remove, worth_keeping, write_index, write_segments
from recipe.exgrpo.core.buffer.experience import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import Snapshot
from recipe.exgrpo.core.config import BufferConfig

__all__ = [
    "CorruptState", "ExperienceCheckpointer", "ExperienceStateError", "ForeignState", "MismatchedState", "MissingState",
    "NewerState", "UnsavedState", "find_newest_intact", "model_fingerprint", "open_checkpoint", "read_manifest",
    "tokenizer_fingerprint", "verify_checkpoint",
]  # fmt: skip

logger = logging.getLogger(__name__)

COMPARED = ("model", "tokenizer", "group_size")


class ExperienceCheckpointer:
    """Saves and loads the experience of one run.

    `fingerprint` says what the stored trajectories depend on: JSON-able values under `model`, `tokenizer` and `group_size`
    (K). A checkpoint with other values is refused by `load` unless the key is allowed.
    """

    def __init__(self, fingerprint: dict, *, max_dead_share: float = 0.3):
        missing = [key for key in COMPARED if key not in fingerprint]
        if missing:
            raise ValueError(f"the experience fingerprint needs {', '.join(COMPARED)}; {missing[0]} is missing.")
        self.fingerprint = dict(fingerprint)
        self.max_dead_share = max_dead_share
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="experience-save")
        self._pending: Future | None = None
        self._folder: Path | None = None
        self._segments: list[SegmentFile] = []
        self._buffer = lambda: None  # weak reference to the buffer that `_segments` belong to

    def save(self, step_dir: str | Path, buffer: ExperienceBuffer, extra: dict, background: bool = False) -> None:
        """Write `step_dir/experience` from the buffer as it is now, with `extra` (JSON-able) in its manifest.

        `background` returns after the frozen view is taken (milliseconds) and writes in a thread; the next `save`, `load`,
        `prune` or `wait` waits for it and raises what it raised. Raises UnsavedState on a full disk and the like; the
        earlier state stays.
        """
        self.wait()
        if buffer.group_size != self.fingerprint["group_size"]:
            raise ValueError(
                f"the buffer has group_size {buffer.group_size} and the fingerprint {self.fingerprint['group_size']}."
            )
        frozen, extra = buffer.snapshot(), json.loads(json.dumps(extra))
        if self._buffer() is not buffer:
            self._segments = []
        self._buffer = weakref.ref(buffer)
        future = self._pool.submit(self._save, Path(step_dir), frozen, extra)
        if background:
            self._pending = future
        else:
            future.result()

    def wait(self) -> None:
        """Wait for a background save, and raise what it raised."""
        if self._pending is not None:
            future, self._pending = self._pending, None
            future.result()

    def load(
        self,
        step_dir: str | Path,
        config: BufferConfig | None = None,
        *,
        allow: Collection[str] = (),
        fall_back: bool = False,
    ) -> tuple[ExperienceBuffer, dict]:
        """The buffer and `extra` saved in `step_dir`, every byte checked; raises an ExperienceStateError otherwise.

        `allow` names fingerprint keys that may differ: another `group_size` scales the success counts; another
        `tokenizer` drops the trajectories, whose ids would mean other text, and keeps counts and retired questions;
        another `model` changes nothing else. With `fall_back` a missing or damaged state is replaced by the newest intact
        one of an earlier step beside it, and what that loses is logged as an error.
        """
        self.wait()
        try:
            return self._load(Path(step_dir), config, allow)
        except (MissingState, CorruptState, ForeignState) as error:
            if not fall_back:
                raise
            found, _ = find_newest_intact(Path(step_dir).parent, before=step_number(step_dir))
            if found is None:
                raise
            logger.error("LOST EXPERIENCE: %s %s", error, _loss(step_dir, found))
            return self._load(found, config, allow)

    def prune(self, root: str | Path, keep: Iterable[str | Path]) -> list[Path]:
        """Remove the experience of every `global_step_N` in `root` but those in `keep`; returns the folders it was in."""
        self.wait()
        kept = {Path(path).resolve() for path in keep}
        removed = [path for path in step_dirs(root) if path.resolve() not in kept and folder_of(path) is not None]
        for path in removed:
            remove(path)
        return removed

    def _save(self, step_dir: Path, frozen: Snapshot, extra: dict) -> None:
        new = step_dir / NEW
        try:
            step_dir.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            kept = [
                segment
                for segment in worth_keeping(self._segments, frozen, self.max_dead_share)
                if carry_over(segment, self._folder, new)
            ]
            segments = kept + list(write_segments(frozen, kept, new))
            write_index(frozen, segments, self.fingerprint, extra, new)
            publish(step_dir)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise UnsavedState(
                error.filename or new,
                f"experience was not saved ({error.strerror}); earlier checkpoints are untouched.",
            ) from error
        self._folder, self._segments = step_dir / FOLDER, segments

    def _load(self, step_dir: Path, config: BufferConfig | None, allow: Collection[str]):
        folder = existing_folder(step_dir)
        manifest = read_manifest(folder)
        changed = changed_keys(folder, manifest["fingerprint"], self.fingerprint, allow)
        buffer, segments = restore(folder, manifest, config, self.fingerprint["group_size"], verify=True)
        self._folder, self._segments, self._buffer = folder, segments, weakref.ref(buffer)
        if "tokenizer" in changed:
            lost = buffer.drop_trajectories()
            logger.warning("%s: another tokenizer: %d trajectories dropped, counts and retired kept", folder, lost)
        return buffer, manifest["extra"]


def changed_keys(folder: Path, stored: dict, current: dict, allow: Collection[str]) -> list[str]:
    """Fingerprint keys that differ; raises MismatchedState for one that is not allowed to."""
    changed = [key for key in COMPARED if stored.get(key) != current[key]]
    for key in changed:
        if key not in allow:
            was, now = stored.get(key), current[key]
            raise MismatchedState(folder, f"saved with {key} {was!r}; this run has {now!r}. Refused unless allowed.")
    return changed


def _loss(step_dir: str | Path, found: Path) -> str:
    """What falling back to the checkpoint `found` loses, in words."""
    have = read_manifest(existing_folder(found))["counts"]
    lost = f"Falling back to {found}, {have['trajectories']} trajectories of {have['questions']} questions"
    try:
        had = read_manifest(existing_folder(Path(step_dir)))["counts"]
    except ExperienceStateError:
        return f"{lost}; how many the lost state had is not known."
    return f"{lost}; the lost state had {had['trajectories']} of {had['questions']}."


def model_fingerprint(config) -> str:
    """A model family as one string, from a Hugging Face model config: type, width, depth and vocabulary."""
    sizes = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    return "-".join(map(str, (config.model_type, *sizes)))


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what gives token ids their meaning: the vocabulary, added tokens included."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

"""Writing experience checkpoints: segments, index, manifest, and the renames that publish them."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recipe.exgrpo.checkpoint.errors import ExperienceStateError, UnsavedState
from recipe.exgrpo.checkpoint.format import (
    FOLDER,
    FORMAT,
    IMMUTABLE_ROWS,
    MANIFEST,
    MUTABLE_ROWS,
    NEW,
    OLD,
    QUESTIONS,
    ROWS,
    SEGMENT_TOKENS,
    VERSION,
    SegmentFile,
    common,
    encoded,
)
from recipe.exgrpo.checkpoint.tensors import check_file, write_tensors
from recipe.exgrpo.core.buffer.state import Snapshot, spans
from verl_ext.files import sync_folder, write_durably

logger = logging.getLogger(__name__)

SMALL_SEGMENTS = 16  # segments under a quarter of a full one, before they are merged


def write_checkpoint(
    step_dir: Path, frozen: Snapshot, earlier: list[SegmentFile], folder: Path | None, fingerprint: dict, extra: dict
) -> list[SegmentFile]:
    """Make `frozen` the experience of `step_dir`, sharing the segments `earlier` in `folder`; returns its segments.

    Raises UnsavedState on a full disk and the like; what was there stays.
    """
    new = step_dir / NEW
    try:
        step_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        kept = [segment for segment in earlier if carry_over(segment, folder, new)]
        segments = kept + list(write_segments(frozen, kept, new))
        write_index(frozen, segments, fingerprint, extra, new)
        publish(step_dir)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = f"experience was not saved ({error.strerror}); earlier checkpoints are untouched."
        raise UnsavedState(error.filename or new, reason) from error
    return segments


def worth_keeping(segments: list[SegmentFile], frozen: Snapshot, max_dead_share: float) -> list[SegmentFile]:
    """Segments of the previous checkpoint to share: few dead tokens, and not too many small ones."""
    live, kept = frozen.rows["row_serial"], []
    for segment in segments:
        alive = int(segment.spans[common(segment.serials, live)[0]].sum())
        if alive and segment.tokens - alive <= max_dead_share * segment.tokens:
            kept.append(segment)
    large = [segment for segment in kept if segment.tokens >= SEGMENT_TOKENS // 4]
    return large if len(kept) - len(large) >= SMALL_SEGMENTS else kept


def carry_over(segment: SegmentFile, folder: Path, new: Path) -> bool:
    """Link a segment of the previous checkpoint into the new one, or copy it; False when it is not there any more."""
    source, target = folder / segment.name, new / segment.name
    if not source.exists() or source.stat().st_size != segment.record.bytes:
        logger.warning("%s is gone or cut short; its trajectories are written again", source)
        return False
    try:
        os.link(source, target)
        return True
    except OSError:
        return _copied(source, target, segment)


def write_segments(frozen: Snapshot, kept: list[SegmentFile], new: Path) -> Iterator[SegmentFile]:
    """Write the live rows that no kept segment has, as segments of at most SEGMENT_TOKENS (or one trajectory)."""
    live, lengths = frozen.rows["row_serial"], spans(frozen.rows)
    missing = np.ones(len(live), bool)
    for segment in kept:
        missing[common(segment.serials, live)[1]] = False
    rows = np.flatnonzero(missing)
    starts = np.cumsum(lengths[rows]) - lengths[rows]
    groups = np.split(rows, np.flatnonzero(np.diff(starts // SEGMENT_TOKENS)) + 1) if len(rows) else []
    first = 1 + max((int(re.sub(r"\D", "", segment.name)) for segment in kept), default=-1)
    for number, group in enumerate(groups, first):
        name = f"segment-{number:06d}.safetensors"
        columns = {column: frozen.rows[column][group] for column in IMMUTABLE_ROWS}
        ids, log_probs = map(list, zip(*frozen.runs(group), strict=True))
        tensors = columns | {"token_ids": ids, "log_probs": log_probs}
        record = write_tensors(new / name, tensors, "immutable trajectories")
        yield SegmentFile(name, record, columns["row_serial"], spans(columns))


def write_index(frozen: Snapshot, segments: list[SegmentFile], fingerprint: dict, extra: dict, new: Path) -> None:
    """Write rows, questions and, last, the manifest."""
    rows = {name: frozen.rows[name] for name in MUTABLE_ROWS}
    questions = frozen.question_arrays()
    files = {
        ROWS: write_tensors(new / ROWS, rows, "live trajectories").as_dict(),
        QUESTIONS: write_tensors(new / QUESTIONS, questions, "questions").as_dict(),
    }
    for s in segments:
        files[s.name] = s.record.as_dict() | {"trajectories": len(s.serials), "tokens": s.tokens}
    columns = {name: frozen.rows[name] for name in IMMUTABLE_ROWS}
    schema = {
        ROWS: _schema(rows),
        QUESTIONS: _schema(questions),
        "segment-*": _schema(columns) | {"token_ids": "int32", "log_probs": frozen.meta["log_prob_dtype"]},
    }
    counts = {
        "trajectories": len(rows["row_serial"]),
        "tokens": int(frozen.rows["row_length"].sum()),
        "questions": int(np.count_nonzero(questions["question_name_lengths"])),
        "retired": len(questions["retired"]),
        "dead_trajectories": sum(len(s.serials) for s in segments) - len(rows["row_serial"]),
    }
    manifest = {"format": FORMAT, "version": VERSION, "counts": counts, "fingerprint": fingerprint, "extra": extra}
    manifest |= {"buffer": frozen.meta, "schema": schema, "files": files}
    write_durably(new / MANIFEST, [encoded(manifest)])


def publish(step_dir: Path) -> None:
    """Make `.experience.new` the state of its step, and the old one, if any, go."""
    new, current, old = step_dir / NEW, step_dir / FOLDER, step_dir / OLD
    sync_folder(new)
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)
        current.rename(old)
    new.rename(current)
    sync_folder(step_dir)
    sync_folder(step_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(step_dir: Path) -> None:
    """Remove a step's experience; renamed first, so that a part of it is never taken for state."""
    for name in (OLD, FOLDER):
        if (step_dir / name).exists():
            shutil.rmtree(step_dir / NEW, ignore_errors=True)
            (step_dir / name).rename(step_dir / NEW)
    shutil.rmtree(step_dir / NEW, ignore_errors=True)


def _schema(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: array.dtype.name for name, array in arrays.items()}


def _copied(source: Path, target: Path, segment: SegmentFile) -> bool:
    """Copy where hard links are impossible; the copy is checked, or damage would spread with it."""
    try:
        check_file(source, segment.record)
        write_durably(target, [source.read_bytes()])
    except ExperienceStateError as error:
        logger.warning("%s; its trajectories are written again", error)
        return False
    return True

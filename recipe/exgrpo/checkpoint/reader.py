"""Reading experience checkpoints: manifests, whole buffers, and what is wrong with damaged ones."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from recipe.exgrpo.checkpoint.format import (
    FILE_NAME,
    FORMAT,
    IMMUTABLE_ROWS,
    QUESTIONS,
    REQUIRED,
    ROWS,
    VERSION,
    SegmentFile,
    common,
    existing_folder,
    load_manifest,
    step_dirs,
    step_number,
)
from recipe.exgrpo.checkpoint.tensors import (
    CorruptState,
    ExperienceStateError,
    read_checked,
    read_tensors,
)
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import spans
from recipe.exgrpo.core.config import BufferConfig
from verl_ext.files import FileRecord

READERS = 4  # threads that read and hash


def read_manifest(folder: str | Path) -> dict:
    """The manifest of an experience folder; raises MissingState, ForeignState, NewerState or CorruptState."""
    path = Path(folder) / "manifest.json"
    manifest = load_manifest(path, FORMAT, VERSION)
    listed = manifest.get("files", {})
    if REQUIRED - manifest.keys() or {ROWS, QUESTIONS} - listed.keys() or not all(map(FILE_NAME.fullmatch, listed)):
        raise CorruptState(path, "an entry is missing, or names a file that does not belong there.")
    return manifest


def open_checkpoint(path: str | Path, verify: bool = False) -> tuple[ExperienceBuffer, dict]:
    """Buffer and manifest of `global_step_N` or of its `experience` folder, for reading.

    Without `verify` the token segments are mapped and not checked, so that opening costs little.
    """
    folder = existing_folder(Path(path))
    manifest = read_manifest(folder)
    return restore(folder, manifest, _stored_config(manifest), None, verify)[0], manifest


def verify_checkpoint(path: str | Path) -> list[ExperienceStateError]:
    """What is wrong with a checkpoint, file by file; empty when every byte and every relation is as saved."""
    try:
        folder = existing_folder(Path(path))
        manifest = read_manifest(folder)
    except ExperienceStateError as error:
        return [error]
    problems = []
    for name, entry in manifest["files"].items():
        try:
            read_checked(folder / name, _record(entry))
        except ExperienceStateError as error:
            problems.append(error)
    if not problems:
        try:
            restore(folder, manifest, _stored_config(manifest), None, verify=False)
        except ExperienceStateError as error:
            problems.append(error)
    return problems


def find_newest_intact(
    root: str | Path, before: int | None = None
) -> tuple[Path | None, dict[Path, list[ExperienceStateError]]]:
    """The newest `global_step_N` in `root` (N < `before`) with intact experience, and what is wrong with newer ones."""
    problems = {}
    for path in step_dirs(root):
        if before is None or step_number(path) < before:
            problems[path] = verify_checkpoint(path)
            if not problems[path]:
                return path, {p: found for p, found in problems.items() if found}
    return None, problems


def restore(folder: Path, manifest: dict, config, group_size: int | None, verify: bool):
    """Buffer and segment files of a folder; the segments are read and hashed in parallel."""
    files = {name: _record(entry) for name, entry in manifest["files"].items()}
    names = sorted(name for name in files if name.startswith("segment-"))
    with ThreadPoolExecutor(READERS) as pool:
        arrays = {}
        for name in (ROWS, QUESTIONS):
            arrays |= read_tensors(folder / name, files[name])
        parts = list(pool.map(lambda name: read_tensors(folder / name, files[name], verify), names))
    try:
        pieces, placement = _gather_rows(arrays, parts)
        buffer = ExperienceBuffer.restore(arrays, manifest["buffer"], pieces, placement, config)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptState(folder, f"its files contradict each other ({error})") from error
    if group_size is not None and group_size != buffer.group_size:
        buffer.change_group_size(group_size)
    segments = [
        SegmentFile(name, files[name], np.array(part["row_serial"]), spans(part))
        for name, part in zip(names, parts, strict=True)
    ]
    return buffer, segments


def _gather_rows(arrays: dict[str, np.ndarray], parts: list[dict[str, np.ndarray]]):
    """Fill the immutable columns of the live rows in from the segments; returns the pieces and each row's place in them."""
    live = arrays["row_serial"]
    piece, offset = np.full(len(live), -1, np.int64), np.zeros(len(live), np.int64)
    for name in IMMUTABLE_ROWS[1:]:
        arrays[name] = np.zeros(len(live), parts[0][name].dtype if parts else np.int32)
    for number, part in enumerate(parts):
        found, at = common(part["row_serial"], live)
        if (piece[at] != -1).any():
            raise ValueError("a trajectory is in two segments.")
        piece[at] = number
        offset[at] = (np.cumsum(spans(part)) - spans(part))[found]
        for name in IMMUTABLE_ROWS[1:]:
            arrays[name][at] = part[name][found]
    if (piece == -1).any():
        raise ValueError("a trajectory is in no segment.")
    return [(part["token_ids"], part["log_probs"]) for part in parts], (piece, offset)


def _stored_config(manifest: dict) -> BufferConfig:
    return BufferConfig(log_prob_dtype=manifest["buffer"]["log_prob_dtype"])


def _record(entry: dict) -> FileRecord:
    return FileRecord(entry["bytes"], entry["sha256"])

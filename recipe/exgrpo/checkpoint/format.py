"""Layout of an experience checkpoint: `global_step_N/experience/`, costing what is new.

    manifest.json            format, version, counts, schema, size and SHA-256 of every file, fingerprint, buffer meta, extra
    rows.safetensors         per live trajectory: serial, question, use count, scores          (rewritten by every save)
    questions.safetensors    ids, latest counts, cooldowns, retired, buckets in draw order     (rewritten by every save)
    segment-*.safetensors    tokens, log-probs, reward, birth step, group, prompt: immutable, shared between checkpoints by
                             hard link

Trajectories that died stay in their segment until they are more than a share of it; then its live rows are written anew.
A checkpoint is written to `.experience.new`, flushed, and renamed, so `experience` is complete or absent. Saving a step
again moves the earlier state to `.experience.old` first: between two renames only that exists, and loading then reads it.
Hard links share bytes on disk: a segment damaged there is damaged in every checkpoint that has it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipe.exgrpo.checkpoint.errors import CorruptState, ForeignState, MissingState, NewerState
from verl_ext.files import FileRecord

FORMAT = "exgrpo-experience"
VERSION = 2
FOLDER, NEW, OLD = "experience", ".experience.new", ".experience.old"
MANIFEST, ROWS, QUESTIONS = "manifest.json", "rows.safetensors", "questions.safetensors"
MUTABLE_ROWS = ("row_serial", "row_question", "row_use_count", "row_entropy", "row_nll", "row_drift")
IMMUTABLE_ROWS = (
    "row_serial", "row_prompt_length", "row_length", "row_reward", "row_birth_step", "row_group",
    "row_group_successes", "row_group_size", "row_advantage", "row_origin", "row_digest", "row_prompt_hash",
)  # fmt: skip
SEGMENT_TOKENS = 1 << 22  # tokens of a full segment: 32 MiB
FILE_NAME = re.compile(r"(rows|questions|segment-\d{6,})\.safetensors")
REQUIRED = {"counts", "fingerprint", "extra", "buffer", "schema", "files"}


@dataclass(frozen=True)
class SegmentFile:
    """A segment on disk: its trajectories, by serial, and how many tokens each has there (prompt and response)."""

    name: str
    record: FileRecord
    serials: np.ndarray
    spans: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.spans.sum())


STEP = re.compile(r"global_step_(0|[1-9][0-9]*)")


def step_number(path: str | Path) -> int:
    """N of a folder `global_step_N`; ValueError for another name, global_step_04 among them, which verl would not find."""
    match = STEP.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint folder global_step_N.")
    return int(match[1])


def step_dirs(root: str | Path) -> list[Path]:
    """The folders `global_step_N` in `root`, newest first."""
    found = [path for path in Path(root).glob("global_step_*") if STEP.fullmatch(path.name)]
    return sorted(found, key=step_number, reverse=True)


def folder_of(step_dir: Path) -> Path | None:
    """Where a step's experience is: the path itself if it is that, `experience`, or what a replacement had moved aside."""
    if (step_dir / MANIFEST).exists():
        return step_dir
    return next((step_dir / name for name in (FOLDER, OLD) if (step_dir / name).is_dir()), None)


def common(serials: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `serials`, and the same in `live`, of the serials that both (ascending) have."""
    at = np.searchsorted(live, serials)
    found = np.flatnonzero(at < len(live))
    found = found[live[at[found]] == serials[found]]
    return found, at[found]


def encoded(manifest: dict) -> bytes:
    """The manifest as it stands in its file, its own SHA-256 included: equal bytes or it was altered."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest}, indent=1).encode() + b"\n"


def read_manifest(folder: Path) -> dict:
    """The manifest of an experience folder, without its own SHA-256.

    Raises MissingState, CorruptState, ForeignState for another format, or NewerState.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MissingState(path, f"cannot be opened ({error.strerror}).") from error
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptState(path, f"not readable as JSON ({error}).") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ForeignState(path, f"not a manifest of format {FORMAT!r}.")
    version = manifest.get("version")
    if isinstance(version, int) and version > VERSION:
        raise NewerState(path, f"version {version} is newer than {VERSION}, the latest known here.")
    if version != VERSION:
        raise ForeignState(path, f"version {version} of {FORMAT} is not read any more; this is version {VERSION}.")
    if manifest.pop("sha256", None) is None or encoded(manifest) != raw:
        raise CorruptState(path, "its contents do not match its own SHA-256.")
    listed = manifest.get("files", {})
    if REQUIRED - manifest.keys() or {ROWS, QUESTIONS} - listed.keys() or not all(map(FILE_NAME.fullmatch, listed)):
        raise CorruptState(path, "an entry is missing, or names a file that does not belong there.")
    return manifest

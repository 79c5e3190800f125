"""Checkpoints of fill mode: `global_step_N/experience/` with one tensor file and a manifest, in the buffer's own way.

The pool is small (its entries live for `fill.max_age_steps` steps), so every save writes it whole.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from recipe.exgrpo.checkpoint.checkpointer import changed_keys
from recipe.exgrpo.checkpoint.format import NEW, encoded, existing_folder, load_manifest
from recipe.exgrpo.checkpoint.tensors import (
    CorruptState,
    UnsavedState,
    read_tensors,
    write_tensors,
)
from recipe.exgrpo.checkpoint.writer import publish
from recipe.exgrpo.core.policies.fill import FillManager
from verl_ext.files import FileRecord, write_durably

FORMAT, VERSION = "exgrpo-fill", 1
ENTRIES = "entries.safetensors"


def save_fill(step_dir: Path, fill: FillManager, fingerprint: dict) -> None:
    """Write the pool, generator and schedule to `step_dir/experience`; raises UnsavedState, and keeps what was there."""
    new = step_dir / NEW
    arrays, meta = fill.state()
    try:
        step_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        record = write_tensors(new / ENTRIES, arrays, "entries of fill mode")
        manifest = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "state": meta}
        write_durably(new / "manifest.json", [encoded(manifest | {"files": {ENTRIES: record.as_dict()}})])
        publish(step_dir)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UnsavedState(
            error.filename or new, f"experience was not saved ({error.strerror}); earlier checkpoints are untouched."
        ) from error


def load_fill(step_dir: Path, fill: FillManager, fingerprint: dict, allow: Collection[str] = ()) -> None:
    """Continue from `save_fill`: the same next draws.

    Raises MissingState, ForeignState (the state of another mode among them), NewerState, CorruptState, or MismatchedState
    where model, tokenizer or group size differ and are not in `allow`. Under another tokenizer or group size the entries
    mean nothing: they are dropped.
    """
    folder = existing_folder(step_dir)
    manifest = read_fill_manifest(folder / "manifest.json")
    changed = changed_keys(folder, manifest["fingerprint"], fingerprint, allow)
    arrays = read_tensors(folder / ENTRIES, FileRecord(**manifest["files"][ENTRIES]))
    if {"tokenizer", "group_size"} & set(changed):
        fill.schedule.active = fill.schedule.active or bool(manifest["state"]["active"])
        return
    try:
        fill.load_state(arrays, manifest["state"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(folder, f"its files contradict each other ({error})") from error


def read_fill_manifest(path: Path) -> dict:
    """The manifest of fill mode at `path`; raises MissingState, CorruptState, ForeignState or NewerState."""
    return load_manifest(path, FORMAT, VERSION)

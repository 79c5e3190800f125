"""Saved states that nobody trained: written whole beside what was there, with the tokenizer that reads them."""

import shutil
from pathlib import Path
from typing import Any

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.format import FOLDER, folder_of
from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.experience.sources import IMPORTED


def opened(path: Path, fingerprint: dict, group_size: int) -> tuple[ExperienceBuffer, dict]:
    """The buffer that an import adds to, and what was saved beside it: those of `path`, or new ones.

    Raises ValueError where `path` is a run's checkpoint, or was made for another tokenizer or group size.
    """
    if folder_of(path) is None:
        return ExperienceBuffer(group_size), {}
    stored = Stored.open(path)
    if stored.fingerprint.get("policy") != IMPORTED:
        raise ValueError(f"{path} belongs to a run; import into a folder of its own, and start from both.")
    for key in ("tokenizer", "group_size"):
        if stored.fingerprint.get(key) != fingerprint[key]:
            raise ValueError(f"{path} was made for another {key.replace('_', ' ')}; import into a folder of its own.")
    return stored.buffer(), stored.extra


def write(path: Path, buffer: ExperienceBuffer, fingerprint: dict, extra: dict, tokenizer: Any | None = None) -> Path:
    """Write `path/experience` in one rename, and beside it `tokenizer`, an object or a folder; returns the new folder.

    Raises UnsavedState on a full disk.
    """
    beside = path / "tokenizer"
    if isinstance(tokenizer, Path):
        shutil.copytree(tokenizer, beside, dirs_exist_ok=True)
    elif tokenizer is not None and not beside.is_dir():
        tokenizer.save_pretrained(beside)
    ExperienceCheckpointer(fingerprint).save(path, buffer, extra)
    return path / FOLDER

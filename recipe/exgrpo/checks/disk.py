"""Checks of the run folder: writable, and room for the checkpoints."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, note, warning
from recipe.exgrpo.checks.memory import experience_bytes
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.sizes import gb

BYTES_PER_PARAMETER = 12  # float32 weights and Adam's two moments


def disk_findings(run: Run, free: float | None = None) -> Iterator[Finding]:
    """What is wrong with `trainer.default_local_dir`; `free` is in bytes (default: measured)."""
    existing = _existing(run.folder)
    problem = _write_problem(existing)
    if problem:
        yield error(
            f"trainer.default_local_dir: {run.folder} cannot be written ({problem}); set RUN to another folder."
        )
        return
    saves = remaining_saves(run)
    if not saves:
        return
    if run.shape is None:
        yield note("disk: unknown, the model's size is not known here.")
        return
    free = shutil.disk_usage(existing).free if free is None else free
    yield _space(run.folder, free, saves, BYTES_PER_PARAMETER * run.shape.parameters + experience_bytes(run))


def remaining_saves(run: Run) -> int:
    """Checkpoints that will lie side by side, those already in the run's folder not counted; 0 if none are saved."""
    trainer = run.config.trainer
    if trainer.save_freq <= 0:
        return 0
    done = len(list(run.folder.glob("global_step_*")))
    saves = max(0, -(-(run.steps or 1) // trainer.save_freq) - done)
    # verl writes the new one before it removes the old.
    return min(saves, trainer.max_actor_ckpt_to_keep + 1) if trainer.max_actor_ckpt_to_keep else saves


def _existing(folder: Path) -> Path:
    """The nearest ancestor that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _write_problem(folder: Path) -> str | None:
    """Why nothing can be made in `folder`; permissions alone do not tell (root, read-only mounts, quotas)."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".exgrpo-check-"):
            return None
    except OSError as problem:
        return f"{folder}: {problem.strerror}"


def _space(folder: Path, free: float, saves: int, size: float) -> Finding:
    text = f"{saves} checkpoints of {gb(size)}, {gb(free)} are free"
    if free < size:
        return error(
            f"trainer.default_local_dir: {folder} has room for no checkpoint ({text}); set RUN to a larger disk."
        )
    if free < saves * size:
        return warning(
            f"trainer.default_local_dir: {folder} has not room for all {text}; set trainer.max_actor_ckpt_to_keep=2, raise "
            "trainer.save_freq, or set RUN to a larger disk."
        )
    return note(f"disk: {text}.")

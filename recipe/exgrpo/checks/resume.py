"""Checks of what a start would resume from: which checkpoint, whether it is whole and fits, and what has changed since.

verl starts from scratch, over the old checkpoints, when its tracker file is missing or names a folder that is gone.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from recipe.exgrpo.checkpoint.format import STEP
from recipe.exgrpo.checks.experiment import experiment_findings
from recipe.exgrpo.checks.findings import Finding, error, note, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.runs.folder import (
    KINDS,
    TRACKER,
    Checkpoint,
    TrackerError,
    checkpoints,
    followed,
    newest_whole,
    tracked_step,
)
from recipe.exgrpo.runs.lock import holder

RESUME_PATH = "trainer.resume_mode=resume_path trainer.resume_from_path="
ANEW = "set RUN (trainer.default_local_dir) to another folder to start anew"


def resume_findings(run: Run) -> Iterator[Finding]:
    """What a start in `trainer.default_local_dir` would do with what is there."""
    held = holder(run.folder)
    if held:
        yield error(held)
    mode = run.config.trainer.resume_mode
    if mode == "disable":
        yield from _disabled(run.folder)
    elif mode == "resume_path":
        yield from _from_path(run)
    elif mode == "auto":
        yield from _automatic(run)
    else:
        yield error(f"trainer.resume_mode must be auto, disable or resume_path; got {mode!r}.")


def _disabled(root: Path) -> Iterator[Finding]:
    found = checkpoints(root)
    if found:
        yield error(
            f"trainer.resume_mode=disable would write over {_listed(found)} in {root}; leave it out to resume, or {ANEW}."
        )


def _automatic(run: Run) -> Iterator[Finding]:
    """The tracker file decides; whatever keeps verl from following it is an error as long as there is something to lose."""
    root, kinds = run.folder, kinds_of(run)
    try:
        step = tracked_step(root)
    except TrackerError as problem:
        yield _lost(root, f"{problem}, so that verl cannot resume", kinds)
        return
    if step is None:
        yield from _untracked(root, kinds)
        return
    named, newer = followed(root)
    if named is None:
        yield _lost(
            root, f"{root / TRACKER} names global_step_{step}, which is gone, so that verl would start anew", kinds
        )
        return
    yield from _usable(run, Checkpoint(named.path, kinds))
    for checkpoint in newer:
        yield warning(_newer(checkpoint, named))


def _untracked(root: Path, kinds: tuple[str, ...]) -> Iterator[Finding]:
    if newest_whole(root, kinds):
        yield _lost(
            root, f"{root} has {_listed(checkpoints(root))} but no {TRACKER}, so that verl would start anew", kinds
        )
        return
    for torn in checkpoints(root, kinds):
        yield warning(f"{torn.path.name} in {root} is incomplete ({torn.problems[0]}); this run starts anew over it.")


def _lost(root: Path, why: str, kinds: tuple[str, ...]) -> Finding:
    """An error that says how to go on from the newest whole checkpoint, or that there is none."""
    newest = newest_whole(root, kinds)
    resume = (
        f"{RESUME_PATH}{newest.path} resumes from the newest whole checkpoint" if newest else "no checkpoint is whole"
    )
    return error(f"trainer.default_local_dir: {why} over what is there; {resume}, or {ANEW}.")


def _newer(checkpoint: Checkpoint, named: Checkpoint) -> str:
    if not checkpoint.whole:
        return (
            f"{checkpoint.path} is newer than {named.path.name}, which {TRACKER} names, and incomplete "
            f"({checkpoint.problems[0]}); it will be written over."
        )
    return (
        f"{checkpoint.path} is newer than {named.path.name}, which {TRACKER} names and this run resumes from; it will be "
        f"written over, {RESUME_PATH}{checkpoint.path} would resume from it."
    )


def _from_path(run: Run) -> Iterator[Finding]:
    """verl takes the number behind the last "global_step_" as it stands."""
    given, key = run.config.trainer.resume_from_path, "trainer.resume_from_path"
    if not isinstance(given, str) or not given:
        yield error(f"{key} must name a folder global_step_N for trainer.resume_mode=resume_path; got {given!r}.")
        return
    number = given.rpartition("global_step_")[2]
    if "global_step_" not in given or not STEP.fullmatch(f"global_step_{number}"):
        plain = given.rstrip("/")
        hint = (
            f"write {key}={plain}"
            if plain != given
            else f"without zeros before its number, and name the folder itself, such as {run.folder}/global_step_50"
        )
        yield error(f"{key}={given} must end in global_step_N; {hint}.")
        return
    path = Path(given)
    checkpoint = Checkpoint(path, kinds_of(run))
    yield from _usable(run, checkpoint)
    if checkpoint.whole:
        yield from _gone_on(run.folder, path, int(number))


def _gone_on(root: Path, path: Path, step: int) -> Iterator[Finding]:
    """Going back in a folder that has gone on would write over what came later."""
    try:
        named, _ = followed(root)
    except TrackerError:
        return
    if named is not None and named.step > step:
        yield error(
            f"trainer.resume_from_path={path} is older than {named.path}, which this run has reached; leave it and "
            f"trainer.resume_mode out to go on from there, or set RUN (trainer.default_local_dir) to another folder to go back."
        )


def _usable(run: Run, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether this run can load the checkpoint, and is the same experiment."""
    if not checkpoint.whole:
        others = [
            found for found in checkpoints(run.folder, checkpoint.kinds) if found.path.name != checkpoint.path.name
        ]
        newest = next((found for found in others if found.whole), None)
        resume = f"{RESUME_PATH}{newest.path} resumes from the newest whole one" if newest else "no other one is whole"
        yield error(
            f"trainer.default_local_dir: {checkpoint.path} is not whole: {checkpoint.problems[0]}; {resume}, or {ANEW}."
        )
        return
    if checkpoint.ranks != run.gpus:
        yield error(
            f"trainer.n_gpus_per_node x trainer.nnodes is {run.gpus} and {checkpoint.path} was saved by {checkpoint.ranks}; "
            f"verl does not reshard: run on {checkpoint.ranks}, or {ANEW}."
        )
    yield note(f"resume: from {checkpoint.path}, step {checkpoint.step}.")
    yield from experiment_findings(run, checkpoint.path)


def kinds_of(run: Run) -> tuple[str, ...]:
    """The files of each rank that verl will load (`actor.checkpoint.load_contents`)."""
    contents = OmegaConf.select(run.actor, "checkpoint.load_contents") or KINDS
    return tuple(KINDS[name] for name in contents if name in KINDS)


def _listed(found: list[Checkpoint]) -> str:
    """The names of a few checkpoints, newest first."""
    names = [checkpoint.path.name for checkpoint in found]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

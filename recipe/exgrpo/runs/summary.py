"""The last lines of a run: what was done, where it is, and what to type next."""

from pathlib import Path

from recipe.exgrpo.runs.folder import TrackerError, followed
from recipe.exgrpo.runs.metrics import FILE
from verl_ext.metrics_log import read_metrics

AGAIN = "the same command resumes from it"
EARLY = "stopped"
LONGEST = 500  # characters of a cause


def last_step(folder: str | Path) -> int:
    """The newest step in metrics.jsonl; 0 without one."""
    path = Path(folder) / FILE
    try:
        rows = read_metrics(path)[0] if path.is_file() else []
    except ValueError:
        return 0
    return rows[-1]["step"] if rows else 0


def done(folder: str | Path, steps: int | None, asked: bool = False) -> str:
    """A run that reached its end (`steps`; None: verl works it out), or was `asked` to stop and did so before it."""
    reached, of = last_step(folder), f" of {steps}" if steps else ""
    if asked and reached < (steps or reached + 1):
        return f"{EARLY} after step {reached}{of}: {folder}. {saved(folder)}."
    return f"done, step {reached}{of}: {folder}. {saved(folder, '')}. Next: exgrpo report {folder}"


def failed(folder: str | Path, cause: str) -> str:
    """A run that ended by an error."""
    return f"ended after step {last_step(folder)}: {folder}. {saved(folder)}. Cause: {cause}"


def saved(folder: str | Path, then: str = AGAIN) -> str:
    """The checkpoint that the next start will find."""
    try:
        named, _ = followed(folder)
    except TrackerError as problem:
        return str(problem)
    if named is None:
        return "No checkpoint was saved"
    return f"Newest checkpoint: {named.path}" + (f"; {then}" if then else "")


def cause_of(error: BaseException) -> str:
    """What an exception comes down to, in one line, without the tracebacks that Ray puts around it."""
    inner = error
    while isinstance(getattr(inner, "cause", None), BaseException):
        inner = inner.cause
    text = " ".join(str(inner).split()) or "no message"
    return f"{type(inner).__name__}: {text[:LONGEST]}"

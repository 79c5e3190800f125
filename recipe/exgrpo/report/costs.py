"""What a run cost and how it behaved, one function per figure; NaN where the run did not log what the figure needs."""

from collections.abc import Callable
from math import nan

from recipe.exgrpo.runs.metrics import QUESTIONS, RunMetrics

STEP_SECONDS = ("perf/time_per_step", "timing_s/step")
REPLAYED, ROWS = "experience/replayed_questions", "experience/replayed_rows"
GENERATED = "batch/generated_rollouts"
LAST = 10  # steps over which the entropy at the end is averaged

Cost = Callable[[RunMetrics], float]


def replayed_share(run: RunMetrics) -> float:
    """Stored trajectories in the batch: as a share of its questions where they have planned places, else of its sequences."""
    questions, replayed, rows = (run.values(name) for name in (QUESTIONS, REPLAYED, ROWS))
    if not questions.any() or rows.empty:
        return nan
    if rows.any() and not replayed.any():
        return rows.sum() / (questions.sum() * run.group_size) if run.group_size else nan
    return replayed.sum() / questions.sum()


def fresh_rollouts(run: RunMetrics) -> float:
    """Rollouts sampled for training, those of groups that were dropped included.

    In runs that did not log them: K per group, one fewer where a stored trajectory has a planned place.
    """
    generated = run.values(GENERATED)
    if not generated.empty:
        return generated.sum()
    questions = run.values(QUESTIONS)
    if run.group_size is None or questions.empty:
        return nan
    return questions.sum() * run.group_size - run.values(REPLAYED).sum()


def step_seconds(run: RunMetrics) -> float:
    """Median seconds per training step, without validation."""
    return next((found.median() for name in STEP_SECONDS if not (found := run.values(name)).empty), nan)


COSTS: dict[str, Cost] = {
    "replayed_share": replayed_share,
    "fresh_rollouts": fresh_rollouts,
    "rows_updated": lambda run: run.values("batch/rows_updated").sum(min_count=1),
    "step_seconds": step_seconds,
    "grad_norm": lambda run: run.values("actor/grad_norm").median(),
    "skipped_updates": lambda run: run.values("actor/skipped_updates").sum(min_count=1),
    "entropy": lambda run: run.values("actor/entropy").tail(LAST).mean(),
}

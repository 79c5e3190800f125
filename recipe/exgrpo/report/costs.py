"""What a run cost and how it behaved, a figure each; None where the run did not log what the figure needs."""

from collections.abc import Callable
from statistics import fmean, median

from recipe.exgrpo.runs.metrics import QUESTIONS, RunMetrics

STEP_SECONDS = ("perf/time_per_step", "timing_s/step")
REPLAYED = "experience/replayed_questions"
LAST = 10  # steps over which entropy "at the end" is averaged

Figure = Callable[[RunMetrics], float | None]


def replayed_share(run: RunMetrics) -> float | None:
    """Share of the batch that is experience: of its questions (replay), or of its sequences (fill); None if not logged."""
    questions = sum(run.values(QUESTIONS))
    filled = sum(run.values("fill/filled"))
    if not questions or not run.values(REPLAYED):
        return None
    if filled:
        return filled / (questions * run.group_size) if run.group_size else None
    return sum(run.values(REPLAYED)) / questions


def fresh_rollouts(run: RunMetrics) -> float | None:
    """Rollouts sampled for training: K a group, less the stored member of a replayed one; None without a record."""
    if run.group_size is None or not run.training:
        return None
    injected = sum(run.values(REPLAYED)) if run.settings.get("exgrpo.inject", True) else 0.0
    return sum(run.values(QUESTIONS)) * run.group_size - injected


def step_seconds(run: RunMetrics) -> float | None:
    """Median seconds of a training step, validation not included."""
    return next((median(found) for name in STEP_SECONDS if (found := run.values(name))), None)


def _median(name: str) -> Figure:
    return lambda run: median(run.values(name)) if run.values(name) else None


def _total(name: str) -> Figure:
    return lambda run: sum(run.values(name)) if run.values(name) else None


def _at_end(name: str) -> Figure:
    return lambda run: fmean(run.values(name)[-LAST:]) if run.values(name) else None


COSTS: dict[str, Figure] = {
    "replayed_share": replayed_share,
    "fresh_rollouts": fresh_rollouts,
    "step_seconds": step_seconds,
    "grad_norm": _median("actor/grad_norm"),
    "skipped_updates": _total("actor/skipped_updates"),
    "entropy": _at_end("actor/entropy"),
}

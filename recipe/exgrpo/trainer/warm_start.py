"""Experience from elsewhere at the start of a new run (`exgrpo.experience`): read, graded, scored by the run's own actor."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory
from recipe.exgrpo.core.config import ExperienceConfig
from recipe.exgrpo.experience.importing import Importer, Report, Score
from recipe.exgrpo.experience.sources import Source
from recipe.exgrpo.experience.target import Target
from recipe.exgrpo.trainer.scoring import Candidate

logger = logging.getLogger(__name__)

SAID_EVERY = 2048  # traces between two lines of progress


def warm_start(store: ExperienceBuffer, target: Target, settings: ExperienceConfig, score: Score) -> Report:
    """Fill `store` from `settings.init_from`; raises BadTrace, SourceError or an ExperienceStateError naming what is wrong."""
    importer = Importer(target, store, settings, score if settings.importance == "scored" else None)
    for path in settings.init_from:
        source = Source(Path(path))
        importer.read(source, advance=_progress(str(path), source.count()))
    report = {name: value for name, value in importer.report.as_dict().items() if value}
    logger.info("experience from elsewhere: %s", report)
    if not importer.report.imported:
        logger.warning("exgrpo.experience.init_from: none of %d traces came in", importer.report.read)
    return importer.report


def by_actor(log_probs: Callable[[list[Candidate]], list[np.ndarray]]) -> Score:
    """The importer's `score` from what computes log-probs of candidates."""

    def score(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        return log_probs([Candidate(prompt, _unscored(ids)) for prompt, ids in pairs])

    return score


def _unscored(ids: np.ndarray) -> Trajectory:
    return Trajectory(-1, "", ids, np.zeros(len(ids), np.float32), np.ones(len(ids), bool), 0.0, 0)


def _progress(name: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        if (done + n) // SAID_EVERY > done // SAID_EVERY:
            logger.info("%s: %d of %d traces read", name, done + n, total)
        done += n

    return advance

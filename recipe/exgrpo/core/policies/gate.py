"""Which stored trajectories may enter the batch now (rule `exgrpo.gate`): bool [n]."""

import numpy as np

from recipe.exgrpo.core.buffer import Candidates
from recipe.exgrpo.core.policies.rules import Context


def always(candidates: Candidates, context: Context) -> np.ndarray:
    """All of them."""
    return np.ones(len(candidates), bool)


def recent(candidates: Candidates, context: Context) -> np.ndarray:
    """At most `refill.max_age_steps` old, and used fewer than `refill.reps` times."""
    bounds = context.config.refill
    return (candidates.age(context.step) <= bounds.max_age_steps) & (candidates.use_count < bounds.reps)


def drift(candidates: Candidates, context: Context) -> np.ndarray:
    """Drift of at most `rows.max_drift` when it was last scored (arXiv 2609.03941); what was never scored may enter."""
    return ~(candidates.drift > context.config.rows.max_drift)


GATE = {rule.__name__: rule for rule in (always, recent, drift)}

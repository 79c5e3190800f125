"""In which order stored trajectories are taken (rule `exgrpo.rank`): int64 [n], all candidates, best first.

Candidates come in order of storage, and ties stay in it. Rules marked `scored` get this step's scores.
"""

import numpy as np

from recipe.exgrpo.core.buffer import Candidates
from recipe.exgrpo.core.policies.rules import Context, scored
from recipe.exgrpo.core.selection import Scores

PRIORITY_EPS = 1e-6  # of both papers' code: nothing has no chance at all


def ascending(values: np.ndarray) -> np.ndarray:
    """Stable order of `values`; what is not finite comes last."""
    return np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")


@scored
def lowest_entropy(candidates: Candidates, scores: Scores, context: Context) -> np.ndarray:
    """Lowest mean token entropy under the current policy (section 4.1)."""
    return ascending(scores.entropy)


@scored
def highest_entropy(candidates: Candidates, scores: Scores, context: Context) -> np.ndarray:
    """The opposite (ablation)."""
    return ascending(-scores.entropy)


@scored
def lowest_perplexity(candidates: Candidates, scores: Scores, context: Context) -> np.ndarray:
    """Lowest perplexity under the current policy (section 4.1, ablation)."""
    return ascending(scores.nll)


@scored
def headroom(candidates: Candidates, scores: Scores, context: Context) -> np.ndarray:
    """Most headroom: where probabilities can still move furthest the way of the advantage (arXiv 2609.03941)."""
    return ascending(-scores.headroom)


def random(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """One at random first, the others as stored: no trajectory selection (Table 6)."""
    first = int(context.rng.integers(len(candidates)))
    return np.r_[first, np.delete(np.arange(len(candidates)), first)]


def newest(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """The one stored last first."""
    return np.arange(len(candidates))[::-1]


def oldest(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """The one stored first first."""
    return np.arange(len(candidates))


def rarity(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """Drawn without replacement with weight (1 - k/K)^`refill.power`: successes of hard questions first."""
    return drawn(rarity_weights(candidates.successes, context.group_size, context.config.refill.power), context.rng)


def advantage(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """Drawn without replacement with weight (|A| + eps)^`rows.alpha`, A that of collection (arXiv 2606.04560)."""
    return drawn((abs(candidates.advantage) + PRIORITY_EPS) ** context.config.rows.alpha, context.rng)


def fresh(candidates: Candidates, scores: Scores | None, context: Context) -> np.ndarray:
    """The same with weight ((|r| + eps) exp(-age / `rows.decay_steps`))^`rows.alpha` (arXiv 2604.16918)."""
    rows = context.config.rows
    weights = (abs(candidates.reward) + PRIORITY_EPS) * np.exp(-candidates.age(context.step) / rows.decay_steps)
    return drawn(weights**rows.alpha, context.rng)


def rarity_weights(successes: np.ndarray, group_size: int, power: float) -> np.ndarray:
    """(1 - k/K)^power, float64 [n], for k in 1..K-1; uniform for power 0."""
    return (1.0 - np.asarray(successes, np.float64) / group_size) ** power


def drawn(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices in the order of drawing without replacement with `weights` (> 0), int64 [n].

    The smallest of exponential waiting times with these rates comes first, so one vector of draws gives the whole order.
    """
    return np.argsort(rng.exponential(size=len(weights)) / weights, kind="stable")


RANK = {
    rule.__name__: rule
    for rule in (
        *(lowest_entropy, highest_entropy, lowest_perplexity, headroom),
        *(random, newest, oldest, rarity, advantage, fresh),
    )
}

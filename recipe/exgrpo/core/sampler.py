"""Which questions to replay: the bucket sampler (Alg. 2).

A question sits in the bucket of its latest success count k of K. Bucket counts are one multinomial draw with weights
renormalised over the non-empty buckets, the excess of a bucket that is too small is drawn again over the others, and
inside a bucket questions are uniform without replacement.
"""

import math
from typing import Protocol

import numpy as np

from recipe.exgrpo.core.config import QuestionConfig


class Buckets(Protocol):
    """Eligible questions by their latest success count, as `core.buffer.ExperienceBuffer` keeps them."""

    def bucket_sizes(self) -> np.ndarray:
        """int64 [K + 1]."""

    def draw(self, count: int, n: int, rng: np.random.Generator) -> list[str]:
        """`n` distinct questions of bucket `count`, uniform without replacement."""


def log_weights(group_size: int, config: QuestionConfig) -> np.ndarray:
    """Log of each bucket's weight, float64 [K + 1]; -inf for k = 0 and k = K, which are never replayed.

    In log space because a gaussian of one success is zero in floating point a few dozen buckets away from its mean, and
    a lone far bucket must still be drawn.
    """
    counts = np.arange(1, group_size, dtype=np.float64)
    share = counts / group_size
    if config.weighting == "gaussian":
        u, mu = (counts, config.mu * group_size) if config.sigma_unit == "count" else (share, config.mu)
        inner = -((u - mu) ** 2) / (2 * config.sigma**2)
    elif config.weighting == "linear":
        inner = np.log(share)
    elif config.weighting == "sqrt":
        inner = 0.5 * np.log(share)
    elif config.weighting == "linear_clip":
        inner = np.log(np.minimum(share, config.mu))
    else:
        inner = np.zeros_like(share)
    return np.concatenate([[-np.inf], inner, [-np.inf]])


def bucket_probabilities(logs: np.ndarray, open_buckets: np.ndarray) -> np.ndarray:
    """Weights renormalised over `open_buckets` (bool [K + 1]), float64 [K + 1] summing to 1."""
    masked = np.where(open_buckets, logs, -np.inf)
    weights = np.exp(masked - masked.max())
    return weights / weights.sum()


def allocate(sizes: np.ndarray, logs: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """How many questions to take from each bucket: int64 [K + 1], at most `sizes`, summing to min(n, drawable).

    One multinomial draw; what exceeds a bucket's size is drawn again over the buckets with room, by the same weights.
    """
    drawable = np.isfinite(logs)
    taken = np.zeros_like(sizes)
    missing = min(n, int(sizes[drawable].sum()))
    while missing > 0:
        probabilities = bucket_probabilities(logs, drawable & (taken < sizes))
        taken = np.minimum(taken + rng.multinomial(missing, probabilities), sizes)
        missing = min(n, int(sizes[drawable].sum())) - int(taken.sum())
    return taken


def sample_questions(buffer: Buckets, n: int, config: QuestionConfig, rng: np.random.Generator) -> list[str]:
    """Up to `n` distinct eligible questions, fewer only when the buffer holds fewer. O(K + n)."""
    sizes = buffer.bucket_sizes()
    if config.weighting == "uniform":
        # Uniform over questions: bucket counts follow the hypergeometric law of drawing without replacement.
        taken = rng.multivariate_hypergeometric(sizes, min(n, int(sizes.sum())), method="marginals")
    else:
        taken = allocate(sizes, log_weights(len(sizes) - 1, config), n, rng)
    return [question for k in np.flatnonzero(taken) for question in buffer.draw(int(k), int(taken[k]), rng)]


def share_of(size: int, share: float) -> int:
    """floor(share * size) as meant: 29 of 100 for 0.29, whose product is a hair below in binary."""
    return math.floor(round(share * size, 9))


def interleave(first: list, second: list) -> list:
    """Merge two lists so that each is spread evenly, whatever their lengths.

    Mini-batches are consecutive stretches of the batch: replayed questions in one block would all fall into one update.
    """
    placed = [((i + 0.5) / len(part), part[i]) for part in (first, second) for i in range(len(part))]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]

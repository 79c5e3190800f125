"""Figures of a benchmark from the scores of its samples. Fractions, not percentages; no dependency but the standard library.

Two standard errors, because there are two questions. `stderr_questions`: how far the mean would move with other questions
of the same kind, the standard deviation of the questions' means over the square root of their number. `stderr_samples`:
how far it would move on the same questions with other samples, sqrt(sum over questions of s_q^2 / n_q) / Q, s_q^2 the
variance between a question's samples. Both divide by one less than the count, and are None where that is zero.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import fmean, variance
from typing import Any

PASSED = 0.5  # a score above it is a success


def pass_at_k(n: int, successes: int, k: int) -> float:
    """Unbiased probability that one of `k` samples succeeds, from `successes` of `n` (Chen et al. 2021); 1 <= k <= n."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - comb(n - successes, k) / comb(n, k)


def standard_error_questions(means: Sequence[float]) -> float | None:
    """Standard error of the mean of `means`, questions as the units drawn."""
    return sqrt(variance(means) / len(means)) if len(means) > 1 else None


def standard_error_samples(scores: Sequence[Sequence[float]]) -> float | None:
    """Standard error of the mean with the questions fixed and their samples drawn; `scores[question][sample]`."""
    if any(len(samples) < 2 for samples in scores):
        return None
    return sqrt(sum(variance(samples) / len(samples) for samples in scores)) / len(scores)


def summarise(
    scores: Sequence[Sequence[float]], tokens: Sequence[int], truncated: Sequence[bool], **counts: float
) -> dict[str, Any]:
    """Figures of one benchmark.

    Args:
        scores: `scores[question][sample]` in [0, 1]; at least one question, the same number of samples for each.
        tokens: length of every response in tokens.
        truncated: whether every response was cut at its limit.
        counts: further counts to keep, as they are.
    """
    n = len(scores[0])
    means = [fmean(samples) for samples in scores]
    passed = [sum(score > PASSED for score in samples) for samples in scores]
    ks = [1 << i for i in range(n.bit_length()) if 1 << i <= n]
    return {
        "questions": len(scores),
        "samples": n,
        "mean": fmean(means),
        "stderr_questions": standard_error_questions(means),
        "stderr_samples": standard_error_samples(scores),
        "pass_at": {str(k): fmean(pass_at_k(n, c, k) for c in passed) for k in ks},
        "tokens_mean": fmean(tokens),
        "tokens_max": max(tokens),
        "truncated": fmean(truncated),
        **counts,
    }

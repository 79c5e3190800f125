"""Which stored trajectory of a question to replay (section 4.1): by default the one with the lowest mean token entropy now."""

from dataclasses import dataclass

import numpy as np
import torch

from recipe.exgrpo.core.config import SCORED_SELECTIONS


@dataclass(frozen=True)
class Scores:
    """Scores of candidate trajectories under the current policy, each float64 [n].

    entropy: H(o) = 1/|o| sum_t H(pi_theta(. | q, o_<t)), in nats. nll: 1/|o| sum_t -log pi_theta(o_t | q, o_<t), in nats;
    the perplexity is its exponential, which orders alike.
    """

    entropy: np.ndarray
    nll: np.ndarray

    def __getitem__(self, index) -> "Scores":
        return Scores(self.entropy[index], self.nll[index])


def needs_scores(select: str) -> bool:
    """Whether a selection rule needs a forward pass over the candidates."""
    return select in SCORED_SELECTIONS


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` [n, L] where `mask` [n, L] is true, per row, float64 [n]. Raises ValueError on an empty row."""
    mask = mask.bool()
    lengths = mask.sum(-1)
    if bool((lengths == 0).any()):
        raise ValueError("a candidate trajectory has no response token to score")
    return torch.where(mask, values.double(), 0.0).sum(-1) / lengths


def choose(select: str, count: int, scores: Scores | None, rng: np.random.Generator) -> int:
    """Index of the trajectory to replay among `count` candidates in order of storage (ties: the earliest).

    A candidate whose score is not finite is taken only when none is finite. Raises ValueError without candidates, or when
    the rule needs scores and gets none.
    """
    if count == 0:
        raise ValueError("a question without stored trajectories cannot be replayed")
    if select == "random":
        return int(rng.integers(count))
    if select in ("newest", "oldest"):
        return count - 1 if select == "newest" else 0
    if scores is None:
        raise ValueError(f"selection {select!r} needs the candidates' scores")
    values = scores.nll if select == "lowest_perplexity" else scores.entropy
    if select == "highest_entropy":
        values = -values
    return int(np.argmin(np.where(np.isfinite(values), values, np.inf)))

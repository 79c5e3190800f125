"""Scores of stored trajectories under the current policy (section 4.1): mean token entropy and negative log-likelihood.

Means run over the model's own response tokens, one trajectory at a time; how they order trajectories is `policies.rank`.
"""

from dataclasses import dataclass

import numpy as np
import torch


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


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` [n, L] where `mask` [n, L] is true, per row, float64 [n]. Raises ValueError on an empty row."""
    mask = mask.bool()
    lengths = mask.sum(-1)
    if bool((lengths == 0).any()):
        raise ValueError("a candidate trajectory has no response token to score")
    return torch.where(mask, values.double(), 0.0).sum(-1) / lengths

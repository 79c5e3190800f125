"""Scores of stored trajectories under the current policy: entropy and likelihood (section 4.1), headroom and drift.

Means run over the model's own response tokens, one trajectory at a time; how they order trajectories is `policies.rank`.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch


@dataclass(frozen=True)
class Scores:
    """Scores of candidate trajectories under the current policy, each float64 [n].

    entropy: H(o) = 1/|o| sum_t H(pi_theta(. | q, o_<t)), in nats. nll: 1/|o| sum_t -log pi_theta(o_t | q, o_<t), in nats;
    the perplexity is its exponential, which orders alike. headroom: how far the probabilities of its tokens can still move the
    way of its advantage (`headroom`). drift: 1/|o| sum_t (log pi_theta - log pi_past)^2, in squared nats, with the log-probs
    that are stored. The last two are those of Headroom-Drift Replay (arXiv 2609.03941), of one trajectory; a group's are means
    over the tokens of all its members.
    """

    entropy: np.ndarray
    nll: np.ndarray
    headroom: np.ndarray
    drift: np.ndarray

    def __getitem__(self, index) -> "Scores":
        return Scores(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def headroom(probability: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """1 - pi where the advantage is above 0, pi where it is below, 0 without one; `probability` is a mean over tokens, [n]."""
    advantage = np.asarray(advantage)
    return np.where(advantage > 0, 1.0 - probability, np.where(advantage < 0, probability, 0.0))


def token_means(
    log_probs: torch.Tensor, entropy: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What scores are made of, float64 [n] each: `entropy`, `nll`, `probability`, `drift`; all arguments are [n, L].

    Values where `mask` is false are never looked at.
    """
    log_probs = torch.where(mask.bool(), log_probs.double(), 0.0)
    moved = log_probs - torch.where(mask.bool(), behaviour.double(), 0.0)
    values = {"entropy": entropy, "nll": -log_probs, "probability": log_probs.exp(), "drift": moved**2}
    return {name: masked_mean(value, mask) for name, value in values.items()}


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` [n, L] where `mask` [n, L] is true, per row, float64 [n]. Raises ValueError on an empty row."""
    mask = mask.bool()
    lengths = mask.sum(-1)
    if bool((lengths == 0).any()):
        raise ValueError("a candidate trajectory has no response token to score")
    return torch.where(mask, values.double(), 0.0).sum(-1) / lengths

"""Advantages: of a mixed group of fresh and replayed trajectories (Eq. 2; Dr.GRPO form by default), and RL-ZVP's by entropy."""

import numpy as np
import torch


def group_advantages(
    rewards: torch.Tensor, groups: np.ndarray, normalize_by_std: bool = False, eps: float = 1e-6
) -> torch.Tensor:
    """A_i = r_i - mean(group of i), divided by the group's standard deviation on request (GRPO).

    Args:
        rewards: float [n], one a trajectory, replayed ones with their stored reward.
        groups: [n], any hashable id; trajectories of one group share it and may stand in any order.
        normalize_by_std: divide by the unbiased standard deviation plus `eps`.

    Returns:
        float [n], same dtype and device. A group of one gets 0: there is nothing to compare it with.
    """
    _, inverse = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    index = torch.as_tensor(inverse, device=rewards.device, dtype=torch.long)
    size = torch.bincount(index).to(rewards.dtype)
    mean = torch.zeros_like(size).index_add_(0, index, rewards) / size
    centred = rewards - mean[index]
    if not normalize_by_std:
        return centred
    squares = torch.zeros_like(size).index_add_(0, index, centred**2)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    return centred / (std[index] + eps)


def entropy_advantages(entropies: np.ndarray, solved: bool, alpha: float) -> np.ndarray:
    """Advantages of a rollout whose group was solved by all or by none, by its tokens' entropies H (RL-ZVP, Eq. 5).

    alpha H_t where it is `solved`, -alpha (max_k H_k - H_t) where it is not: open decisions are rewarded most and punished
    least. `entropies` float [n] are those of the model's own tokens, in nats; float [n] of the same dtype.
    """
    return alpha * (entropies if solved else entropies - entropies.max(initial=0.0))

"""Registers the mixed-policy advantage estimator with verl: `algorithm.adv_estimator=exgrpo`."""

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from recipe.exgrpo.core.advantage import group_advantages

NAME = "exgrpo"


@register_adv_est(NAME)
def mixed_group_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config=None, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage of every token over the mixed group that shares a uid (fresh rollouts and the replayed trajectory).

    Args:
        token_level_rewards, response_mask: [n, L]; index: uid of each row, [n].
        config: verl's algorithm configuration; `norm_adv_by_std_in_grpo` chooses GRPO's normalisation.

    Returns:
        Advantages and returns (the same), float [n, L], zero outside the response.
    """
    by_std = bool(config is not None and config.get("norm_adv_by_std_in_grpo", False))
    scores = group_advantages(token_level_rewards.sum(-1), index, normalize_by_std=by_std)
    advantages = scores.unsqueeze(-1) * response_mask
    return advantages, advantages

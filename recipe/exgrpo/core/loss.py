"""The mixed-policy objective (Eq. 4), per token: PPO clip on fresh tokens, shaped importance weights on replayed ones.

Pure functions of tensors; how tokens are summed and averaged is the caller's business (verl's `agg_loss`).
"""

import math
from dataclasses import dataclass

import torch

from recipe.exgrpo.core.config import LossConfig

# verl bounds log-ratios so before exponentiating; kept so that fresh tokens cost exactly what they cost in stock GRPO.
LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True)
class ClipRange:
    """PPO clip: ratios outside [1 - low, 1 + high] stop pushing; `dual` (> 1) bounds the loss where the advantage is < 0."""

    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0


def importance_ratio(log_prob: torch.Tensor, behaviour_log_prob: torch.Tensor) -> torch.Tensor:
    """w = pi_theta / pi_behaviour per token, log-ratio bounded to +-20."""
    return (log_prob - behaviour_log_prob).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def clipped_loss(ratio: torch.Tensor, advantages: torch.Tensor, clip: ClipRange) -> torch.Tensor:
    """-min(w A, clip(w) A), bounded by -dual * A where A < 0 (PPO and its dual clip). Shapes as given."""
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip.low, 1 + clip.high))
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * clip.dual), loss)


def policy_shaping(log_ratio: torch.Tensor, beta: float) -> torch.Tensor:
    """Policy shaping f(w) = w / (w + beta) of w = exp(log_ratio), as sigmoid(log w - log beta): cannot overflow."""
    return torch.sigmoid(log_ratio - math.log(beta))


def replayed_loss(
    log_prob: torch.Tensor,
    behaviour_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    config: LossConfig,
    clip: ClipRange,
) -> torch.Tensor:
    """-A f(w*) with w* = pi_theta / pi_past per token, unclipped; the ablations f(w) = w and PPO clip by `config.shaping`."""
    if config.shaping == "policy":
        return -advantages * policy_shaping(log_prob - behaviour_log_prob, config.beta)
    ratio = importance_ratio(log_prob, behaviour_log_prob)
    return -advantages * ratio if config.shaping == "none" else clipped_loss(ratio, advantages, clip)


def clips_fresh(fresh_clip: str, replay_active: bool) -> bool:
    """Whether fresh tokens are clipped this step, by `exgrpo.loss.fresh_clip`."""
    return fresh_clip == "always" or (fresh_clip == "before_replay" and not replay_active)


def mixed_policy_loss(
    log_prob: torch.Tensor,
    behaviour_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    is_replayed: torch.Tensor,
    config: LossConfig,
    clip: ClipRange,
    replay_active: bool,
) -> torch.Tensor:
    """Loss of every token (Eq. 4), not yet masked or averaged.

    Args:
        log_prob, behaviour_log_prob, advantages: float [n, L]; the behaviour is pi_old on fresh rows, pi_past on replayed.
        is_replayed: bool [n].
        replay_active: whether replay has started, for `fresh_clip: before_replay`.

    Returns:
        float [n, L].
    """
    ratio = importance_ratio(log_prob, behaviour_log_prob)
    clipped = clips_fresh(config.fresh_clip, replay_active)
    fresh = clipped_loss(ratio, advantages, clip) if clipped else -advantages * ratio
    replayed = replayed_loss(log_prob, behaviour_log_prob, advantages, config, clip)
    return torch.where(is_replayed.bool().unsqueeze(-1), replayed, fresh)


@torch.no_grad()
def clip_sums(
    log_prob: torch.Tensor,
    behaviour_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    is_replayed: torch.Tensor,
    clip: ClipRange,
) -> dict[str, float]:
    """Sums over fresh tokens behind verl's `pg_clipfrac` and `ppo_kl`: tokens at the clip, and -log w."""
    fresh = mask.bool() & ~is_replayed.bool().unsqueeze(-1)
    ratio = importance_ratio(log_prob, behaviour_log_prob)
    at_clip = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high) > -advantages * ratio
    return {"clipped": float(at_clip[fresh].sum()), "kl": float(-ratio[fresh].double().log().sum())}


@torch.no_grad()
def ratio_sums(
    log_prob: torch.Tensor,
    behaviour_log_prob: torch.Tensor,
    mask: torch.Tensor,
    is_replayed: torch.Tensor,
    beta: float,
) -> dict[str, float]:
    """Sums over the tokens of `mask` [n, L] from which ratio metrics are made after adding over micro-batches and ranks.

    Returns counts, sums of w and (replayed) w^2 and f(w). With them mean w = w / tokens, mean f = shaped / tokens, and the
    effective sample size as a share is w^2 / (tokens * w_square).
    """
    ratio = importance_ratio(log_prob, behaviour_log_prob).double()
    replayed = mask.bool() & is_replayed.bool().unsqueeze(-1)
    fresh = mask.bool() & ~is_replayed.bool().unsqueeze(-1)
    past = ratio[replayed]
    return {
        "replay_tokens": float(past.numel()),
        "replay_ratio": float(past.sum()),
        "replay_ratio_square": float((past**2).sum()),
        "replay_shaped": float((past / (past + beta)).sum()),
        "fresh_tokens": float(fresh.sum()),
        "fresh_ratio": float(ratio[fresh].sum()),
    }


def ratio_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Means and effective sample size (share of tokens, 0 to 1) from `ratio_sums`; zero where there were no tokens."""
    past, fresh = sums["replay_tokens"], sums["fresh_tokens"]
    square = past * sums["replay_ratio_square"]
    return {
        "replay_ratio_mean": sums["replay_ratio"] / past if past else 0.0,
        "replay_shaped_mean": sums["replay_shaped"] / past if past else 0.0,
        "replay_ess": sums["replay_ratio"] ** 2 / square if square else 0.0,
        "fresh_ratio_mean": sums["fresh_ratio"] / fresh if fresh else 0.0,
    }

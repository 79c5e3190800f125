"""Loss (Eq. 4) and advantage (Eq. 2) in verl's signatures: the numbers come from `core`, averages are verl's own.

The loss is set once on the workers through the public `set_loss_fn`, the advantage is the estimator
`algorithm.adv_estimator=exgrpo`; a policy without a loss of its own leaves verl's `ppo_loss` and `grpo` in place.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss, kl_penalty, register_adv_est
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig
from verl.workers.utils.padding import no_padding_2_padding

from recipe.exgrpo.core.advantage import group_advantages
from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.loss import ClipRange, clip_sums, mixed_policy_loss, ratio_metrics, ratio_sums
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE

ESTIMATOR = "exgrpo"
# Metrics that add up over micro-batches, ranks and updates; the driver divides them.
SUMS = "sums/"
TOKEN_FIELDS = ("response_mask", "old_log_probs", "advantages", "rollout_is_weights", "ref_log_prob")


@register_adv_est(ESTIMATOR)
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


def clip_range(config: ActorConfig) -> ClipRange:
    """verl's clip settings of the actor."""
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    return ClipRange(low=low, high=high, dual=config.get("clip_ratio_c", 3.0))


def _normaliser(config: ActorConfig, data: TensorDict) -> dict:
    """Mini-batch totals over all micro-batches and ranks, so that the loss does not depend on how they were split.

    `sequences`, where the driver sends it, is what sums over sequences are divided by instead of the rows of the mini-batch:
    extra rows, and the empty ones that make mini-batches equal, then count as the step says, and alike in all of its updates.
    """
    sequences = tu.get_non_tensor_data(data, "sequences", default=None)
    return {
        "loss_agg_mode": config.loss_agg_mode,
        "loss_scale_factor": config.loss_scale_factor,
        **{key: data[key] for key in ("dp_size", "batch_num_tokens")},
        "global_batch_size": data["global_batch_size"] if sequences is None else sequences,
    }


def _averages(config: ActorConfig, scale: str, data: TensorDict) -> tuple[Callable, Callable]:
    """How token losses and other token terms are averaged, as functions of (values, mask): `exgrpo.loss.scale`.

    Gradients are averaged over ranks, so that verl's normaliser carries a factor of their number, which the released code's
    has not.
    """
    norm = _normaliser(config, data)

    def constant(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return agg_loss(loss_mat=values, loss_mask=mask, **norm)

    if scale == "dr_grpo":
        return constant, constant
    rows = norm["global_batch_size"] / norm["dp_size"]
    return lambda values, mask: constant(values, mask) * rows, masked_mean


def _padded(values: torch.Tensor | None, data: TensorDict) -> torch.Tensor | None:
    return None if values is None else no_padding_2_padding(values, data)


def exgrpo_loss(
    config: ActorConfig,
    loss_config: LossConfig,
    model_output: dict,
    data: TensorDict,
    dp_group=None,
) -> tuple[torch.Tensor, dict]:
    """Mixed-policy loss of one micro-batch (Eq. 4), minus the entropy bonus, plus the optional KL term.

    Args:
        config: verl's actor configuration (clip range, aggregation mode, coefficients).
        model_output: nested `log_probs` and, when needed, `entropy`, over whole sequences.
        data: the micro-batch; 0-d `is_replayed` and `in_update` are required on every row (KeyError without them: a batch that
            skipped injection must not train silently as if it held no replay). Rows with `in_update` = 0 leave every term,
            the normaliser excepted.

    Returns:
        Scalar loss and metrics that add up over micro-batches.
    """
    is_replayed = data[FLAG].bool()
    replay_active = bool(tu.get_non_tensor_data(data, "replay_active", default=True))
    log_prob, entropy = _padded(model_output["log_probs"], data), _padded(model_output.get("entropy"), data)
    average, average_term = _averages(config, loss_config.scale, data)
    clip = clip_range(config)
    tokens = data.select(*[name for name in TOKEN_FIELDS if name in data]).to_padded_tensor()
    mask = tokens["response_mask"].bool() & data[IN_UPDATE].bool().unsqueeze(-1)
    token_loss = mixed_policy_loss(
        log_prob,
        tokens["old_log_probs"],
        tokens["advantages"],
        is_replayed,
        loss_config,
        clip,
        replay_active,
    )
    if "rollout_is_weights" in tokens:
        # They correct today's rollout engine. A stored trajectory has its own correction, or by `importance: old` none.
        weights = tokens["rollout_is_weights"]
        token_loss = token_loss * torch.where(is_replayed.unsqueeze(-1), torch.ones_like(weights), weights)
    terms = {"actor/pg_loss": average(token_loss, mask)}
    loss = terms["actor/pg_loss"]
    if entropy is not None:
        terms["actor/entropy_loss"] = average_term(entropy, mask)
        loss = loss - config.entropy_coeff * terms["actor/entropy_loss"]
    if config.use_kl_loss:
        divergence = kl_penalty(logprob=log_prob, ref_logprob=tokens["ref_log_prob"], kl_penalty=config.kl_loss_type)
        terms["kl_loss"] = average_term(divergence, mask)
        loss = loss + terms["kl_loss"] * config.kl_loss_coef
    terms |= _token_sums(log_prob.detach(), tokens, mask, is_replayed, loss_config.beta, clip)
    return loss, Metric.from_dict(terms, aggregation=AggregationType.SUM)


def _token_sums(log_prob, tokens: TensorDict, mask, is_replayed, beta: float, clip: ClipRange) -> dict[str, float]:
    behaviour, advantages = tokens["old_log_probs"], tokens["advantages"]
    sums = ratio_sums(log_prob, behaviour, mask, is_replayed, beta)
    sums |= clip_sums(log_prob, behaviour, advantages, mask, is_replayed, clip)
    return {f"{SUMS}{name}": value for name, value in sums.items()}


def replay_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Driver side: take the sums out of a step's actor metrics and return the means made of them, all zero without sums."""
    prefix = f"actor/{SUMS}"
    sums = defaultdict(float, {n.removeprefix(prefix): metrics.pop(n) for n in list(metrics) if n.startswith(prefix)})
    means = {f"actor/{name}": value for name, value in ratio_metrics(sums).items()}
    if sums["fresh_tokens"]:
        means["actor/pg_clipfrac"] = sums["clipped"] / sums["fresh_tokens"]
        means["actor/ppo_kl"] = sums["kl"] / sums["fresh_tokens"]
    return means

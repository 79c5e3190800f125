"""verl's naive reward manager, telling the reward function whether a response was cut off at the length limit.

verl 0.9.1 does not: vLLM's finish reason becomes "completed" for "stop" and "length" alike (vllm_async_server), and
`compute_score` is given the text without special tokens. The reward manager is the first place that has the tokens. Chosen by

    reward.reward_manager.source=importlib
    reward.reward_manager.name=RewardManager
    reward.reward_manager.module.path=pkg://verl_ext.rewards.manager
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager


def is_truncated(response_ids: torch.Tensor, limit: int, special_ids: frozenset[int]) -> bool:
    """Whether a response ended because it was too long.

    Args:
        response_ids: its token ids without padding, int [L].
        limit: most tokens a response may have.
        special_ids: ids of the tokenizer's special tokens; one of them at the end is the end that the model chose.
    """
    return 0 < len(response_ids) >= limit and int(response_ids[-1]) not in special_ids


def response_limit(rollout: Any, prompt_length: int) -> int:
    """Most tokens that verl's rollout servers generate after a prompt of so many tokens.

    Args:
        rollout: `actor_rollout_ref.rollout`. Without a `max_model_len` the model's own context is not known here.
    """
    limits = [rollout.response_length, rollout.prompt_length + rollout.response_length - prompt_length]
    if rollout.max_model_len is not None:
        limits.append(rollout.max_model_len - prompt_length)
    return int(min(limits))


class RewardManager(NaiveRewardManager):
    """Adds `truncated` to the `extra_info` of each sample; everything else is verl's."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **kwargs: Any):
        super().__init__(config, tokenizer, compute_score, **kwargs)
        added = tokenizer.added_tokens_decoder.items()  # <|eot_id|> of Llama 3 is special without being a named one
        self._special_ids = frozenset((*tokenizer.all_special_ids, *(id_ for id_, token in added if token.special)))

    async def run_single(self, data: DataProto) -> dict:
        """Score of the last sequence of `data`, as verl's."""
        item = data[-1:][0]
        width = item.batch["responses"].shape[-1]
        prompt, response = (int(mask.sum()) for mask in item.batch["attention_mask"].tensor_split([-width]))
        limit = response_limit(self.config.actor_rollout_ref.rollout, prompt)
        truncated = is_truncated(item.batch["responses"][:response], limit, self._special_ids)
        column = np.empty(len(data), dtype=object)
        column[:] = [{**(info or {}), "truncated": truncated} for info in self._extra_infos(data)]
        data.non_tensor_batch["extra_info"] = column
        return await super().run_single(data)

    @staticmethod
    def _extra_infos(data: DataProto) -> list[dict | None]:
        return list(data.non_tensor_batch.get("extra_info", [None] * len(data)))

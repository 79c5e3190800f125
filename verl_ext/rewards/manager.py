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
    return len(response_ids) >= limit and int(response_ids[-1]) not in special_ids


class RewardManager(NaiveRewardManager):
    """Adds `truncated` to the `extra_info` of each sample; everything else is verl's."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **kwargs: Any):
        super().__init__(config, tokenizer, compute_score, **kwargs)
        self._limit = int(config.actor_rollout_ref.rollout.response_length)
        self._special_ids = frozenset(tokenizer.all_special_ids)

    async def run_single(self, data: DataProto) -> dict:
        """Score of the last sequence of `data`, as verl's."""
        item = data[-1:][0]
        length = int(item.batch["attention_mask"][-item.batch["responses"].shape[-1] :].sum())
        truncated = is_truncated(item.batch["responses"][:length], self._limit, self._special_ids)
        column = np.empty(len(data), dtype=object)
        column[:] = [{**(info or {}), "truncated": truncated} for info in self._extra_infos(data)]
        data.non_tensor_batch["extra_info"] = column
        return await super().run_single(data)

    @staticmethod
    def _extra_infos(data: DataProto) -> list[dict | None]:
        return list(data.non_tensor_batch.get("extra_info", [None] * len(data)))

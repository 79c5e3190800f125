"""verl's naive reward manager, telling the reward function whether a response was cut off at the length limit, and showing it
the model's own text only, not what tools have answered (tool_loop.py).

verl 0.9.1 does not: vLLM's finish reason becomes "completed" for "stop" and "length" alike (vllm_async_server), and
`compute_score` is given the text without special tokens. The reward manager is the first place that has the tokens. Chosen by

    reward.reward_manager.source=importlib
    reward.reward_manager.name=RewardManager
    reward.reward_manager.module.path=pkg://verl_ext.rewards.manager
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from verl_ext.tools import SPANS


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


def own_tokens(
    response_ids: torch.Tensor, spans: Iterable[tuple[int, int]], newline: Sequence[int], skipped: int
) -> torch.Tensor:
    """A copy of a response, int [L], with a line break in the place of what stands in each of `spans` ([start, stop)).

    `newline` are its ids, as far as they fit, and `skipped` is a special id, which decoding leaves out.
    """
    shown = response_ids.clone()
    for start, stop in spans:
        shown[start:stop] = skipped
        ids = newline[: stop - start]
        shown[start : start + len(ids)] = torch.tensor(ids, dtype=shown.dtype)
    return shown


class RewardManager(NaiveRewardManager):
    """Adds `truncated` to the `extra_info` of each sample and hides what tools wrote; everything else is verl's."""

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
        told = item.non_tensor_batch.get("tool_extra_fields") or {}
        if told.get(SPANS):
            newline = self.tokenizer.encode("\n", add_special_tokens=False)
            responses = data.batch["responses"].clone()
            responses[-1] = own_tokens(responses[-1], told[SPANS], newline, self.tokenizer.eos_token_id)
            data.batch["responses"] = responses
        return await super().run_single(data)

    @staticmethod
    def _extra_infos(data: DataProto) -> list[dict | None]:
        return list(data.non_tensor_batch.get("extra_info", [None] * len(data)))

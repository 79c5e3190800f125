"""Reading a finished step back from TransferQueue: outcomes of every group, then only the tokens worth storing."""

from collections.abc import Mapping

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from recipe.exgrpo.replay import Group, ReplayManager
from verl_ext.injection import Replay, siblings


def fresh_keys(batch: KVBatchMeta, replays: list[Replay]) -> list[str]:
    """Keys of this step's own rollouts: neither replayed nor padding (padding rows may inherit any other flag)."""
    replayed = {replay.key for replay in replays}
    return [k for k, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding") and k not in replayed]


def read_outcomes(keys: list[str], partition_id: str) -> tuple[dict[str, float], list[dict]]:
    """Reward of each trajectory (the sum of its token scores), and what else the reward function reported of it."""
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["rm_scores", "extra_fields"])
    rewards = {key: float(data["rm_scores"][i].sum()) for i, key in enumerate(keys)}
    fields = [getattr(item, "data", item) for item in data["extra_fields"]]
    return rewards, [item.get("reward_extra_info") or {} for item in fields]


def batch_metrics(rewards: dict[str, float], threshold: float) -> dict[str, float]:
    """Over fresh rollouts only: mean reward, groups in the batch, and how many were solved by all or by none of them."""
    solved = [[rewards[key] > threshold for key in keys] for keys in siblings(list(rewards)).values()]
    return {
        "batch/pass_rate": float(np.mean(list(rewards.values()))),
        "batch/questions": float(len(solved)),
        "batch/solve_all": float(sum(all(group) for group in solved)),
        "batch/solve_none": float(sum(not any(group) for group in solved)),
    }


def collect(
    replay: ReplayManager,
    batch: KVBatchMeta,
    rewards: dict[str, float],
    replays: list[Replay],
    questions: Mapping[str, str],
    step: int,
) -> None:
    """Grade all groups and store their fresh successes with the log-probs of pi_old (training engine).

    `questions` maps uid -> question id in batch order, which fixes the order of storage whatever order rollouts came in.
    """
    fresh = siblings(sorted(rewards, key=lambda key: int(key.rsplit("_", 2)[1])))
    past = {replay.key.rsplit("_", 2)[0]: replay.trajectory.reward for replay in replays}
    uids = [uid for uid in questions if uid in fresh]
    groups = [Group(questions[uid], [rewards[key] for key in fresh[uid]], past.get(uid)) for uid in uids]
    chosen = [
        (groups[position].question, fresh[uids[position]][member])
        for position, members in replay.grade(groups).items()
        for member in members
    ]
    if chosen:
        keys = [key for _, key in chosen]
        data = tq.kv_batch_get(
            keys=keys, partition_id=batch.partition_id, select_fields=["responses", "loss_mask", "old_log_probs"]
        )
        for i, (question, key) in enumerate(chosen):
            # Not `response_mask`, from which verl's rollout correction takes the tokens that it rejects.
            check_plain(data["loss_mask"][i], key)
            replay.store(
                question, data["responses"][i].numpy(), data["old_log_probs"][i].float().numpy(), rewards[key], step
            )


def check_plain(mask: torch.Tensor, key: str) -> None:
    if not bool(mask.bool().all()):
        raise NotImplementedError(
            f"trajectory {key} has response tokens that are not the model's own (tool or multi-turn data); "
            "ExGRPO stores single-turn text only: set actor_rollout_ref.rollout.multi_turn.enable=false."
        )

"""Reading a finished step back from TransferQueue: outcomes of every group, then only the tokens worth storing."""

from collections.abc import Mapping

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.exgrpo.core.policies.replay import Group, ReplayManager
from recipe.exgrpo.trainer.injection import Replay, session_of, siblings, uid_of


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
    fresh = ordered_groups(rewards, questions)
    past = {uid_of(replay.key): replay.trajectory.reward for replay in replays}
    groups = [Group(questions[uid], [rewards[key] for key in keys], past.get(uid)) for uid, keys in fresh]
    chosen = [
        (groups[position].question, fresh[position][1][member])
        for position, members in replay.grade(groups).items()
        for member in members
    ]
    if chosen:
        data = read_plain([key for _, key in chosen], batch.partition_id)
        for i, (question, key) in enumerate(chosen):
            replay.store(
                question, data["responses"][i].numpy(), data["old_log_probs"][i].float().numpy(), rewards[key], step
            )


def ordered_groups(rewards: Mapping[str, float], questions: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """(uid, keys) of every group with a rollout: groups in the plan's order, members by session, whatever came first."""
    groups = siblings(sorted(rewards, key=session_of))
    return [(uid, groups[uid]) for uid in questions if uid in groups]


def read_plain(keys: list[str], partition_id: str, *fields: str) -> TensorDict:
    """`responses`, `old_log_probs` and further `fields` of rows worth keeping.

    Raises NotImplementedError for a response with tokens that are not the model's own.
    """
    wanted = ["responses", "loss_mask", "old_log_probs", *fields]
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=wanted)
    for i, key in enumerate(keys):
        # Not `response_mask`, from which verl's rollout correction takes the tokens that it rejects.
        _check_plain(data["loss_mask"][i], key)
    return data


def _check_plain(mask: torch.Tensor, key: str) -> None:
    if not bool(mask.bool().all()):
        raise NotImplementedError(
            f"trajectory {key} has response tokens that are not the model's own (tool or multi-turn data); "
            "ExGRPO stores single-turn text only: set actor_rollout_ref.rollout.multi_turn.enable=false."
        )

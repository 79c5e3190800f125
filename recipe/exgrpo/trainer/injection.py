"""Putting replayed trajectories into a rollout batch: rows of TransferQueue built from stored ids, next to their siblings.

Key names follow verl's `{uid}_{session}_{index}`; the replayed trajectory of a question takes session K - 1.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipe.exgrpo.core.buffer.experience import Trajectory

FLAG = "is_replayed"
# Fields with one entry a token that a replayed row cannot have; each with the key that asks for it.
UNSUPPORTED_FIELDS = {
    "routed_experts": "actor_rollout_ref.rollout.enable_rollout_routing_replay",
    "teacher_ids": "distillation.enabled",
    "teacher_logprobs": "distillation.enabled",
}


@dataclass(frozen=True)
class Replay:
    """A stored trajectory on its way into the batch: the row's key, and the sibling whose prompt and columns it shares."""

    key: str
    sibling: str
    trajectory: Trajectory


def uid_of(key: str) -> str:
    """The group that a trajectory key belongs to."""
    return key.rsplit("_", 2)[0]


def siblings(keys: list[str]) -> dict[str, list[str]]:
    """Trajectory keys grouped by uid, in batch order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[uid_of(key)].append(key)
    return dict(groups)


def read_rows(keys: list[str], partition_id: str) -> list[dict]:
    """All fields of some rows, each a dict of own copies (tensors, or plain Python objects)."""
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id)
    return [{name: _own(column[i]) for name, column in data.items()} for i in range(len(keys))]


def _own(value):
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(getattr(value, "data", value))


def replayed_row(sibling: dict, trajectory: Trajectory, session: int) -> dict:
    """The row of a replayed trajectory: its sibling's prompt and data columns, the stored response and its log-probs."""
    for name, key in UNSUPPORTED_FIELDS.items():
        if isinstance(sibling.get(name), torch.Tensor):
            raise NotImplementedError(
                f"{key} adds the per-token field {name!r}, which a replayed trajectory does not have."
            )
    response = torch.as_tensor(trajectory.token_ids, dtype=torch.int64)
    input_ids = torch.cat([sibling["prompts"], response])
    mask = torch.ones_like(response)
    score = torch.zeros(len(response), dtype=sibling["rm_scores"].dtype)
    score[-1] = trajectory.reward
    row = sibling | {
        "responses": response,
        "response_mask": mask,
        "loss_mask": mask.clone(),
        "input_ids": input_ids,
        "position_ids": torch.arange(len(input_ids), dtype=sibling["position_ids"].dtype),
        "rm_scores": score,
        "session_id": session,
        "extra_fields": dict(sibling.get("extra_fields") or {}) | {"reward_extra_info": {}},
        FLAG: torch.tensor(1.0),
    }
    if "rollout_log_probs" in sibling:
        row["rollout_log_probs"] = torch.as_tensor(trajectory.log_probs, dtype=sibling["rollout_log_probs"].dtype)
    return row


def replayed_tag(tag: dict, row: dict, trajectory: Trajectory) -> dict:
    """The sibling's tag with the replayed lengths, and the weights version that produced the trajectory."""
    prompt_len, response_len = len(row["prompts"]), len(row["responses"])
    version = trajectory.birth_step - 1
    return tag | {
        "prompt_len": prompt_len,
        "response_len": response_len,
        "seq_len": prompt_len + response_len,
        "min_global_steps": version,
        "max_global_steps": version,
    }


def flag_fresh(batch: KVBatchMeta) -> None:
    """Mark every row as fresh. All rows need the flag: a TransferQueue read returns only fields that every row has."""
    flags = TensorDict({FLAG: torch.zeros(len(batch.keys))}, batch_size=len(batch.keys))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=flags)


def inject(batch: KVBatchMeta, replays: list[Replay], group_size: int, uids: list[str]) -> KVBatchMeta:
    """A new batch with every fresh row flagged and the replayed rows added, groups together and in the order of `uids`.

    The order decides which mini-batch a group falls into; the order of arrival would make that a matter of luck.
    """
    flag_fresh(batch)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    if replays:
        sources = read_rows([replay.sibling for replay in replays], batch.partition_id)
        rows = [replayed_row(s, r.trajectory, group_size - 1) for s, r in zip(sources, replays, strict=True)]
        new_tags = [
            replayed_tag(tags[replay.sibling], row, replay.trajectory)
            for replay, row in zip(replays, rows, strict=True)
        ]
        keys = [replay.key for replay in replays]
        tq.kv_batch_put(
            keys=keys, partition_id=batch.partition_id, fields=list_of_dict_to_tensordict(rows), tags=new_tags
        )
        tags |= dict(zip(keys, new_tags, strict=True))
    return _arranged(batch, tags, uids)


def in_plan_order(batch: KVBatchMeta, uids: list[str]) -> KVBatchMeta:
    """The same rows, groups together and in the order of `uids`, so that a run with fixed sampling seeds repeats."""
    return _arranged(batch, dict(zip(batch.keys, batch.tags, strict=True)), uids)


def _arranged(batch: KVBatchMeta, tags: dict[str, dict], uids: list[str]) -> KVBatchMeta:
    """A batch of the keys of `tags`: groups in the order of `uids`, members by session."""
    rank = {uid: i for i, uid in enumerate(uids)}
    order = sorted(tags, key=lambda key: (rank[uid_of(key)], *session_of(key)))
    # A fresh object: KVBatchMeta fixes its size at construction. Extra info (temperature and the like) travels along.
    merged = KVBatchMeta(partition_id=batch.partition_id, keys=order, tags=[tags[key] for key in order])
    merged.extra_info.update(batch.extra_info)
    return merged


def session_of(key: str) -> tuple[int, int]:
    """Session and index of a trajectory key: its place in its group."""
    _, session, index = key.rsplit("_", 2)
    return int(session), int(index)


def write_behaviour_log_probs(replays: list[Replay], partition_id: str) -> None:
    """Replace the replayed rows' `old_log_probs` by the stored pi_past, so that w* = pi_theta / pi_past (Eq. 4).

    In the precision of the fresh rows': TransferQueue keeps one dtype a field, and rows of another drop out of its books. What
    was stored had that precision, unless the run went on in another one.
    """
    if replays:
        keys = [replay.key for replay in replays]
        old = tq.kv_batch_get(keys=keys[:1], partition_id=partition_id, select_fields=["old_log_probs"])
        dtype = old["old_log_probs"].dtype
        values = [torch.as_tensor(replay.trajectory.log_probs, dtype=dtype) for replay in replays]
        fields = TensorDict({"old_log_probs": nested(values)}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=fields)


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    """Ragged rows as one jagged nested tensor."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

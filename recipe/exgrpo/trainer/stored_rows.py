"""Stored trajectories as rows of TransferQueue: beside their siblings (`inject`), or in the places of others (`exchange`).

Those on top of the batch are in `extra_rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.policies.policy import Placed
from recipe.exgrpo.trainer.rows import (
    FLAG,
    check_supported,
    in_plan_order,
    nested,
    put,
    put_flag,
    read_rows,
    rebuilt,
    session_of,
    uid_of,
)
from verl_ext.tools import FAILURES, SPANS

# What `extra_fields` says of one rollout alone: empty on a stored row.
OF_THE_ROLLOUT = ("reward_extra_info", "turn_scores", "tool_rewards", FAILURES, SPANS)
# Per-token fields of a fresh row that a placed one cannot have. Rows without a field that others have are legal in
# TransferQueue: a read of all fields returns those that every row has, and nothing after this point asks for these.
FRESH_ONLY = ("log_probs", "entropy")


@dataclass(frozen=True)
class Joined:
    """A stored trajectory on its way into its question's group: the row's key, and the sibling whose prompt it shares."""

    key: str
    sibling: str
    trajectory: Trajectory


def stored_row(sibling: dict, trajectory: Trajectory, session: int) -> dict:
    """The row of a stored trajectory: prompt and data columns of `sibling`, the stored response and its log-probs."""
    check_supported(sibling, f"beside {trajectory.question!r}")
    response = torch.as_tensor(trajectory.token_ids, dtype=torch.int64)
    input_ids = torch.cat([sibling["prompts"], response])
    mask = torch.as_tensor(trajectory.mask, dtype=torch.int64)
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
        "num_turns": trajectory.turns,
        "extra_fields": _without_outcome(sibling.get("extra_fields") or {}),
        FLAG: torch.tensor(1.0),
    }
    if "rollout_log_probs" in sibling:
        row["rollout_log_probs"] = torch.as_tensor(trajectory.log_probs, dtype=sibling["rollout_log_probs"].dtype)
    return row


def _without_outcome(fields: dict) -> dict:
    return fields | {name: type(fields[name])() for name in OF_THE_ROLLOUT if name in fields}


def stored_tag(tag: dict, row: dict, trajectory: Trajectory) -> dict:
    """The sibling's tag with the stored lengths, and the weights version that produced the trajectory."""
    prompt_len, response_len = len(row["prompts"]), len(row["responses"])
    version = trajectory.birth_step - 1
    return tag | {
        "prompt_len": prompt_len,
        "response_len": response_len,
        "seq_len": prompt_len + response_len,
        "min_global_steps": version,
        "max_global_steps": version,
    }


def inject(batch: KVBatchMeta, joined: Sequence[Joined], uids: Sequence[str]) -> KVBatchMeta:
    """A new batch with every fresh row flagged and the stored rows added, in the plan's order."""
    put_flag(FLAG, batch, (), 1.0)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    if joined:
        siblings = read_rows([one.sibling for one in joined], batch.partition_id)
        rows = [
            stored_row(sibling, one.trajectory, session_of(one.key)[0])
            for sibling, one in zip(siblings, joined, strict=True)
        ]
        new_tags = [stored_tag(tags[one.sibling], row, one.trajectory) for one, row in zip(joined, rows, strict=True)]
        tags |= put_rows([one.key for one in joined], rows, new_tags, batch.partition_id)
    return in_plan_order(batch, uids, tags)


def write_behaviour_log_probs(joined: Sequence[Joined], partition_id: str) -> None:
    """Replace the stored rows' `old_log_probs` by the stored pi_past, so that w* = pi_theta / pi_past (Eq. 4).

    In the precision of the fresh rows': TransferQueue keeps one dtype per field, and loses track of rows of another. What was
    stored had that precision, unless the run went on in another one.
    """
    if not joined:
        return
    keys = [one.key for one in joined]
    old = tq.kv_batch_get(keys=keys[:1], partition_id=partition_id, select_fields=["old_log_probs"])
    dtype = old["old_log_probs"].dtype
    values = nested([torch.as_tensor(one.trajectory.log_probs, dtype=dtype) for one in joined])
    put(keys, partition_id, old_log_probs=values)


def exchange(
    batch: KVBatchMeta, slots: Sequence[str], placed: Sequence[Placed], step: int
) -> tuple[KVBatchMeta, list[str], dict[str, dict]]:
    """A batch in which stored rows stand where the first of the rows `slots` stood, their keys, and the cleared rows by key.

    The batch keeps its size and order, so that every rank and mini-batch keeps its share.
    """
    if not placed:
        return batch, [], {}
    taken = list(slots[: len(placed)])
    names = [f"refill{step}x{i}_0_0" for i in range(len(placed))]
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    old = read_rows(taken, batch.partition_id)
    rows = [placed_row(slot, name, one) for slot, name, one in zip(old, names, placed, strict=True)]
    new_tags = [stored_tag(tags[key], row, one.trajectory) for key, row, one in zip(taken, rows, placed, strict=True)]
    tags |= put_rows(names, rows, new_tags, batch.partition_id)
    tq.kv_clear(keys=taken, partition_id=batch.partition_id)
    new = dict(zip(taken, names, strict=True))
    return rebuilt(batch, [new.get(key, key) for key in batch.keys], tags), names, dict(zip(taken, old, strict=True))


def placed_row(slot: dict, name: str, placed: Placed) -> dict:
    """The row of a placed trajectory: its own prompt, ids and log-probs, and what else a row has from `slot`, another row."""
    trajectory = placed.trajectory
    prompt = torch.as_tensor(trajectory.prompt_ids, dtype=slot["prompts"].dtype)
    row = stored_row(slot | {"prompts": prompt}, trajectory, session_of(name)[0])
    row["old_log_probs"] = torch.as_tensor(trajectory.log_probs, dtype=slot["old_log_probs"].dtype)
    row["uid"] = uid_of(name)
    return {key: value for key, value in row.items() if key not in FRESH_ONLY}


def put_rows(keys: list[str], rows: list[dict], tags: list[dict], partition_id: str) -> dict[str, dict]:
    """Write new rows with their tags; returns the tags by key."""
    tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=list_of_dict_to_tensordict(rows), tags=tags)
    return dict(zip(keys, tags, strict=True))

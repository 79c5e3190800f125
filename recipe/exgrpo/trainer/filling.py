"""Fill mode in the batch: groups without signal leave the update, and past successes take their rows in TransferQueue.

Called once log-probs are known: what this step stores are log-probs of pi_old, and what it replays needs no forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.policies.fill import Entry, Filled, FillManager, Response
from recipe.exgrpo.core.policies.replay import Group
from recipe.exgrpo.trainer.collection import ordered_groups, read_plain
from recipe.exgrpo.trainer.injection import nested, read_rows, replayed_row, replayed_tag, uid_of
from recipe.exgrpo.trainer.masking import flag_rows

# Per-token fields of a fresh row that a filled one cannot have. Rows without a field that others have are legal in
# TransferQueue: a read of all fields returns those that every row has, and nothing after this point asks for these.
FRESH_ONLY = ("log_probs", "entropy")


@dataclass(frozen=True)
class Filling:
    """The batch to train on, its filled rows with their frozen advantages, and how many rows are out of the update."""

    batch: KVBatchMeta
    advantages: dict[str, float]
    dropped: int


def fill_batch(
    manager: FillManager, batch: KVBatchMeta, rewards: dict[str, float], questions: Mapping[str, str], step: int
) -> Filling:
    """Exchange the rows of groups without signal for past successes, and collect this step's.

    `rewards` are those of this step's rollouts by key, padding left out; `questions` maps uid -> question id in batch order,
    which fixes the order of draws whatever order rollouts came in. The batch keeps its size and order: a filled row stands
    where a dropped one stood, so that every rank and mini-batch keeps its share.
    """
    groups = ordered_groups(rewards, questions)
    plan = manager.plan([Group(questions[uid], [rewards[key] for key in keys]) for uid, keys in groups])
    stored = [
        (questions[groups[i][0]], [groups[i][1][member] for member in members]) for i, members in plan.to_store.items()
    ]
    entries = _entries(stored, batch.partition_id)
    filled = manager.exchange(entries, plan.budget, step)
    leaving = {key for i in plan.dropped for key in groups[i][1]}
    slots = [key for key in batch.keys if key in leaving]
    names = [f"fill{step}x{i}_0_0" for i in range(len(filled))]
    if filled:
        batch = _exchange_rows(batch, dict(zip(slots, zip(names, filled, strict=False), strict=False)))
    flag_rows(batch, slots[len(filled) :])
    return Filling(batch, dict(zip(names, (f.advantage for f in filled), strict=True)), len(slots) - len(filled))


def write_advantages(advantages: dict[str, float], partition_id: str) -> None:
    """Overwrite the advantages of filled rows by the frozen ones: a row alone in its group has none of its own."""
    if not advantages:
        return
    keys = list(advantages)
    own = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["advantages"])["advantages"]
    values = nested([torch.full_like(row, advantages[key]) for key, row in zip(keys, own.unbind(), strict=True)])
    fields = TensorDict({"advantages": values, "returns": values.clone()}, batch_size=len(keys))
    tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=fields)


def _entries(successes: list[tuple[str, list[str]]], partition_id: str) -> list[Entry]:
    """One entry a mixed group, from (question, keys of its successes), with the log-probs of pi_old; one read for all."""
    keys = [key for _, group in successes for key in group]
    if not keys:
        return []
    data = read_plain(keys, partition_id, "prompts")
    row = {key: i for i, key in enumerate(keys)}
    return [
        Entry(
            question,
            len(group),
            data["prompts"][row[group[0]]].numpy(),
            [Response(data["responses"][row[k]].numpy(), data["old_log_probs"][row[k]].float().numpy()) for k in group],
        )
        for question, group in successes
    ]


def _exchange_rows(batch: KVBatchMeta, slots: dict[str, tuple[str, Filled]]) -> KVBatchMeta:
    """A batch in which the keys of `slots` are replaced by new rows; the old rows leave TransferQueue."""
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    rows = [
        _filled_row(old, name, filled)
        for old, (name, filled) in zip(read_rows(list(slots), batch.partition_id), slots.values(), strict=True)
    ]
    new_tags = [
        replayed_tag(tags[key], row, _trajectory(filled))
        for row, (key, (_, filled)) in zip(rows, slots.items(), strict=True)
    ]
    names = [name for name, _ in slots.values()]
    fields = list_of_dict_to_tensordict(rows)
    tq.kv_batch_put(keys=names, partition_id=batch.partition_id, fields=fields, tags=new_tags)
    tq.kv_clear(keys=list(slots), partition_id=batch.partition_id)
    new = dict(zip(slots, names, strict=True))
    tags |= dict(zip(names, new_tags, strict=True))
    keys = [new.get(key, key) for key in batch.keys]
    merged = KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=[tags[key] for key in keys])
    merged.extra_info.update(batch.extra_info)
    return merged


def _filled_row(slot: dict, name: str, filled: Filled) -> dict:
    """The row of a past success: its own prompt, ids and log-probs, and what else a row has from the slot it takes."""
    prompt = torch.as_tensor(filled.prompt_ids, dtype=slot["prompts"].dtype)
    row = replayed_row(slot | {"prompts": prompt}, _trajectory(filled), session=0)
    row["old_log_probs"] = torch.as_tensor(filled.response.log_probs, dtype=slot["old_log_probs"].dtype)
    row["uid"] = uid_of(name)
    return {key: value for key, value in row.items() if key not in FRESH_ONLY}


def _trajectory(filled: Filled) -> Trajectory:
    """As the injection code knows it. The reward only shows in verl's statistics: the advantage is frozen."""
    response = filled.response
    mask = np.ones(len(response.token_ids), bool)
    return Trajectory(-1, filled.question, response.token_ids, response.log_probs, mask, 1.0, filled.birth_step)

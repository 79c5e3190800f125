"""All that the trainer reads from and writes to TransferQueue: keys, fresh rollouts, flags, advantages.

Key names follow verl's `{uid}_{session}_{index}`. A read returns rows of one dimension and more as jagged tensors, 0-d rows as
dense ones, and of several rows only the fields that all of them have.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.exgrpo.core.buffer import Response
from verl_ext.tools import FAILURES

FLAG = "is_replayed"  # 1 on rows of stored trajectories
# What a rollout may bring besides text, and what to change then.
UNSUPPORTED = {
    "multi_modal_inputs": "train on data without images, videos and sounds (data.image_key, video_key, audio_key)",
    "routed_experts": "set actor_rollout_ref.rollout.enable_rollout_routing_replay=false",
    "teacher_ids": "set distillation.enabled=false",
    "teacher_logprobs": "set distillation.enabled=false",
}
# 1 on rows that reach the gradient (policy term, entropy bonus and KL alike), 0 on rows that only keep their place in the
# normaliser.
IN_UPDATE = "in_update"


def uid_of(key: str) -> str:
    """The group that a trajectory key belongs to."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> tuple[int, int]:
    """Session and index of a trajectory key: its place in its group."""
    _, session, index = key.rsplit("_", 2)
    return int(session), int(index)


def by_uid(keys: Iterable[str]) -> dict[str, list[str]]:
    """Trajectory keys grouped by uid, in the order given."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[uid_of(key)].append(key)
    return dict(groups)


def ordered_groups(keys: Iterable[str], uids: Iterable[str]) -> dict[str, list[str]]:
    """uid -> keys of every group with a rollout: groups in the order of `uids`, members by session, whatever came first."""
    groups = by_uid(sorted(keys, key=session_of))
    return {uid: groups[uid] for uid in uids if uid in groups}


def put(keys: list[str], partition_id: str, **fields: torch.Tensor) -> None:
    """Write one value per row for each of `fields`."""
    tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=TensorDict(fields, batch_size=len(keys)))


def put_flag(name: str, batch: KVBatchMeta, marked: Iterable[str], value: float) -> None:
    """Write `value` into 0-d field `name` of the rows `marked`, and 1 - `value` into all others of `batch`.

    All rows need a field that a worker asks for: a read returns only what every row has.
    """
    marked = set(marked)
    put(
        batch.keys,
        batch.partition_id,
        **{name: torch.tensor([value if k in marked else 1 - value for k in batch.keys])},
    )


def read_rows(keys: list[str], partition_id: str) -> list[dict]:
    """All fields of some rows, each a dict of own copies (tensors, or plain Python objects)."""
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id)
    return [{name: _own(column[i]) for name, column in data.items()} for i in range(len(keys))]


def _own(value):
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(getattr(value, "data", value))


class Outcomes(NamedTuple):
    """Rewards of trajectories (sums of their token scores), what else the reward function reported of each, their chat turns
    (verl's `num_turns`), and how many calls of tools failed in all of them."""

    rewards: dict[str, float]
    infos: list[dict]
    turns: list[int]
    tool_failures: int


def read_outcomes(keys: list[str], partition_id: str) -> Outcomes:
    """Outcomes of some rows, in the order of `keys`."""
    names = ["rm_scores", "extra_fields", "num_turns"]
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=names)
    scores, fields, turns = ([getattr(item, "data", item) for item in data[name]] for name in names)
    return Outcomes(
        rewards={key: float(score.sum()) for key, score in zip(keys, scores, strict=True)},
        infos=[item.get("reward_extra_info") or {} for item in fields],
        turns=[int(n) for n in turns],
        tool_failures=sum(int(item.get(FAILURES, 0)) for item in fields),
    )


def read_prompts(keys: list[str], partition_id: str) -> list[torch.Tensor]:
    """Prompt ids of some rows, int64 [P] each."""
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["prompts"])
    return [data["prompts"][i] for i in range(len(keys))]


def read_responses(keys: list[str], partition_id: str) -> list[Response]:
    """Responses of this step's rollouts with the log-probs of pi_old (training engine), their masks and prompts.

    Raises NotImplementedError for a rollout with more than that (`check_supported`).
    """
    wanted = ["responses", "loss_mask", "old_log_probs", "prompts", *UNSUPPORTED]
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=wanted)
    return [response_of({name: column[i] for name, column in data.items()}, key) for i, key in enumerate(keys)]


def response_of(row: Mapping[str, torch.Tensor], key: str) -> Response:
    """The same from the fields of a row that was read."""
    check_supported(row, key)
    return Response(
        token_ids=row["responses"].numpy(),
        log_probs=row["old_log_probs"].float().numpy(),
        # Not `response_mask`, from which verl's rollout correction takes the tokens that it rejects.
        mask=row["loss_mask"].bool().numpy(),
        prompt_ids=row["prompts"].numpy(),
    )


def check_supported(row: Mapping, key: str) -> None:
    """NotImplementedError naming the key in the configuration where a row has more than text, which no stored row has."""
    for name, setting in UNSUPPORTED.items():
        value = row.get(name)
        if isinstance(value, torch.Tensor) or getattr(value, "data", value):
            raise NotImplementedError(f"rollout {key} brings {name}, and ExGRPO stores text and masks only: {setting}.")


def require_text(key: str, partition_id: str) -> None:
    """Raise NotImplementedError where a rollout has more than text (`check_supported`)."""
    data = tq.kv_batch_get(keys=[key], partition_id=partition_id, select_fields=["prompts", *UNSUPPORTED])
    check_supported({name: column[0] for name, column in data.items()}, key)


def check_outputs(keys: Iterable[str]) -> None:
    """NotImplementedError where an agent loop returned several outputs for one rollout: its group is not K trajectories."""
    for key in keys:
        if session_of(key)[1]:
            raise NotImplementedError(
                f"rollout {key} is one of several outputs of a session, and a group has one trajectory for each session: "
                "set actor_rollout_ref.rollout.agent.default_agent_loop to a loop with one output, such as tool_agent."
            )


def read_entropies(keys: list[str], partition_id: str) -> list[np.ndarray]:
    """Entropies of pi_old at each rollout's own tokens, float32 [own tokens], nats: verl has them from its log-prob pass."""
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["entropy", "loss_mask"])
    return [data["entropy"][i][data["loss_mask"][i].bool()].float().numpy() for i in range(len(keys))]


def write_advantages(advantages: Mapping[str, float | np.ndarray], partition_id: str) -> None:
    """Overwrite the advantages of some rows: one number for all own tokens, or float [own tokens]; zero elsewhere.

    Nothing on tokens that verl's rollout correction has taken out of `response_mask` either.
    """
    if not advantages:
        return
    keys, names = list(advantages), ("advantages", "loss_mask", "response_mask")
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=list(names))
    rows = zip(advantages.values(), *(data[name].unbind() for name in names), strict=True)
    values = nested([spread(value, own, row.dtype) * mask.to(row.dtype) for value, row, own, mask in rows])
    put(keys, partition_id, advantages=values, returns=values.clone())


def spread(value: float | np.ndarray, own: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A number, or one for each own token, at the places of `own` [L]; zero elsewhere."""
    found = torch.zeros(len(own), dtype=dtype)
    found[own.bool()] = torch.as_tensor(value, dtype=dtype)
    return found


def rebuilt(batch: KVBatchMeta, keys: list[str], tags: Mapping[str, dict]) -> KVBatchMeta:
    """A batch of `keys` with the partition and extra information (temperature and the like) of `batch`.

    A fresh object: KVBatchMeta fixes its size at construction.
    """
    merged = KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=[tags[key] for key in keys])
    merged.extra_info.update(batch.extra_info)
    return merged


def in_plan_order(batch: KVBatchMeta, uids: Iterable[str], tags: Mapping[str, dict] | None = None) -> KVBatchMeta:
    """A batch of the keys of `tags` (default: its own): groups together and in the order of `uids`, members by session.

    The order decides which mini-batch a group falls into; the order of arrival would make that a matter of luck.
    """
    tags = dict(zip(batch.keys, batch.tags, strict=True)) if tags is None else tags
    rank = {uid: i for i, uid in enumerate(uids)}
    return rebuilt(batch, sorted(tags, key=lambda key: (rank[uid_of(key)], *session_of(key))), tags)


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    """Ragged rows as one jagged nested tensor."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

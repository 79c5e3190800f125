"""Groups that leave the update: their rows stay in the batch and in the normaliser, and have no token in any loss term."""

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.exgrpo.core.outcomes import in_band
from recipe.exgrpo.trainer.injection import siblings

# 1 on rows that reach the gradient (policy term, entropy bonus and KL alike), 0 on rows that only fill their place.
IN_UPDATE = "in_update"


def out_of_band(rewards: dict[str, float], band: str, threshold: float) -> list[str]:
    """Keys of the groups whose success rate is outside `band` (masked GRPO, App. F.1)."""
    outside = []
    for keys in siblings(list(rewards)).values():
        if not in_band(sum(rewards[key] > threshold for key in keys), len(keys), band):
            outside += keys
    return outside


def flag_rows(batch: KVBatchMeta, dropped: list[str]) -> None:
    """Write `IN_UPDATE` on every row of `batch`: 0 on `dropped`, 1 elsewhere."""
    left = set(dropped)
    flags = torch.tensor([0.0 if key in left else 1.0 for key in batch.keys])
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict({IN_UPDATE: flags}, batch_size=len(flags))
    )


def mask_groups(batch: KVBatchMeta, rewards: dict[str, float], band: str, threshold: float) -> int:
    """Take all groups outside `band` out of the update; returns how many trajectories that were."""
    dropped = out_of_band(rewards, band, threshold)
    flag_rows(batch, dropped)
    return len(dropped)

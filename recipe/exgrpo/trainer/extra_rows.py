"""Stored trajectories on top of the batch: more rows than rollouts, and where they stand in verl's order of a batch.

verl cuts a batch into equal blocks, one a rank, and each block into equal stretches, one an update. Extra rows are dealt out
over all stretches. As many as would be missing to equal stretches are empty rows, as verl pads with: they have no token of
their own and are not counted by the normaliser.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

from recipe.exgrpo.core.policies.policy import Placed
from recipe.exgrpo.trainer.rows import FLAG, read_rows, rebuilt, uid_of
from recipe.exgrpo.trainer.stored_rows import FRESH_ONLY, placed_row, put_rows, stored_tag


@dataclass(frozen=True)
class Layout:
    """How verl will cut a batch: into `updates` mini-batches, of whole multiples of `group_size` rows, over `ranks`."""

    updates: int = 1
    ranks: int = 1
    group_size: int = 1
    padding_token: int = 0

    @property
    def multiple(self) -> int:
        """What the number of extra rows must be a multiple of, empty ones included."""
        return self.updates * math.lcm(self.group_size, self.ranks)


def append(
    batch: KVBatchMeta, extra: Sequence[Placed], layout: Layout, step: int
) -> tuple[KVBatchMeta, dict[str, float]]:
    """The batch with `extra` rows, and their advantages by key."""
    if not extra:
        return batch, {}
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    source = next(key for key in batch.keys if not tags[key].get("is_padding"))
    (template,) = read_rows([source], batch.partition_id)
    names = [f"extra{step}x{i}_0_0" for i in range(len(extra))]
    rows = [placed_row(template, name, one) for name, one in zip(names, extra, strict=True)]
    new_tags = [stored_tag(tags[source], row, one.trajectory) for row, one in zip(rows, extra, strict=True)]
    found = put_rows(names, rows, new_tags, batch.partition_id)
    names.sort(key=lambda name: -found[name]["seq_len"])  # so that ranks get rows of like lengths
    empty = _pad(template, tags[source], -len(names) % layout.multiple, batch.partition_id, layout, step)
    keys = dealt(batch.keys, [*names, *empty], layout.ranks, layout.updates)
    advantages = {f"extra{step}x{i}_0_0": one.advantage for i, one in enumerate(extra)}
    return rebuilt(batch, keys, tags | found | empty), advantages


def dealt(keys: Sequence[str], extra: Sequence[str], ranks: int, updates: int) -> list[str]:
    """`keys` in their order with `extra` dealt out evenly: at the end of every update's stretch of every rank's block.

    Both numbers are multiples of ranks x updates (ValueError for `keys` that are not). Neighbours in `extra` go to different
    ranks.
    """
    size, rest = divmod(len(keys), ranks * updates)
    if rest:
        raise ValueError(f"a batch of {len(keys)} rows cannot be cut into {updates} updates over {ranks} ranks.")
    order: list[str] = []
    for cell in range(ranks * updates):
        rank, update = divmod(cell, updates)
        order += [*keys[cell * size : (cell + 1) * size], *extra[update * ranks + rank :: ranks * updates]]
    return order


def _pad(row: dict, tag: dict, count: int, partition_id: str, layout: Layout, step: int) -> dict[str, dict]:
    """`count` empty rows in the queue; their tags by key."""
    if not count:
        return {}
    template, padding = construct_minimal_padding_template(row, tag, layout.padding_token)
    nothing = torch.zeros(1, dtype=row["old_log_probs"].dtype)
    template |= {"old_log_probs": nothing, FLAG: torch.tensor(0.0)}
    names = [f"pad{step}x{i}_0_0" for i in range(count)]
    rows = [{k: v for k, v in template.items() if k not in FRESH_ONLY} | {"uid": uid_of(name)} for name in names]
    return put_rows(names, rows, [dict(padding) for _ in names], partition_id)

"""Fill mode on a real TransferQueue: whose rows leave, what takes their place, and what is collected."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Entry, FillManager, Response
from recipe.exgrpo.trainer.collection import read_outcomes
from recipe.exgrpo.trainer.filling import FRESH_ONLY, fill_batch, write_advantages
from recipe.exgrpo.trainer.injection import inject, nested
from recipe.exgrpo.trainer.masking import IN_UPDATE

pytestmark = pytest.mark.verl

K, STEP = 4, 7
SUCCESSES = {"solved": 4, "mixed": 1, "unsolved": 0, "half": 2}
QUESTIONS = {uid: f"id of {uid}" for uid in SUCCESSES}


def manager(**fill) -> FillManager:
    return FillManager(ExGRPOConfig.from_mapping({"mode": "fill", "start_threshold": None, "fill": fill}), K)


def response(first: int, length: int) -> Response:
    ids = np.arange(first, first + length)
    return Response(ids, -ids / 1000)


@pytest.fixture
def batch(rollouts) -> KVBatchMeta:
    """Four groups after verl has computed log-probs, in the order of `QUESTIONS`."""
    for uid, successes in SUCCESSES.items():
        for session in range(K):
            rollouts.add(uid, session, [5 + session] * (1 + session), float(session < successes))
    sent = inject(rollouts.batch(), [], K, list(QUESTIONS))
    write_log_probs(sent)
    return sent


def write_log_probs(batch: KVBatchMeta, dtype: torch.dtype = torch.float32) -> None:
    import transfer_queue as tq

    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["responses"])["responses"]
    old = torch.nested.as_nested_tensor([-0.01 * (i + 1) * torch.ones(len(r)) for i, r in enumerate(data.unbind())])
    jagged = torch.nested.as_nested_tensor([row.to(dtype) for row in old.unbind()], layout=torch.jagged)
    fields = {"old_log_probs": jagged, "entropy": jagged.clone(), "log_probs": jagged.clone(), "advantages": jagged * 0}
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=TensorDict(fields, batch_size=len(batch)))


def exchange(fill, batch):
    return fill_batch(fill, batch, read_outcomes(batch.keys, "train")[0], QUESTIONS, STEP)


def test_past_successes_take_the_places_of_groups_without_signal(rollouts, batch):
    fill = manager()
    fill.entries = [Entry("past", 1, np.array([31, 32]), [response(100, 5)], birth_step=3)]
    filling = exchange(fill, batch)
    assert filling.batch.keys == [f"fill{STEP}x0_0_0", *batch.keys[1:]]
    assert filling.dropped == 2 * K - 1
    row = rollouts.read(filling.batch.keys)[f"fill{STEP}x0_0_0"]
    assert row["prompts"].tolist() == [31, 32]
    assert row["responses"].tolist() == [100, 101, 102, 103, 104]
    assert row["input_ids"].tolist() == [31, 32, 100, 101, 102, 103, 104]
    assert row["position_ids"].tolist() == list(range(7))
    for name in ("old_log_probs", "rollout_log_probs"):
        torch.testing.assert_close(row[name].float(), torch.tensor([-0.1, -0.101, -0.102, -0.103, -0.104]))
    assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1] * 5
    assert (float(row["is_replayed"]), float(row[IN_UPDATE]), row["uid"]) == (1, 1, f"fill{STEP}x0")
    tag = filling.batch.tags[0]
    assert (tag["prompt_len"], tag["response_len"], tag["seq_len"], tag["max_global_steps"]) == (2, 5, 7, 2)
    # The exchanged row is gone, so that nothing is left behind when verl clears the batch.
    assert "solved_0_0" not in rollouts.tags()


def dtypes(row: dict) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in row.items() if torch.is_tensor(value)}


def test_a_batch_of_filled_rows_alone_has_every_field_in_the_precision_of_the_batch(rollouts, transfer_queue):
    """In bfloat16: TransferQueue forgets rows whose log-probs have another dtype than the field had before."""
    for session in range(K):
        rollouts.add("solved", session, [5 + session], 1.0)
    batch = inject(rollouts.batch(), [], K, ["solved"])
    write_log_probs(batch, torch.bfloat16)
    before = dtypes(rollouts.read(batch.keys)[batch.keys[0]])
    fill = manager()
    past = [response(100, 2 + i) for i in range(K)]
    fill.entries = [Entry("past", K - 1, np.array([31, 32]), past, birth_step=3)]
    filling = exchange(fill, batch)
    assert len(filling.advantages) == K
    own = nested([torch.zeros(2 + i, dtype=torch.bfloat16) for i in range(K)])
    fields = TensorDict({"advantages": own}, batch_size=K)
    transfer_queue.kv_batch_put(keys=filling.batch.keys, partition_id="train", fields=fields)
    write_advantages(filling.advantages, "train")
    rows = rollouts.read(filling.batch.keys)
    for key, stored in zip(filling.batch.keys, past, strict=True):
        row = rows[key]
        expected = {name: dtype for name, dtype in before.items() if name not in FRESH_ONLY}
        assert {name: dtype for name, dtype in dtypes(row).items() if name in before} == expected
        torch.testing.assert_close(row["old_log_probs"], torch.as_tensor(stored.log_probs).bfloat16(), rtol=0, atol=0)
        torch.testing.assert_close(row["advantages"].float(), torch.full((len(stored.token_ids),), 1 / K))


def test_what_is_left_of_the_groups_without_signal_leaves_the_update(rollouts, batch):
    filling = exchange(manager(), batch)
    assert filling.batch.keys == batch.keys
    flags = {key: float(row[IN_UPDATE]) for key, row in rollouts.read(batch.keys, IN_UPDATE).items()}
    assert {key for key, flag in flags.items() if not flag} == {
        f"{uid}_{s}_0" for uid in ("solved", "unsolved") for s in range(K)
    }
    assert filling.dropped == 2 * K
    assert filling.advantages == {}


def test_mixed_groups_are_collected_after_the_draw(rollouts, batch):
    fill = manager()
    filling = exchange(fill, batch)
    assert not any(key.startswith("fill") for key in filling.batch.keys)
    assert [(entry.question, entry.successes) for entry in fill.entries] == [("id of mixed", 1), ("id of half", 2)]
    mixed, half = fill.entries
    assert mixed.prompt_ids.tolist() == [1, 2, 3]
    assert [r.token_ids.tolist() for r in mixed.responses] == [[5]]
    assert [r.token_ids.tolist() for r in half.responses] == [[5], [6, 6]]
    rows = rollouts.read(["half_1_0"], "old_log_probs")
    np.testing.assert_allclose(half.responses[1].log_probs, rows["half_1_0"]["old_log_probs"].numpy())
    # The next step draws them.
    rewards = read_outcomes(batch.keys, "train")[0]
    again = fill_batch(fill, batch, rewards, QUESTIONS, STEP + 1)
    assert sum(key.startswith("fill") for key in again.batch.keys) == 3
    assert sorted(again.advantages.values()) == [0.5, 0.5, 0.75]


def test_the_control_duplicates_this_steps_successes(batch):
    fill = manager(source="current")
    filling = exchange(fill, batch)
    assert sorted(filling.advantages.values()) == [0.5, 0.5, 0.75]
    assert fill.entries == []


def test_frozen_advantages_are_written_on_filled_rows_only(rollouts, batch):
    fill = manager()
    fill.entries = [Entry("past", 3, np.array([31, 32]), [response(100, 5), response(200, 2), response(300, 1)], 3)]
    filling = exchange(fill, batch)
    write_log_probs(filling.batch)  # every row has advantages of 0 now, as after verl's own estimator
    write_advantages(filling.advantages, "train")
    rows = rollouts.read(filling.batch.keys, "advantages", "returns", "responses")
    found = {key: row["advantages"].tolist() for key, row in rows.items()}
    assert found[f"fill{STEP}x0_0_0"] == [0.25] * 5
    assert found[f"fill{STEP}x1_0_0"] == [0.25] * 2
    assert found[f"fill{STEP}x2_0_0"] == [0.25]
    assert not any(any(values) for key, values in found.items() if not key.startswith("fill"))


def test_before_the_start_nothing_changes(rollouts, batch):
    fill = FillManager(ExGRPOConfig(mode="fill"), K)
    filling = exchange(fill, batch)
    assert filling.batch.keys == batch.keys
    assert filling.dropped == 0
    assert all(float(row[IN_UPDATE]) == 1 for row in rollouts.read(batch.keys, IN_UPDATE).values())
    assert fill.entries == []


def test_the_order_of_arrival_decides_nothing(rollouts, batch):
    rewards = read_outcomes(batch.keys, "train")[0]
    backwards = dict(reversed(rewards.items()))
    pools = []
    for order in (rewards, backwards):
        fill = manager()
        fill_batch(fill, batch, order, QUESTIONS, STEP)
        pools.append([(e.question, [r.token_ids.tolist() for r in e.responses]) for e in fill.entries])
    assert pools[0] == pools[1]

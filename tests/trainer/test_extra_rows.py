"""Rows on top of a batch: how they are dealt out over ranks and updates, and what they and the empty ones are in the queue."""

import itertools

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.policies.policy import Arrangement, Placed, Slot
from recipe.exgrpo.trainer.extra_rows import Layout, append, dealt
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE, nested, write_advantages
from recipe.exgrpo.trainer.step import Step

pytestmark = pytest.mark.verl

K, STEP = 4, 7


@pytest.mark.parametrize(("ranks", "updates"), itertools.product([1, 2, 4], [1, 2, 3]))
def test_every_update_of_every_rank_gets_its_share(ranks, updates):
    """Cut as verl does: blocks of ranks, then stretches of updates; what was there keeps rank, update and order."""
    cells = ranks * updates
    keys, extra = [f"k{i}" for i in range(6 * cells)], [f"e{i}" for i in range(2 * cells)]
    found = np.array(dealt(keys, extra, ranks, updates)).reshape(ranks, updates, 8)
    before = np.array(keys).reshape(ranks, updates, 6)
    assert (found[..., :6] == before).all()
    assert sorted(found[..., 6:].reshape(-1)) == sorted(extra)
    rank_of = {key: rank for rank in range(ranks) for key in found[rank].reshape(-1)}
    assert [rank_of[key] for key in extra] == [i % ranks for i in range(len(extra))]  # by length: ranks take turns


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="5 rows cannot be cut into 2 updates over 1 ranks"):
        dealt(list("abcde"), ["x", "y"], 1, 2)


def placed(lengths, advantage=0.25) -> list[Placed]:
    found = []
    for i, n in enumerate(lengths):
        ids = np.arange(100 * i, 100 * i + n, dtype=np.int32)
        mask = np.arange(n) != 1  # a token that the model did not write, where there is a second
        log_probs = np.where(mask, -0.25 * (i + 1), 0).astype(np.float32)
        prompt = np.arange(3 + i, dtype=np.int32)
        past = Trajectory(i, f"past{i}", ids, log_probs, mask, 1.0, 4, prompt_ids=prompt)
        found.append(Placed(past, advantage + i))
    return found


@pytest.fixture
def opened(rollouts, transfer_queue):
    """opened(dtype) -> (step, batch) of three groups after verl has computed log-probs."""

    def run(dtype=torch.float32):
        for uid, session in itertools.product("abc", range(K)):
            rollouts.add(uid, session, [5] * (1 + session), float(session == 0))
        step = Step(number=STEP, slots={uid: Slot(f"id of {uid}", K) for uid in "abc"})
        step.open(rollouts.batch())
        batch = step.inject(rollouts.batch(), {})
        values = nested([torch.full((tag["response_len"],), -0.5, dtype=dtype) for tag in batch.tags])
        fields = {"old_log_probs": values, "entropy": values.clone(), "log_probs": values.clone()}
        transfer_queue.kv_batch_put(
            keys=batch.keys, partition_id="train", fields=TensorDict(fields, batch_size=len(batch))
        )
        return step, batch

    return run


LAYOUT = Layout(updates=3, ranks=2, group_size=K, padding_token=9)


@pytest.mark.parametrize("count", [1, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_bring_their_own_prompt_tokens_mask_and_log_probs(rollouts, opened, count, dtype):
    """Ragged ones, in the precision of the batch; empty rows make up for equal shares and hold no token of anyone's."""
    step, batch = opened(dtype)
    before, wish = list(batch.keys), placed([1 + (3 * i) % 7 for i in range(count)])
    arranged = step.arrange(batch, Arrangement(extra=wish), LAYOUT)
    assert len(arranged) == 24  # 12, and one more multiple of 3 updates x lcm(4, 2)
    assert [key for key in arranged.keys if key in before] == before
    assert len({key[:3] for key in arranged.keys[2:4]} | {key[:3] for key in arranged.keys[-2:]}) <= 2
    rows = rollouts.read(arranged.keys, *FIELDS)
    for i, one in enumerate(wish):
        past, row = one.trajectory, rows[f"extra{STEP}x{i}_0_0"]
        assert row["prompts"].tolist() == past.prompt_ids.tolist()
        assert row["responses"].tolist() == past.token_ids.tolist()
        assert row["input_ids"].tolist() == [*past.prompt_ids, *past.token_ids]
        assert row["response_mask"].tolist() == row["loss_mask"].tolist() == past.mask.tolist()
        assert row["old_log_probs"].dtype == dtype
        torch.testing.assert_close(row["old_log_probs"], torch.tensor(past.log_probs).to(dtype))
        assert (float(row[FLAG]), float(row[IN_UPDATE])) == (1, 1)
        tag = arranged.tags[arranged.keys.index(f"extra{STEP}x{i}_0_0")]
        assert (tag["seq_len"], tag["max_global_steps"]) == (len(past.prompt_ids) + len(past.token_ids), 3)
    empty = [i for i, key in enumerate(arranged.keys) if key.startswith("pad")]
    assert len(empty) == 12 - count
    for i in empty:
        row = rows[arranged.keys[i]]
        assert arranged.tags[i]["is_padding"]
        assert row["response_mask"].tolist() == [0]
        assert (len(row["old_log_probs"]), float(row["rm_scores"].sum()), float(row[FLAG])) == (1, 0, 0)
    assert (step.extra_rows, step.rows_out, step.updates) == (count, 0, 3)
    assert step.sequences == (12 + count) / 3  # the empty ones do not count
    assert [t.question for t in step.placed] == [f"past{i}" for i in range(count)]


FIELDS = (
    *("prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask"),
    *("old_log_probs", "rm_scores", FLAG, IN_UPDATE),
)


def test_advantages_are_written_on_own_tokens(rollouts, opened, transfer_queue):
    step, batch = opened()
    arranged = step.arrange(batch, Arrangement(extra=placed([3, 1])), LAYOUT)
    zeros = nested([torch.zeros(tag["response_len"]) for tag in arranged.tags])
    fields = TensorDict({"advantages": zeros}, batch_size=len(arranged))
    transfer_queue.kv_batch_put(keys=arranged.keys, partition_id="train", fields=fields)
    write_advantages(step.advantages, "train")
    rows = rollouts.read(arranged.keys, "advantages")
    assert rows[f"extra{STEP}x0_0_0"]["advantages"].tolist() == [0.25, 0.0, 0.25]
    assert rows[f"extra{STEP}x1_0_0"]["advantages"].tolist() == [1.25]
    assert sum(float(row["advantages"].abs().sum()) for row in rows.values()) == 0.25 * 2 + 1.25


def test_beside_placed_rows_and_rows_that_are_out(rollouts, opened):
    """One group leaves, one of its places is taken, two rows come on top: the divisor is 12 + 2."""
    step, batch = opened()
    past = placed([2, 3, 1])
    wish = Arrangement(leave=[(1, j) for j in range(K)], place=past[:1], extra=past[1:])
    arranged = step.arrange(batch, wish, Layout(updates=1, group_size=K))
    assert (step.rows_out, step.extra_rows, step.sequences) == (3, 2, 14)
    flags = {key: float(row[IN_UPDATE]) for key, row in rollouts.read(arranged.keys, IN_UPDATE).items()}
    assert {key for key, flag in flags.items() if not flag} == {"b_1_0", "b_2_0", "b_3_0"}
    assert step.advantages == {
        f"refill{STEP}x0_0_0": 0.25,
        f"extra{STEP}x0_0_0": 1.25,
        f"extra{STEP}x1_0_0": 2.25,
    }


def test_without_extra_rows_nothing_is_added(opened):
    step, batch = opened()
    assert append(batch, (), LAYOUT, STEP) == (batch, {})
    arranged = step.arrange(batch, Arrangement(), LAYOUT)
    assert arranged.keys == batch.keys
    assert (step.extra_rows, step.sequences) == (0, 4)


def test_more_than_the_batch_is_refused(opened):
    step, batch = opened()
    with pytest.raises(ValueError, match="13 extra rows on top of a batch of 12"):
        step.arrange(batch, Arrangement(extra=placed([1] * 13)), LAYOUT)

"""Stored trajectories beside their siblings in a real TransferQueue: rows written by verl's agent loop, read as verl does."""

import dataclasses

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

from recipe.exgrpo.trainer.rows import by_uid, nested, read_outcomes
from recipe.exgrpo.trainer.stored_rows import Joined, inject, write_behaviour_log_probs

pytestmark = pytest.mark.verl

K = 4
# uid -> response lengths of its rollouts; replayed questions have K - 1.
PLAN = {
    "3f2a-77": [3, 1, 5, 2],
    "replay7x0": [4, 4, 4],
    "90bb-12": [2, 2, 2, 2],
    "replay7x1": [6, 1, 3],
}
REPLAYED = ["replay7x0", "replay7x1"]
PROMPTS = {uid: list(range(10 * i + 1, 10 * i + 3 + i)) for i, uid in enumerate(PLAN)}


@pytest.fixture
def step(rollouts, trajectories):
    """(rollouts, joined) of one step, rollouts in a shuffled order of arrival."""
    rows = [(uid, session, length) for uid, lengths in PLAN.items() for session, length in enumerate(lengths)]
    for i in np.random.default_rng(0).permutation(len(rows)):
        uid, session, length = rows[i]
        rollouts.add(uid, session, list(range(100, 100 + length)), float(session == 1), prompt=PROMPTS[uid])
    groups = by_uid(rollouts.arrived)
    joined = [
        Joined(f"{uid}_{K - 1}_0", groups[uid][0], trajectories(length, reward=1.0, birth_step=birth))
        for uid, length, birth in zip(REPLAYED, (5, 1), (2, 6), strict=True)
    ]
    return rollouts, joined


def inject_all(step):
    rollouts, joined = step
    return inject(rollouts.batch(), joined, list(PLAN))


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_group_has_k_rows_one_uid_and_at_most_one_replayed_row(step):
    batch = inject_all(step)
    rows = step[0].read(batch.keys)
    groups = by_uid(batch.keys)
    assert {uid: len(keys) for uid, keys in groups.items()} == dict.fromkeys(PLAN, K)
    for uid, keys in groups.items():
        assert {rows[key]["uid"] for key in keys} == {uid}
        assert sorted(rows[key]["session_id"] for key in keys) == list(range(K))
        flags = [float(rows[key]["is_replayed"]) for key in keys]
        assert flags == ([0.0] * (K - 1) + [1.0] if uid in REPLAYED else [0.0] * K)


def test_groups_stand_together_in_the_order_asked_for(step):
    batch = inject_all(step)
    assert batch.keys == [f"{uid}_{session}_0" for uid in PLAN for session in range(K)]
    rollouts, joined = step
    backwards = inject(rollouts.batch(), joined, list(PLAN)[::-1])
    assert backwards.keys == [f"{uid}_{session}_0" for uid in list(PLAN)[::-1] for session in range(K)]


def test_the_replayed_row_is_the_stored_trajectory_after_its_siblings_prompt(step):
    rollouts, joined = step
    rows = rollouts.read(inject_all(step).keys)
    for one in joined:
        row, stored = rows[one.key], one.trajectory
        prompt = PROMPTS[row["uid"]]
        length = len(stored.token_ids)
        assert row["responses"].tolist() == stored.token_ids.tolist()
        assert row["prompts"].tolist() == prompt
        assert row["input_ids"].tolist() == prompt + stored.token_ids.tolist()
        assert row["position_ids"].tolist() == list(range(len(prompt) + length))
        assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1] * length
        np.testing.assert_array_equal(row["rollout_log_probs"], stored.log_probs)
        assert row["rm_scores"].tolist() == [0.0] * (length - 1) + [stored.reward]


@pytest.mark.parametrize("reward", [1.0, 0.75])
def test_the_stored_reward_is_reused(rollouts, trajectories, reward):
    key = rollouts.add("replay7x0", 0, [5, 6], 0.0)
    batch = inject(rollouts.batch(), [Joined("replay7x0_1_0", key, trajectories(3, reward=reward))], ["replay7x0"])
    assert read_outcomes(batch.keys, batch.partition_id)[0] == {key: 0.0, "replay7x0_1_0": reward}


def test_dataset_columns_are_the_siblings(step):
    rollouts, joined = step
    rows = rollouts.read(inject_all(step).keys)
    columns = ("raw_prompt", "data_source", "ability", "reward_model", "extra_info", "index", "uid", "global_steps")
    for one in joined:
        for name in (*columns, "num_turns", "dummy_tensor", "multi_modal_inputs"):
            assert same(rows[one.key][name], rows[one.sibling][name]), name
    assert rows["replay7x1_3_0"]["extra_info"]["question_id"] == "id of replay7x1"


def test_reward_details_of_the_sibling_are_not_taken_for_the_replayed_rows(step):
    rollouts, joined = step
    rows = rollouts.read(inject_all(step).keys, "extra_fields")
    for one in joined:
        assert rows[one.key]["extra_fields"]["reward_extra_info"] == {}
        assert set(rows[one.key]["extra_fields"]) == set(rows[one.sibling]["extra_fields"])
        assert rows[one.sibling]["extra_fields"]["reward_extra_info"] != {}


def test_fresh_rows_and_their_tags_stay_as_they_were(step):
    rollouts, _ = step
    before = rollouts.read(rollouts.arrived)
    tags = rollouts.batch().tags
    batch = inject_all(step)
    after = rollouts.read(rollouts.arrived)
    for key in rollouts.arrived:
        assert set(after[key]) == set(before[key]) | {"is_replayed"}
        assert all(same(after[key][name], value) for name, value in before[key].items())
    merged = dict(zip(batch.keys, batch.tags, strict=True))
    assert [merged[key] for key in rollouts.arrived] == tags


def test_tags_of_replayed_rows_have_their_own_lengths_and_weights_version(step):
    rollouts, joined = step
    batch = inject_all(step)
    tags = rollouts.tags()
    assert batch.tags == [tags[key] for key in batch.keys]
    for one, length, birth in zip(joined, (5, 1), (2, 6), strict=True):
        prompt = len(PROMPTS[one.key.split("_")[0]])
        expected = tags[one.sibling] | {
            "prompt_len": prompt,
            "response_len": length,
            "seq_len": prompt + length,
            "min_global_steps": birth - 1,
            "max_global_steps": birth - 1,
        }
        assert tags[one.key] == expected
        assert expected["status"] == "success"


def test_all_rows_are_read_together_with_every_field(step):
    # A TransferQueue read returns the fields that all its rows have, and says nothing of the others.
    rollouts, _ = step
    fields = set(rollouts.read(rollouts.arrived)[rollouts.arrived[0]])
    batch = inject_all(step)
    assert set(rollouts.read(batch.keys)[batch.keys[0]]) == fields | {"is_replayed"}


def test_flags_are_read_as_one_number_a_row(step, transfer_queue):
    batch = inject_all(step)
    flags = transfer_queue.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["is_replayed"])
    assert flags["is_replayed"].shape == (len(batch),)
    assert flags["is_replayed"].sum() == len(REPLAYED)


def test_the_new_batch_carries_extra_info_and_can_be_reordered(step):
    rollouts, joined = step
    batch = rollouts.batch()
    merged = inject(batch, joined, list(PLAN))
    assert (len(batch), len(merged), merged.size) == (14, 16, 16)
    assert merged.extra_info == {"temperature": 1.0}
    merged.reorder(list(range(16))[::-1])
    assert merged.keys[0] == "replay7x1_3_0"


def test_without_replay_rows_are_flagged_and_ordered_and_nothing_else(rollouts):
    for uid in ("b", "a"):
        for session in (1, 0):
            rollouts.add(uid, session, [1, 2], 0.0)
    batch = inject(rollouts.batch(), [], ["a", "b"])
    assert batch.keys == ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    assert {float(row["is_replayed"]) for row in rollouts.read(batch.keys).values()} == {0.0}


def test_sessions_are_ordered_as_numbers(rollouts):
    for session in (10, 2, 9):
        rollouts.add("a", session, [1], 0.0)
    assert inject(rollouts.batch(), [], ["a"]).keys == ["a_2_0", "a_9_0", "a_10_0"]


def test_tokens_that_the_model_did_not_write_are_masked_in_the_row(rollouts, trajectories):
    key = rollouts.add("replay7x0", 0, [5, 6], 0.0)
    stored = dataclasses.replace(trajectories(4), mask=np.array([True, False, True, True]))
    batch = inject(rollouts.batch(), [Joined("replay7x0_1_0", key, stored)], ["replay7x0"])
    row = rollouts.read(batch.keys)["replay7x0_1_0"]
    assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1, 0, 1, 1]
    assert len(row["responses"]) == 4


def test_several_stored_trajectories_may_join_one_group(rollouts, trajectories):
    keys = [rollouts.add("a", session, [5, 6], 0.0) for session in range(2)]
    joined = [Joined(f"a_{2 + i}_0", keys[0], trajectories(3 + i)) for i in range(2)]
    batch = inject(rollouts.batch(), joined, ["a"])
    assert batch.keys == ["a_0_0", "a_1_0", "a_2_0", "a_3_0"]
    assert [len(row["responses"]) for row in rollouts.read(batch.keys).values()] == [2, 2, 3, 4]


def test_a_group_that_lost_siblings_still_gets_its_replay(rollouts, trajectories):
    key = rollouts.add("replay7x0", 2, [5, 6], 0.0)
    replay = Joined("replay7x0_3_0", key, trajectories(3))
    batch = inject(rollouts.batch(), [replay], ["replay7x0"])
    assert batch.keys == ["replay7x0_2_0", "replay7x0_3_0"]


def test_rollouts_without_engine_log_probs_are_injected_without_them(rollouts, trajectories):
    key = rollouts.add("replay7x0", 0, [5, 6], 0.0, response_logprobs=None)
    batch = inject(rollouts.batch(), [Joined("replay7x0_1_0", key, trajectories(3))], ["replay7x0"])
    rows = rollouts.read(batch.keys)
    assert all("rollout_log_probs" not in row for row in rows.values())
    assert len(rows["replay7x0_1_0"]["responses"]) == 3


def test_routed_experts_are_refused_by_key(rollouts, trajectories):
    key = rollouts.add("replay7x0", 0, [5, 6], 0.0, routed_experts=np.zeros((5, 2, 2)).tolist())
    with pytest.raises(NotImplementedError, match="enable_rollout_routing_replay"):
        inject(rollouts.batch(), [Joined("replay7x0_1_0", key, trajectories(3))], ["replay7x0"])


@pytest.mark.parametrize("name", ["teacher_ids", "teacher_logprobs"])
def test_distillation_is_refused_by_key(rollouts, trajectories, transfer_queue, name):
    key = rollouts.add("replay7x0", 0, [5, 6], 0.0)
    fields = TensorDict({name: torch.zeros(1, 5, 2)}, batch_size=1)
    transfer_queue.kv_batch_put(keys=[key], partition_id="train", fields=fields)
    with pytest.raises(NotImplementedError, match=r"distillation\.enabled"):
        inject(rollouts.batch(), [Joined("replay7x0_1_0", key, trajectories(3))], ["replay7x0"])


# ---- padding to a divisible size


@pytest.mark.parametrize("first", ["fresh", "replayed"])
def test_verls_padding_rows_are_told_by_their_tags(step, first):
    rollouts, joined = step
    batch = inject_all(step)
    if first == "replayed":  # verl clones the first row, flag and all
        batch.reorder([batch.keys.index(joined[0].key), *(i for i, k in enumerate(batch.keys) if k != joined[0].key)])
    padded = upsample_batch_to_divisible_size(batch, 6, eos_token_id=0)
    padding = padded.keys[16:]
    assert len(padded) == 18
    assert [key for key, tag in zip(padded.keys, padded.tags, strict=True) if tag.get("is_padding")] == padding
    rows = rollouts.read(padded.keys)
    for key in padding:
        assert float(rows[key]["is_replayed"]) == float(first == "replayed")
        assert rows[key]["response_mask"].tolist() == [0]
        assert rows[key]["uid"] not in PLAN
    assert set(rows[padding[0]]) == set(rows[joined[0].key])


# ---- pi_past


def put_old_log_probs(transfer_queue, keys, lengths, dtype=torch.float32):
    values = nested([torch.full((n,), -9.0, dtype=dtype) for n in lengths])
    fields = TensorDict({"old_log_probs": values}, batch_size=len(keys))
    transfer_queue.kv_batch_put(keys=keys, partition_id="train", fields=fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_behaviour_log_probs_replace_those_of_replayed_rows_only(step, transfer_queue, dtype):
    rollouts, joined = step
    batch = upsample_batch_to_divisible_size(inject_all(step), 6, eos_token_id=0)
    put_old_log_probs(transfer_queue, batch.keys, [tag["response_len"] for tag in batch.tags], dtype)
    write_behaviour_log_probs(joined, "train")
    past = {one.key: one.trajectory.log_probs for one in joined}
    for key, row in rollouts.read(batch.keys, "old_log_probs", "responses").items():
        assert len(row["old_log_probs"]) == len(row["responses"])
        if key in past:
            torch.testing.assert_close(row["old_log_probs"], torch.as_tensor(past[key], dtype=dtype), rtol=0, atol=0)
        else:
            assert set(row["old_log_probs"].tolist()) == {-9.0}
    alone = rollouts.read(list(past), "old_log_probs")  # read with others, a row takes on their precision
    assert {row["old_log_probs"].dtype for row in alone.values()} == {dtype}


def test_writing_no_behaviour_log_probs_changes_nothing(rollouts, transfer_queue):
    key = rollouts.add("a", 0, [5, 6], 0.0)
    put_old_log_probs(transfer_queue, [key], [2])
    write_behaviour_log_probs([], "train")
    assert rollouts.read([key], "old_log_probs")[key]["old_log_probs"].tolist() == [-9.0, -9.0]

"""What the trainer reads from and writes to a real TransferQueue: keys, outcomes, responses, flags, advantages."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipe.exgrpo.trainer.rows import (
    FLAG,
    IN_UPDATE,
    check_outputs,
    in_plan_order,
    nested,
    ordered_groups,
    put_flag,
    read_entropies,
    read_outcomes,
    read_prompts,
    read_responses,
    read_rows,
    write_advantages,
)

pytestmark = pytest.mark.verl


def put(transfer_queue, keys, **columns):
    """Write jagged columns: one list of values for each key."""
    fields = {name: nested([torch.as_tensor(row) for row in rows]) for name, rows in columns.items()}
    transfer_queue.kv_batch_put(keys=keys, partition_id="train", fields=TensorDict(fields, batch_size=len(keys)))


# ---- keys


def test_groups_are_in_the_order_of_the_plan_and_members_by_session_as_a_number():
    keys = ["b_10_0", "a_1_0", "b_2_0", "a_0_0", "other_0_0"]
    assert ordered_groups(keys, ["a", "gone", "b"]) == {"a": ["a_0_0", "a_1_0"], "b": ["b_2_0", "b_10_0"]}


def test_the_plans_order_keeps_tags_and_extra_information(rollouts):
    for uid in ("b", "a"):
        for session in (1, 0):
            rollouts.add(uid, session, [1, 2], 0.0)
    sent = rollouts.batch()
    batch = in_plan_order(sent, ["a", "b"])
    assert batch.keys == ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    assert batch.tags == [sent.tags[sent.keys.index(key)] for key in batch.keys]
    assert batch.extra_info == {"temperature": 1.0}
    assert not any(FLAG in row for row in rollouts.read(batch.keys).values())


# ---- reading


def test_rows_read_back_are_copies(rollouts):
    key = rollouts.add("a", 0, [5, 6], 0.0)
    first, second = read_rows([key], "train")[0], read_rows([key], "train")[0]
    first["responses"][0] = 99
    first["extra_info"]["index"] = 99
    first["raw_prompt"].append({})
    assert second["responses"].tolist() == [5, 6]
    assert read_rows([key], "train")[0]["extra_info"]["index"] == 3
    assert len(second["raw_prompt"]) == 1


def test_rewards_are_sums_of_token_scores_and_details_come_with_them(rollouts):
    rewards = {rollouts.add("a", i, [5] * (1 + i), reward): reward for i, reward in enumerate([0.0, 1.0, 0.25])}
    found, infos, *_ = read_outcomes(list(rewards), "train")
    assert found == rewards
    assert [info["acc"] for info in infos] == list(rewards.values())


def test_one_rollout_is_read_like_many(rollouts):
    key = rollouts.add("aa-1", 0, [1, 2, 3], 1.0)
    assert read_outcomes([key], "train")[0] == {key: 1.0}


def test_prompts_come_in_the_order_asked_for(rollouts):
    keys = [rollouts.add(uid, 0, [7], 0.0, prompt=prompt) for uid, prompt in (("a", [1, 2, 3]), ("b", [4]))]
    assert [prompt.tolist() for prompt in read_prompts(keys[::-1], "train")] == [[4], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_responses_bring_the_training_engines_log_probs_and_their_prompts(rollouts, transfer_queue, dtype):
    keys = [rollouts.add("a", i, ids, 1.0, prompt=[1, 2 + i]) for i, ids in enumerate([[11, 12, 13], [21]])]
    old = [torch.tensor(values, dtype=dtype) for values in ([-0.5, -0.25, -2.0], [-1.5])]
    put(transfer_queue, keys, old_log_probs=old)
    second, first = read_responses(keys[::-1], "train")
    assert (first.token_ids.tolist(), first.prompt_ids.tolist()) == ([11, 12, 13], [1, 2])
    assert (second.token_ids.tolist(), second.prompt_ids.tolist()) == ([21], [1, 3])
    assert first.log_probs.tolist() == [-0.5, -0.25, -2.0]  # the rollout engine's are -0.1, -0.2, -0.3
    assert first.log_probs.dtype == np.float32
    assert first.mask is None or np.all(first.mask)


def test_responses_say_which_tokens_are_the_models_own(rollouts, transfer_queue):
    masks = [[1, 1], [1, 0, 0, 1]]
    keys = [rollouts.add("aa-1", i, [11, 12, 13, 14][: len(m)], 1.0, response_mask=m) for i, m in enumerate(masks)]
    put(transfer_queue, keys, old_log_probs=[[-1.0] * len(mask) for mask in masks])
    assert [response.mask.tolist() for response in read_responses(keys, "train")] == masks


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        ({"multi_modal_inputs": {"pixel_values": torch.zeros(2, 3)}}, r"data\.image_key"),
        ({"routed_experts": torch.zeros(5, 2, dtype=torch.int16)}, r"enable_rollout_routing_replay=false"),
        ({"teacher_ids": torch.zeros(5, 1, dtype=torch.int64)}, r"distillation\.enabled=false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_store_does_not_hold_is_refused_with_the_key_that_makes_it(rollouts, transfer_queue, more, setting):
    key = rollouts.add("aa-1", 0, [11, 12], 1.0)
    put(transfer_queue, [key], old_log_probs=[[-1.0, -1.0]])
    read_responses([key], "train")
    fields = list_of_dict_to_tensordict([more])
    transfer_queue.kv_batch_put(keys=[key], partition_id="train", fields=fields)
    with pytest.raises(NotImplementedError, match=rf"aa-1_0_0 brings {next(iter(more))}.*{setting}"):
        read_responses([key], "train")


def test_several_outputs_of_one_session_are_refused():
    check_outputs(["a_0_0", "a_7_0"])
    with pytest.raises(NotImplementedError, match=r"a_0_1 is one of several outputs.*default_agent_loop"):
        check_outputs(["a_0_0", "a_0_1"])


def test_tokens_rejected_by_rollout_correction_are_still_the_models_own(rollouts, transfer_queue):
    key = rollouts.add("a", 0, [11, 12], 1.0)
    put(transfer_queue, [key], old_log_probs=[[-1.0, -2.0]])
    # verl rewrites the mask of what its rejection sampling leaves out of the loss.
    put(transfer_queue, [key], response_mask=[[0, 1]])
    (response,) = read_responses([key], "train")
    assert response.token_ids.tolist() == [11, 12]
    assert response.log_probs.tolist() == [-1.0, -2.0]
    assert response.mask.tolist() == [True, True]


# ---- writing


@pytest.mark.parametrize(("name", "value"), [(FLAG, 1.0), (IN_UPDATE, 0.0)])
def test_a_flag_covers_the_whole_batch(rollouts, name, value):
    for session in range(5):
        rollouts.add("a", session, [1], 0.0)
    batch = rollouts.batch()
    put_flag(name, batch, batch.keys[:3], value)
    rows = rollouts.read(batch.keys, name)
    assert [float(rows[key][name]) for key in batch.keys] == [value] * 3 + [1 - value] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_advantages_are_written_on_some_rows_in_the_precision_of_all(rollouts, transfer_queue, dtype):
    keys = [rollouts.add("a", i, [5] * (1 + i), 0.0) for i in range(3)]
    zeros = [torch.zeros(1 + i, dtype=dtype) for i in range(3)]
    put(transfer_queue, keys, advantages=zeros, returns=zeros)
    write_advantages({keys[2]: 0.5, keys[0]: -0.25}, "train")
    rows = rollouts.read(keys, "advantages", "returns")
    assert [rows[key]["advantages"].tolist() for key in keys] == [[-0.25], [0.0] * 2, [0.5] * 3]
    assert [rows[key]["returns"].tolist() for key in keys] == [[-0.25], [0.0] * 2, [0.5] * 3]
    assert rollouts.read([keys[0]], "advantages")[keys[0]]["advantages"].dtype == dtype


def test_no_advantages_touch_nothing(rollouts):
    rollouts.add("a", 0, [5], 0.0)
    write_advantages({}, "train")
    assert "advantages" not in rollouts.read(rollouts.arrived)["a_0_0"]


def test_advantages_are_zero_where_the_mask_is(rollouts, transfer_queue):
    """verl's estimator leaves them zero outside the response mask; a value of our own must too."""
    key = rollouts.add("a", 0, [5, 6, 7], 0.0)
    put(transfer_queue, [key], advantages=[[0.0, 0.0, 0.0]], response_mask=[[1, 0, 1]])
    write_advantages({key: 0.5}, "train")
    row = rollouts.read([key], "advantages")[key]
    assert row["advantages"].tolist() == [0.5, 0.0, 0.5]


def test_entropies_are_of_own_tokens(rollouts, transfer_queue):
    keys = [rollouts.add("a", i, [5] * n, 0.0) for i, n in enumerate((3, 1, 4))]
    masks = [[1, 0, 1], [1], [0, 1, 1, 0]]
    put(transfer_queue, keys, entropy=[[0.5, 9.0, 0.25], [2.0], [9.0, 1.0, 0.0, 9.0]], loss_mask=masks)
    found = read_entropies([keys[2], keys[0]], "train")
    assert [values.tolist() for values in found] == [[1.0, 0.0], [0.5, 0.25]]
    assert {values.dtype for values in found} == {np.dtype(np.float32)}


def test_token_advantages_stand_at_own_tokens(rollouts, transfer_queue):
    """Those that rollout correction took out of the response mask have none, and shift nothing."""
    keys = [rollouts.add("a", i, [5] * 4, 0.0) for i in range(2)]
    put(
        transfer_queue, keys, advantages=[[0.0] * 4] * 2, loss_mask=[[1, 0, 1, 1]] * 2, response_mask=[[1, 0, 0, 1]] * 2
    )
    write_advantages({keys[0]: np.array([0.5, -1.0, 0.25]), keys[1]: 2.0}, "train")
    rows = rollouts.read(keys, "advantages", "returns")
    assert rows[keys[0]]["advantages"].tolist() == rows[keys[0]]["returns"].tolist() == [0.5, 0.0, 0.0, 0.25]
    assert rows[keys[1]]["advantages"].tolist() == [2.0, 0.0, 0.0, 2.0]


def test_too_many_token_advantages_are_refused(rollouts, transfer_queue):
    key = rollouts.add("a", 0, [5] * 3, 0.0)
    put(transfer_queue, [key], advantages=[[0.0] * 3], loss_mask=[[1, 0, 1]])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        write_advantages({key: np.array([0.5, -1.0, 0.25])}, "train")

"""Reading a step back from a real TransferQueue: rewards, grading, and which tokens are stored."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.replay import ReplayManager
from recipe.exgrpo.trainer.collection import batch_metrics, collect, fresh_keys, read_outcomes
from recipe.exgrpo.trainer.injection import Replay, inject, nested, write_behaviour_log_probs

pytestmark = pytest.mark.verl

K = 4
STEP = 7
# uid -> (question, [(response, reward) of each fresh rollout]); replayed questions have K - 1. Batch order.
GROUPS = {
    "aa-1": ("half", [([11, 12], 1.0), ([13], 0.0), ([14, 15, 16], 1.0), ([17], 0.0)]),
    "replay7x0": ("past", [([21], 0.0), ([22, 23], 1.0), ([24], 0.0)]),
    "aa-2": ("solved", [([31], 1.0), ([32], 1.0), ([33, 34], 1.0), ([35], 1.0)]),
    "aa-3": ("hard", [([41], 0.0), ([42, 43], 0.0), ([44], 0.0), ([45], 0.0)]),
    "replay7x1": ("mastered", [([51], 1.0), ([52], 1.0), ([53], 1.0)]),
    "aa-4": ("broken", [([61], 1.0), ([62], 0.0)]),  # two sessions failed
}
QUESTIONS = {uid: question for uid, (question, _) in GROUPS.items()}


def behaviour(response):
    """Log-probs of the training engine: a function of the ids, unlike the rollout engine's."""
    return -torch.tensor(response, dtype=torch.float32) / 64


@pytest.fixture
def manager():
    replay = ReplayManager(ExGRPOConfig(start_threshold=None, rho=0.5), K)
    for question in ("past", "mastered"):
        replay.buffer.record(question, 2)
        replay.buffer.add(question, Response([7, 7, 7], [-0.5] * 3), 1.0, step=2)
    replay.plan(4)
    return replay


@pytest.fixture
def step(rollouts, manager, transfer_queue):
    """run(shuffle) -> (batch, replays) as they stand in TransferQueue after the update of the actor."""

    def run(shuffle=0, groups=GROUPS, multiple=1, **output):
        sessions = [(uid, i) for uid, (_, rows) in groups.items() for i in range(len(rows))]
        for j in np.random.default_rng(shuffle).permutation(len(sessions)):
            uid, i = sessions[j]
            response, reward = groups[uid][1][i]
            rollouts.add(uid, i, response, reward, **output)
        past = {uid: manager.buffer.rows(QUESTIONS[uid])[0] for uid in groups if uid.startswith("replay")}
        replays = [
            Replay(f"{uid}_{K - 1}_0", f"{uid}_0_0", manager.buffer.trajectory(int(row))) for uid, row in past.items()
        ]
        batch = inject(rollouts.batch(), replays, K, list(groups))
        batch = upsample_batch_to_divisible_size(batch, multiple, eos_token_id=0)
        responses = transfer_queue.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["responses"])
        values = nested([behaviour(row.tolist()) for row in responses["responses"].unbind()])
        fields = TensorDict({"old_log_probs": values}, batch_size=len(batch))
        transfer_queue.kv_batch_put(keys=batch.keys, partition_id="train", fields=fields)
        write_behaviour_log_probs(replays, "train")
        return batch, replays

    return run


def collect_step(manager, batch, replays, questions=QUESTIONS):
    rewards, _ = read_outcomes(fresh_keys(batch, replays), batch.partition_id)
    collect(manager, batch, rewards, replays, questions, STEP)
    return rewards


def stored(manager, question):
    trajectories = [manager.buffer.trajectory(int(row)) for row in manager.buffer.rows(question)]
    return [(t.token_ids.tolist(), t.log_probs.tolist(), t.reward, t.birth_step) for t in trajectories]


def expected(response, reward=1.0):
    return (response, behaviour(response).tolist(), reward, STEP)


OLD = ([7, 7, 7], [-0.5] * 3, 1.0, 2)


@pytest.mark.parametrize("multiple", [1, 7], ids=["plain", "padded"])
def test_fresh_successes_are_stored_with_ids_and_training_log_probs(step, manager, multiple):
    batch, replays = step(multiple=multiple)
    assert len(batch) == (28 if multiple == 7 else 22)
    collect_step(manager, batch, replays)
    assert stored(manager, "half") == [expected([11, 12]), expected([14, 15, 16])]
    assert stored(manager, "past") == [OLD, expected([22, 23])]
    for question in ("solved", "hard", "mastered", "broken"):
        assert stored(manager, question) == []
    assert manager.report.added == 3


def test_books_follow_from_fresh_and_replayed_rewards(step, manager):
    collect_step(manager, *step())
    counts = {question: manager.buffer.latest_count(question) for question in QUESTIONS.values()}
    # The replayed success counts: 1 + 1 of "past", and 3 + 1 = K of "mastered".
    assert counts == {"half": 2, "past": 2, "solved": None, "hard": None, "mastered": None, "broken": None}
    assert manager.buffer.retired == ["solved", "mastered"]
    assert manager.report.partial_groups == 1


def test_the_order_of_arrival_does_not_change_the_state(step, manager, rollouts, transfer_queue):
    states = []
    arrays, meta = manager.buffer.state()
    for shuffle in (1, 2):
        manager.buffer = type(manager.buffer).from_state(arrays, meta)
        batch, replays = step(shuffle)
        collect_step(manager, batch, replays)
        states.append(manager.buffer.state())
        transfer_queue.kv_clear(keys=batch.keys, partition_id="train")
        rollouts.arrived.clear()
    (first, first_meta), (second, second_meta) = states
    assert first_meta == second_meta
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_nothing_is_stored_before_replay_starts(step, rollouts):
    waiting = ReplayManager(ExGRPOConfig(start_threshold=0.9), K)
    groups = {uid: group for uid, group in GROUPS.items() if not uid.startswith("replay")}
    batch, replays = step(groups=groups)
    collect_step(waiting, batch, replays)
    assert list(waiting.buffer.questions()) == []


def test_rewards_are_those_of_fresh_rollouts(step, manager):
    batch, replays = step(multiple=7)
    rewards, _ = read_outcomes(fresh_keys(batch, replays), "train")
    assert rewards == {f"{uid}_{i}_0": r for uid, (_, rows) in GROUPS.items() for i, (_, r) in enumerate(rows)}
    metrics = batch_metrics(rewards, 0.5)
    assert metrics == pytest.approx(
        {"batch/pass_rate": 11 / 20, "batch/questions": 6.0, "batch/solve_all": 2.0, "batch/solve_none": 1.0}
    )


def test_one_rollout_is_read_like_many(rollouts):
    key = rollouts.add("aa-1", 0, [1, 2, 3], 1.0)
    assert read_outcomes([key], "train")[0] == {key: 1.0}


def test_a_group_without_any_rollout_is_passed_over(step, manager):
    groups = {uid: group for uid, group in GROUPS.items() if uid != "aa-1"}
    batch, replays = step(groups=groups)
    collect_step(manager, batch, replays)
    assert manager.buffer.latest_count("half") is None
    assert stored(manager, "past") == [OLD, expected([22, 23])]


def test_tool_tokens_are_refused(step, manager):
    groups = {"aa-1": ("half", [([11, 12], 1.0), ([13, 18], 0.0), ([14, 15], 1.0), ([17, 19], 0.0)])}
    batch, replays = step(groups=groups, response_mask=[1, 0])
    with pytest.raises(NotImplementedError, match=r"aa-1_0_0.*actor_rollout_ref\.rollout\.multi_turn\.enable=false"):
        collect_step(manager, batch, replays)


def test_tokens_rejected_by_rollout_correction_are_still_the_models_own(step, manager, transfer_queue):
    batch, replays = step()
    # verl rewrites the mask of what its rejection sampling leaves out of the loss.
    fields = TensorDict({"response_mask": nested([torch.tensor([0, 1])])}, batch_size=1)
    transfer_queue.kv_batch_put(keys=["aa-1_0_0"], partition_id="train", fields=fields)
    collect_step(manager, batch, replays)
    assert stored(manager, "half") == [expected([11, 12]), expected([14, 15, 16])]

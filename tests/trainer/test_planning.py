"""The trainer's plan of a step on verl's own fetching code: what is replayed, what is fresh, how far the cursor moves."""

import dataclasses
from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.dataset.rl_dataset import collate_fn

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.trainer.step import Step
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from verl_ext.dataset import index_questions

pytestmark = pytest.mark.verl

K, B = 4, 8


class Questions(list):
    """A dataset of n questions "q0", "q1", ... with the columns of verl's RLHFDataset."""

    def __init__(self, n):
        super().__init__(self.row(i) for i in range(n))

    @staticmethod
    def row(i):
        prompt = [{"role": "user", "content": f"question {i}"}]
        info = {"index": i, "question_id": f"q{i}"}
        columns = {"raw_prompt": prompt, "data_source": "toy", "extra_info": info, "index": i, "tools_kwargs": {}}
        return columns | {"dummy_tensor": torch.tensor([0], dtype=torch.uint8)}


def trainer(dataset_size=30, eligible=(), retired=(), rho=0.5, kind=ExGRPOTrainer, **config):
    """A trainer at the start of a step; the loader hands out questions in order, one at a time."""
    found = object.__new__(kind)  # its constructor starts the whole stack
    found.settings = ExGRPOConfig.from_mapping({"start_threshold": None, "rho": rho, **config})
    found.group_size, found.global_steps, found.current = K, 7, Step()
    found.policy = make_policy(found.settings, K)
    found.train_dataset = Questions(dataset_size)
    found.question_rows = index_questions(row["extra_info"] for row in found.train_dataset)
    found.train_dataloader = [collate_fn([row]) for row in found.train_dataset]
    found.train_dataloader_it = None
    found.config = OmegaConf.create(
        {
            "data": {"train_batch_size": B, "gen_batch_size": 1},
            "algorithm": {"filter_groups": {"max_num_gen_batches": 0}},
        }
    )
    for i in eligible:
        found.policy.store.record(f"q{i}", 1 + i % (K - 1))
        found.policy.store.add(f"q{i}", Response([i], [-1.0]), 1.0, step=1)
    for i in retired:
        found.policy.store.retire(f"q{i}")
    return found


def ids(batch):
    return [info["question_id"] for info in batch["extra_info"]]


def rollouts(batch):
    return list(batch["__rollout_n__"])


def questions(found):
    """uid -> question of the step, in batch order."""
    return {uid: slot.question for uid, slot in found.current.slots.items()}


def planned(found):
    """The same for questions that the policy asked for by name."""
    return {uid: slot.question for uid, slot in found.current.slots.items() if slot.planned}


def next_question(found):
    """The question that the loader hands out next."""
    return next(found.train_dataloader_it)["extra_info"][0]["question_id"]


def test_half_the_batch_is_replayed_and_the_cursor_moves_by_the_other_half():
    found = trainer(eligible=range(10, 20))
    batch = found._next_train_batch()
    replayed = [q for q, n in zip(ids(batch), rollouts(batch), strict=True) if n == K - 1]
    fresh = [q for q, n in zip(ids(batch), rollouts(batch), strict=True) if n == K]
    assert (len(replayed), fresh) == (4, ["q0", "q1", "q2", "q3"])
    assert set(replayed) <= {f"q{i}" for i in range(10, 20)}
    assert next_question(found) == "q4"
    assert batch["global_steps"] == 7


def test_a_question_under_review_comes_by_name_with_all_its_rollouts_fresh():
    found = trainer(eligible=range(10, 20), retired=[25], bookkeeping={"review_interval": 1, "review_share": 1.0})
    found.policy.finish([], None, 6, 0.5)
    batch = found._next_train_batch()
    assert Counter(rollouts(batch)) == {K: 4, K - 1: 4}
    (uid,) = (uid for uid, question in planned(found).items() if question == "q25")
    assert uid.startswith("planned7x")  # no trajectory of it is replayed
    assert len(planned(found)) == 5
    assert next_question(found) == "q3"


def test_without_injection_the_same_questions_get_all_their_rollouts_fresh():
    with_, without = trainer(eligible=range(10, 20)), trainer(eligible=range(10, 20), inject=False)
    batches = with_._next_train_batch(), without._next_train_batch()
    assert ids(batches[0]) == ids(batches[1])
    assert Counter(rollouts(batches[0])) == {K: 4, K - 1: 4}
    assert rollouts(batches[1]) == [K] * B
    assert len(planned(without)) == 4
    assert next_question(without) == "q4"


def test_rows_uids_and_questions_belong_together():
    found = trainer(eligible=range(10, 20))
    batch = found._next_train_batch()
    uids = list(batch["uid"])
    assert len(set(uids)) == B
    assert not any("_" in uid for uid in uids)  # verl splits keys there
    assert list(questions(found).items()) == list(zip(uids, ids(batch), strict=True))
    assert {uid for uid, n in zip(uids, rollouts(batch), strict=True) if n == K - 1} == set(planned(found))
    for question, index, prompt in zip(ids(batch), batch["index"], batch["raw_prompt"], strict=True):
        assert (f"q{index}", prompt[0]["content"]) == (question, f"question {index}")


def test_both_halves_reach_every_mini_batch():
    batch = trainer(eligible=range(10, 20))._next_train_batch()
    assert [Counter(rollouts(batch)[i : i + 4]) for i in (0, 4)] == [{K: 2, K - 1: 2}] * 2


def test_a_planned_question_is_not_drawn_fresh_as_well():
    found = trainer(eligible=range(4))
    batch = found._next_train_batch()
    assert sorted(ids(batch)) == sorted(f"q{i}" for i in range(8))
    assert Counter(rollouts(batch)) == {K: 4, K - 1: 4}
    assert found.cursor.skipped == 4


def test_retired_questions_are_skipped():
    found = trainer(retired=[0, 2, 3, 9])
    batch = found._next_train_batch()
    assert ids(batch) == ["q1", "q4", "q5", "q6", "q7", "q8", "q10", "q11"]
    assert rollouts(batch) == [K] * B
    assert found.cursor.skipped == 4
    assert next_question(found) == "q12"


def test_a_batch_made_of_replay_alone_fetches_nothing():
    found = trainer(eligible=range(20), rho=1.0)
    batch = found._next_train_batch()
    assert rollouts(batch) == [K - 1] * B
    assert len(set(ids(batch))) == B
    assert found.train_dataloader_it is None


def test_an_empty_buffer_gives_a_plain_batch():
    found = trainer()
    batch = found._next_train_batch()
    assert ids(batch) == [f"q{i}" for i in range(B)]
    assert rollouts(batch) == [K] * B
    assert planned(found) == {}


@pytest.mark.parametrize("retired", [range(12), range(6)])
def test_training_goes_on_when_fewer_than_a_batch_are_left(retired):
    found = trainer(dataset_size=12, retired=retired)
    for _ in range(3):
        batch = found._next_train_batch()
        assert len(set(ids(batch))) == B


def test_a_small_dataset_goes_round_without_a_question_twice_in_a_batch():
    found = trainer(dataset_size=11, eligible=[1, 5])
    seen = Counter()
    for _ in range(6):
        batch = found._next_train_batch()
        assert len(set(ids(batch))) == len(ids(batch)) == B
        seen.update(ids(batch))
    assert set(seen) == {f"q{i}" for i in range(11)}


def test_the_last_question_left_is_found_across_an_epoch_boundary():
    found = trainer(dataset_size=11, retired=[0, 1, 2])
    rows = found.train_dataloader
    # q8 has just been handed out; in the next epoch it comes last: further away than the dataset is long.
    found.train_dataloader_it = iter([rows[i] for i in (3, 4, 5, 6, 7, 9, 10, 0, 1, 2)])
    found.train_dataloader = [rows[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 8)]
    batch = found._next_train_batch()
    assert sorted(ids(batch)) == sorted(f"q{i}" for i in range(3, 11))


def test_groups_that_failed_are_refilled_with_fresh_questions_of_k():
    found = trainer(eligible=range(10, 20))
    first = found._next_train_batch()
    refill = found._next_train_batch(2)
    assert ids(refill) == ["q4", "q5"]
    assert rollouts(refill) == [K, K]
    assert list(questions(found).values()) == [*ids(first), "q4", "q5"]
    assert {slot.rollouts for slot in list(found.current.slots.values())[-2:]} == {K}
    assert len(planned(found)) == 4


def test_a_policy_says_how_many_rollouts_a_question_in_place_of_a_failed_group_has(monkeypatch):
    found = trainer()
    found._next_train_batch()
    draw = found.policy.draw
    monkeypatch.setattr(found.policy, "draw", lambda dataset: dataclasses.replace(draw(dataset), rollouts=K + 3))
    assert rollouts(found._next_train_batch(2)) == [K + 3] * 2


def test_questions_in_place_of_failed_groups_are_none_of_the_step_and_not_retired():
    found = trainer(eligible=range(10, 20), retired=[4, 6])
    found._next_train_batch()
    assert ids(found._next_train_batch(2)) == ["q5", "q7"]
    assert found.cursor.skipped == 2


def test_a_step_forgets_the_one_before():
    found = trainer(eligible=range(10, 14))
    found._next_train_batch()
    found.current.joined.append(object())
    for question in list(planned(found).values()):
        found.policy.store.retire(question)
    before, found.global_steps = found.current, 8
    batch = found._next_train_batch()
    assert found.current is not before
    assert (planned(found), found.current.joined, found.current.number) == ({}, [], 8)
    assert list(questions(found)) == list(batch["uid"])
    assert batch["global_steps"] == 8


@pytest.mark.parametrize("policy", ["on_policy", "refill", "masked"])
def test_without_planned_questions_it_is_verls_own_fetching(policy):
    found = trainer(policy=policy, dataset_size=11)
    verl = trainer(policy=policy, dataset_size=11, kind=PPOTrainerSync)
    for _ in range(3):
        batch = found._next_train_batch()
        expected = verl._next_train_batch()
        assert ids(batch) == ids(expected)
        assert set(batch.keys()) == set(expected.keys()) | {"__rollout_n__"}
        assert rollouts(batch) == [K] * B  # verl's default
        assert list(questions(found).values()) == ids(batch)
    assert planned(found) == {}
    assert found.cursor.skipped == 0

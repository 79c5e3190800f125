"""An arrangement on a real TransferQueue: whose rows leave the update, what takes their places, and what is collected."""

import numpy as np
import pytest
import torch
from steps import make
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

from recipe.exgrpo.core.buffer import Provenance, Response
from recipe.exgrpo.core.policies.policy import Arrangement, Placed, Slot, Tools
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE, nested, put, read_responses, write_advantages
from recipe.exgrpo.trainer.step import Step
from recipe.exgrpo.trainer.stored_rows import FRESH_ONLY

pytestmark = pytest.mark.verl

K, STEP = 4, 7
SUCCESSES = {"solved": 4, "mixed": 1, "unsolved": 0, "half": 2}


def refill(**values):
    return make("refill", K, **values)


def response(first: int, length: int, prompt=(31, 32)) -> Response:
    ids = np.arange(first, first + length)
    return Response(ids, -ids / 1000, prompt_ids=prompt)


def store(policy, *responses: Response, successes: int, step: int = 3) -> None:
    """A stored group of `successes` = k of K, as `collect` leaves it."""
    provenance = Provenance(policy.store.new_group(), successes, K, 1 - successes / K)
    for one in responses:
        policy.store.add("past", one, 1.0, step, provenance=provenance, keep_prompt=True)


@pytest.fixture
def opened(rollouts):
    """opened(successes, dtype) -> (step, batch) after verl has computed log-probs, groups in the order of `successes`."""

    def run(successes=SUCCESSES, dtype=torch.float32, backwards=False, number=STEP, multiple=1):
        for uid, solved in successes.items():
            for session in range(K):
                rollouts.add(uid, session, [5 + session] * (1 + session), float(session < solved))
        if backwards:
            rollouts.arrived.reverse()
        step = Step(number=number, slots={uid: Slot(f"id of {uid}", K) for uid in successes})
        step.open(rollouts.batch())
        batch = step.inject(rollouts.batch(), {})
        batch = upsample_batch_to_divisible_size(batch, multiple, eos_token_id=0)
        write_log_probs(batch, dtype)
        return step, batch

    return run


def write_log_probs(batch: KVBatchMeta, dtype: torch.dtype = torch.float32) -> None:
    """What verl has written by then: log-probs and entropies of the training engine; all advantages are 0."""
    import transfer_queue as tq

    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["responses"])["responses"]
    old = nested([-0.01 * (i + 1) * torch.ones(len(r), dtype=dtype) for i, r in enumerate(data.unbind())])
    fields = {"old_log_probs": old, "entropy": old.clone(), "log_probs": old.clone(), "advantages": old * 0}
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=TensorDict(fields, batch_size=len(batch)))


def tools(step: Step) -> Tools:
    """The trainer's own way to a rollout."""
    read = lambda members: read_responses([step.key(m) for m in members], "train")  # noqa: E731
    return Tools(score=None, read=read, entropies=step.entropies)


def arrange(policy, step: Step, batch: KVBatchMeta) -> KVBatchMeta:
    return step.arrange(batch, policy.arrange(step.groups, tools(step), step.number))


def finish(policy, step: Step) -> None:
    policy.finish(step.groups, tools(step), step.number, step.pass_rate)


def flags(rollouts, batch: KVBatchMeta) -> dict[str, float]:
    return {key: float(row[IN_UPDATE]) for key, row in rollouts.read(batch.keys, IN_UPDATE).items()}


def stored_ids(policy) -> dict[str, list]:
    found = {}
    for question in policy.store.questions():
        rows = policy.store.rows(question)
        found[question] = [policy.store.trajectory(int(row)).token_ids.tolist() for row in rows]
    return found


# ---- places


def test_past_successes_take_the_places_of_zero_variance_groups(rollouts, opened):
    step, batch = opened()
    policy = refill()
    store(policy, response(100, 5), successes=1)
    arranged = arrange(policy, step, batch)
    assert arranged.keys == [f"refill{STEP}x0_0_0", *batch.keys[1:]]
    assert step.rows_out == 2 * K - 1
    assert arranged.extra_info == batch.extra_info == {"temperature": 1.0}
    row = rollouts.read(arranged.keys)[f"refill{STEP}x0_0_0"]
    assert row["prompts"].tolist() == [31, 32]
    assert row["responses"].tolist() == [100, 101, 102, 103, 104]
    assert row["input_ids"].tolist() == [31, 32, 100, 101, 102, 103, 104]
    assert row["position_ids"].tolist() == list(range(7))
    for name in ("old_log_probs", "rollout_log_probs"):
        torch.testing.assert_close(row[name].float(), torch.tensor([-0.1, -0.101, -0.102, -0.103, -0.104]))
    assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1] * 5
    assert (float(row[FLAG]), float(row[IN_UPDATE]), row["uid"]) == (1, 1, f"refill{STEP}x0")
    tag = arranged.tags[0]
    assert (tag["prompt_len"], tag["response_len"], tag["seq_len"], tag["max_global_steps"]) == (2, 5, 7, 2)
    # The exchanged row is gone, so that nothing is left behind when verl clears the batch.
    assert "solved_0_0" not in rollouts.tags()


def dtypes(row: dict) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in row.items() if torch.is_tensor(value)}


def test_a_batch_of_placed_rows_alone_has_every_field_in_the_precision_of_the_batch(rollouts, opened, transfer_queue):
    """In bfloat16: TransferQueue forgets rows whose log-probs have another dtype than the field had before."""
    step, batch = opened({"solved": K}, torch.bfloat16)
    before = dtypes(rollouts.read(batch.keys)[batch.keys[0]])
    policy, past = refill(), [response(100, 2 + i) for i in range(K - 1)]
    store(policy, *past, successes=K - 1)
    store(policy, response(200, 9), successes=1)
    arranged = arrange(policy, step, batch)
    assert len(step.advantages) == K
    own = nested([torch.zeros(tag["response_len"], dtype=torch.bfloat16) for tag in arranged.tags])
    fields = TensorDict({"advantages": own}, batch_size=K)
    transfer_queue.kv_batch_put(keys=arranged.keys, partition_id="train", fields=fields)
    write_advantages(step.advantages, "train")
    rows = rollouts.read(arranged.keys)
    expected = {name: dtype for name, dtype in before.items() if name not in FRESH_ONLY}
    log_probs = {len(one.token_ids): torch.as_tensor(one.log_probs).bfloat16() for one in [*past, response(200, 9)]}
    for row in rows.values():
        n = len(row["responses"])
        assert {name: dtype for name, dtype in dtypes(row).items() if name in before} == expected
        torch.testing.assert_close(row["old_log_probs"], log_probs.pop(n), rtol=0, atol=0)
        torch.testing.assert_close(row["advantages"].float(), torch.full((n,), 1 / K if n < 9 else 1 - 1 / K))
    assert log_probs == {}


def test_what_is_left_of_zero_variance_groups_leaves_the_update(rollouts, opened):
    step, batch = opened()
    arranged = arrange(refill(), step, batch)
    assert arranged.keys == batch.keys
    out = {key for key, flag in flags(rollouts, batch).items() if not flag}
    assert out == {f"{uid}_{s}_0" for uid in ("solved", "unsolved") for s in range(K)}
    assert step.rows_out == 2 * K
    assert step.advantages == {}


def test_places_are_taken_in_the_order_of_the_batch_and_padding_stays(rollouts, opened):
    step, batch = opened(multiple=6)
    assert len(batch) == 18
    batch.reorder([15, 16, *range(8, 12), 17, *range(8), *range(12, 15)])  # verl balances ranks by length
    before = list(batch.keys)
    policy = refill()
    store(policy, response(100, 3), response(200, 2), successes=2)
    arranged = arrange(policy, step, batch)
    places = [i for i, key in enumerate(before) if key.startswith(("solved", "unsolved"))]
    assert [arranged.keys[i] for i in places[:2]] == [f"refill{STEP}x0_0_0", f"refill{STEP}x1_0_0"]
    assert [key for i, key in enumerate(arranged.keys) if i not in places[:2]] == [
        key for i, key in enumerate(before) if i not in places[:2]
    ]
    found = flags(rollouts, arranged)
    assert {i for i, key in enumerate(arranged.keys) if not found[key]} == set(places[2:])
    assert step.rows_out == 2 * K - 2


def test_a_policy_may_set_advantages_of_rows_that_stay(rollouts, opened):
    step, batch = opened()
    policy = refill()
    store(policy, response(100, 3), successes=1)
    past = policy.store.trajectory(0)
    wish = Arrangement(leave=[(1, 0)], place=[Placed(past, 0.75)], advantages={(0, 2): -0.5, (3, 1): 0.25})
    step.arrange(batch, wish)
    write_advantages(step.advantages, "train")
    keys = ["solved_2_0", "half_1_0", f"refill{STEP}x0_0_0", "solved_0_0"]
    write = rollouts.read(keys[:2] + keys[3:], "advantages")
    assert [write[key]["advantages"].tolist() for key in ("solved_2_0", "half_1_0", "solved_0_0")] == [
        [-0.5] * 3,
        [0.25] * 2,
        [0.0],
    ]
    assert step.advantages == {"solved_2_0": -0.5, "half_1_0": 0.25, f"refill{STEP}x0_0_0": 0.75}


def test_frozen_advantages_are_written_on_placed_rows_only(rollouts, opened):
    step, batch = opened()
    policy = refill()
    store(policy, response(100, 5), response(200, 2), response(300, 1), successes=3)
    arranged = arrange(policy, step, batch)
    write_log_probs(arranged)  # every row has advantages of 0 now, as after verl's own estimator
    write_advantages(step.advantages, "train")
    rows = rollouts.read(arranged.keys, "advantages", "returns", "responses")
    found = {key: row["advantages"].tolist() for key, row in rows.items()}
    assert found[f"refill{STEP}x0_0_0"] == [0.25] * 5
    assert found[f"refill{STEP}x1_0_0"] == [0.25] * 2
    assert found[f"refill{STEP}x2_0_0"] == [0.25]
    assert not any(any(values) for key, values in found.items() if not key.startswith("refill"))


def test_before_the_start_nothing_changes(rollouts, opened):
    step, batch = opened()
    policy = refill(start_threshold=0.9)
    arranged = arrange(policy, step, batch)
    finish(policy, step)
    assert arranged.keys == batch.keys
    assert step.rows_out == 0
    assert set(flags(rollouts, batch).values()) == {1.0}
    assert stored_ids(policy) == {}


# ---- collection


def test_mixed_groups_are_collected_after_the_draw(rollouts, opened):
    step, batch = opened()
    policy = refill()
    arranged = arrange(policy, step, batch)
    assert not any(key.startswith("refill") for key in arranged.keys)
    finish(policy, step)
    assert stored_ids(policy) == {"id of mixed": [[5]], "id of half": [[5], [6, 6]]}
    mixed, half = policy.store.rows("id of mixed"), policy.store.rows("id of half")
    stored = policy.store.trajectory(int(half[1]))
    assert stored.prompt_ids.tolist() == [1, 2, 3]
    assert (stored.birth_step, stored.reward) == (STEP, 1.0)
    assert [policy.store.trajectory(int(row)).provenance.successes for row in (*mixed, *half)] == [1, 2, 2]
    old = rollouts.read(["half_1_0"], "old_log_probs")["half_1_0"]["old_log_probs"]
    np.testing.assert_allclose(stored.log_probs, old.numpy())
    # The next step draws them.
    step.number = STEP + 1
    again = arrange(policy, step, batch)
    assert sum(key.startswith(f"refill{STEP + 1}x") for key in again.keys) == 3
    assert sorted(step.advantages.values()) == [0.5, 0.5, 0.75]


def test_the_control_repeats_this_steps_successes(opened):
    step, batch = opened()
    policy = refill(refill={"source": "current"})
    arrange(policy, step, batch)
    assert sorted(step.advantages.values()) == [0.5, 0.5, 0.75]
    finish(policy, step)
    assert stored_ids(policy) == {}


def test_the_order_of_arrival_decides_nothing(rollouts, opened, transfer_queue):
    stores = []
    for backwards in (False, True):
        step, batch = opened(backwards=backwards)
        policy = refill()
        arrange(policy, step, batch)
        finish(policy, step)
        stores.append(list(stored_ids(policy).items()))
        transfer_queue.kv_clear(keys=batch.keys, partition_id="train")
        rollouts.arrived.clear()
    assert stores[0] == stores[1]


# ---- masked GRPO

BY_BAND = {"none": 0, "hard": 1, "medium": 2, "easy": 3, "all": 4}


@pytest.mark.parametrize(
    ("band", "kept"), [("easy", {"easy"}), ("medium", {"medium", "easy"}), ("hard", {"hard"})]
)  # 3 of 4 is both in [0.75, 1) and in (0.25, 0.75]
def test_flags_follow_the_band(rollouts, opened, band, kept):
    step, batch = opened(BY_BAND)
    arranged = arrange(make("masked", K, mask={"band": band}), step, batch)
    assert arranged.keys == batch.keys
    assert step.rows_out == K * (len(BY_BAND) - len(kept))
    rows = rollouts.read(batch.keys)
    assert {key.split("_")[0] for key, row in rows.items() if row[IN_UPDATE] == 1} == kept
    assert {key.split("_")[0] for key, row in rows.items() if row[IN_UPDATE] == 0} == set(BY_BAND) - kept
    assert all(bool(row["response_mask"].all()) for row in rows.values())  # verl's own metrics still see every token


def test_the_mask_of_a_rollout_that_was_replaced_is_kept(opened):
    """Its row is no longer in the queue when it is read."""
    step, batch = opened()
    (position,) = (i for i, group in enumerate(step.groups) if group.question == "id of unsolved")
    member = (position, 2)
    put([step.key(member)], "train", loss_mask=nested([torch.tensor([1, 1, 0])]))
    policy = refill()
    store(policy, response(40, 3), successes=1)
    placed = Placed(policy.store.trajectory(int(policy.store.rows("past")[0])), 0.75)
    step.arrange(batch, Arrangement([member], [placed]))
    assert step.key(member) in step.replaced
    (read,) = step.read([member])
    assert read.mask.tolist() == [True, True, False]

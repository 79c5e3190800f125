"""The trainer's hooks, one after the other, over rows in a real TransferQueue: what a policy says is felt by rows, and back."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from steps import make
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from recipe.exgrpo.core.buffer import Provenance, Response
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Arrangement, Placed, Policy, Slot
from recipe.exgrpo.core.policies.replay import Replay
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE, by_uid, nested
from recipe.exgrpo.trainer.step import Step
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

pytestmark = pytest.mark.verl

K, STEP = 4, 7
HERE = __name__
# uid -> (question, [(response, reward) of each fresh rollout]) in batch order; planned questions have K - 1.
GROUPS = {
    "aa-1": ("half", [([11, 12], 1.0), ([13], 0.0), ([14, 15, 16], 1.0), ([17], 0.0)]),
    "replay7x0": ("past", [([21], 0.0), ([22, 23], 1.0), ([24], 0.0)]),
    "aa-2": ("solved", [([31], 1.0), ([32], 1.0), ([33, 34], 1.0), ([35], 1.0)]),
    "aa-3": ("hard", [([41], 0.0), ([42, 43], 0.0), ([44], 0.0), ([45], 0.0)]),
    "replay7x1": ("mastered", [([51], 1.0), ([52], 1.0), ([53], 1.0)]),
    "aa-4": ("broken", [([61], 1.0), ([62], 0.0)]),  # two sessions failed
}
PROMPTS = {uid: list(range(10 * i + 1, 10 * i + 3 + i)) for i, uid in enumerate(GROUPS)}
# First tokens of what is stored of the planned questions; `ScoringWorkers` like the largest best.
STORED = {"past": [205, 231, 210], "mastered": [250, 240]}


def old_log_prob(ids) -> torch.Tensor:
    """Log-probs of the training engine: a function of the ids, unlike the rollout engine's."""
    return -torch.as_tensor(ids, dtype=torch.float32) / 64


def stored_response(first: int) -> Response:
    return Response([first, *range(first % 3)], -np.ones(1 + first % 3) * first / 512)


class ScoringWorkers:
    """Stands in for the worker group: entropy falls with the first response token, and sequences are kept to look at."""

    def __init__(self, ranks: int = 1):
        self._dispatch_info = {"actor": list(range(ranks))}
        self.seen = []

    def score_candidates(self, batch):
        self.seen += [row.tolist() for row in batch["input_ids"].unbind()]
        entropy = torch.tensor([1 / float(row[0]) for row in batch["responses"].unbind()], dtype=torch.float64)
        tokens = torch.full((len(batch),), float(batch["input_ids"].values().numel() / len(batch)), dtype=torch.float64)
        columns = {"entropy": entropy, "nll": -entropy, "tokens_forwarded": tokens}
        columns |= {"probability": entropy, "drift": torch.zeros_like(entropy)}
        return TensorDict(columns, batch_size=len(batch))


@pytest.fixture
def verl_hooks(monkeypatch):
    """verl's side of each hook, without workers: padding to `multiple`, log-probs and advantages of every row."""
    found = SimpleNamespace(multiple=1)

    def balance(self, batch, metrics, **kwargs):
        return upsample_batch_to_divisible_size(batch, found.multiple, eos_token_id=0)

    def log_probs(self, batch, metrics):
        data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["responses"])
        values = nested([old_log_prob(row) for row in data["responses"].unbind()])
        write(batch, old_log_probs=values, entropy=values.clone(), log_probs=values.clone())
        return batch

    def advantages(self, batch, metrics):
        data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["old_log_probs"])
        zeros = nested([torch.zeros_like(row) for row in data["old_log_probs"].unbind()])
        write(batch, advantages=zeros, returns=zeros.clone())
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_balance_batch", balance)
    monkeypatch.setattr(PPOTrainerSync, "_compute_old_log_prob", log_probs)
    monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", advantages)
    return found


def write(batch, **fields):
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=TensorDict(fields, batch_size=len(batch)))


def policy_of(name="exgrpo", stored=STORED, **values):
    """A policy with stored trajectories of the planned questions; the plan of the step is behind it."""
    policy = make(name, K, rho=1.0, **values)
    for question, firsts in stored.items():
        policy.store.record(question, 2)
        for first in firsts:
            policy.store.add(question, stored_response(first), 1.0, step=3)
    return policy


def trainer_of(policy, groups=GROUPS, ranks=1, calculate_log_probs=False) -> ExGRPOTrainer:
    """A trainer as it stands when the rollouts of a step have come back."""
    trainer = object.__new__(ExGRPOTrainer)  # its constructor starts the whole stack
    trainer.settings, trainer.policy, trainer.group_size = policy.config, policy, K
    trainer.global_steps, trainer.timing_raw, trainer.actor_rollout_wg = STEP, {}, ScoringWorkers(ranks)
    trainer.cursor, trainer.history = SimpleNamespace(skipped=3), SimpleNamespace(append=lambda line: 0)
    planned = set(STORED) if policy.plans_questions else set()
    slots = {
        uid: Slot(question, K - (question in planned and policy.config.inject), question in planned)
        for uid, (question, _) in groups.items()
    }
    trainer.current = Step(number=STEP, slots=slots)
    rollout = {
        "temperature": 1.0,
        "log_prob_max_token_len_per_gpu": 64,
        "calculate_log_probs": calculate_log_probs,
    }
    node = {"rollout": rollout, "model": {"use_remove_padding": True}, "actor": {"ppo_mini_batch_size": 1}}
    trainer.tokenizer = SimpleNamespace(eos_token_id=0)
    trainer.config = OmegaConf.create({"actor_rollout_ref": node})
    return trainer


def roll_out(rollouts, groups=GROUPS, shuffle=0, **output) -> None:
    """All fresh rollouts, in a shuffled order of arrival."""
    sessions = [(uid, i) for uid, (_, rows) in groups.items() for i in range(len(rows))]
    for j in np.random.default_rng(shuffle).permutation(len(sessions)):
        uid, i = sessions[j]
        response, reward = groups[uid][1][i]
        rollouts.add(uid, i, response, reward, prompt=PROMPTS[uid], **output)


def run(trainer, rollouts) -> tuple:
    """(batch as it is trained on, metrics) of the step: every hook in verl's order."""
    metrics = {}
    batch = trainer._balance_batch(rollouts.batch(), metrics)
    batch = trainer._compute_old_log_prob(batch, metrics)
    batch = trainer._compute_advantage(batch, metrics)
    return batch, metrics | trainer._close()


def stored(policy, question):
    trajectories = [policy.store.trajectory(int(row)) for row in policy.store.rows(question)]
    return [(t.token_ids.tolist(), t.log_probs.tolist(), t.reward, t.birth_step) for t in trajectories]


def kept(response, reward=1.0):
    """What is stored of a rollout."""
    return (response, old_log_prob(response).tolist(), reward, STEP)


def before(question):
    """What was stored of a question before the step."""
    found = [stored_response(first) for first in STORED[question]]
    return [(list(r.token_ids), np.float32(r.log_probs).tolist(), 1.0, 3) for r in found]


# ---- what joins


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_question_gets_its_own_best_trajectory_after_its_own_prompt(rollouts, verl_hooks, ranks):
    roll_out(rollouts)
    trainer = trainer_of(policy_of(), ranks=ranks)
    batch = trainer._balance_batch(rollouts.batch(), {})
    rows = rollouts.read(batch.keys)
    assert rows["replay7x0_3_0"]["responses"].tolist() == [231]
    assert rows["replay7x1_3_0"]["responses"].tolist() == [250, 0]
    expected = {
        tuple(PROMPTS[uid] + [first, *range(first % 3)])
        for uid in ("replay7x0", "replay7x1")
        for first in STORED[GROUPS[uid][0]]
    }
    assert {tuple(row) for row in trainer.actor_rollout_wg.seen} == expected
    assert [one.trajectory.question for one in trainer.current.joined] == ["past", "mastered"]
    assert {key: len(keys) for key, keys in by_uid(batch.keys).items()} == dict.fromkeys(GROUPS, K) | {"aa-4": 2}
    assert {key for key, row in rows.items() if row[FLAG]} == {"replay7x0_3_0", "replay7x1_3_0"}
    assert [group.rewards for group in trainer.current.groups][1] == [0.0, 1.0, 0.0, 1.0]


def test_scores_come_back_to_the_trajectories_they_are_of(rollouts, verl_hooks):
    roll_out(rollouts)
    policy = policy_of()
    trainer = trainer_of(policy)
    run(trainer, rollouts)
    found = {int(t.token_ids[0]): t for t in map(policy.store.trajectory, policy.store.rows("past"))}
    for first in STORED["past"]:
        assert found[first].entropy == pytest.approx(1 / first)
        assert found[first].nll == pytest.approx(-1 / first)
    assert math.isnan(found[22].entropy)  # of this step
    assert [found[first].use_count for first in STORED["past"]] == [0, 1, 0]


def test_without_injection_every_row_is_fresh_and_nothing_is_scored(rollouts, verl_hooks):
    groups = GROUPS | {uid: (q, [*rows, ([90], 0.0)]) for uid, (q, rows) in GROUPS.items() if q in STORED}
    roll_out(rollouts, groups)
    policy = policy_of(inject=False)
    trainer = trainer_of(policy, groups)
    batch, metrics = run(trainer, rollouts)
    assert sorted(batch.keys) == sorted(rollouts.arrived)
    assert all(row[FLAG] == 0 for row in rollouts.read(batch.keys).values())
    assert (trainer.current.joined, trainer.actor_rollout_wg.seen) == ([], [])
    assert (metrics["experience/candidates_scored"], metrics["experience/replayed_questions"]) == (0, 0)
    assert [policy.store.trajectory(int(row)).use_count for row in policy.store.rows("past")] == [1, 1, 1, 0]


@pytest.mark.parametrize("rank", ["lowest_entropy", "oldest"])
def test_a_question_whose_rollouts_all_failed_is_skipped(rollouts, verl_hooks, rank):
    # Alone in its group, the replayed trajectory would get its reward for an advantage.
    groups = {uid: group for uid, group in GROUPS.items() if uid != "replay7x0"}
    roll_out(rollouts, groups)
    policy = policy_of(rank=rank)
    policy.report.planned = 2
    trainer = trainer_of(policy)
    batch = trainer._balance_batch(rollouts.batch(), {})
    assert "replay7x0" not in by_uid(batch.keys)
    assert len(by_uid(batch.keys)["replay7x1"]) == K
    assert [one.key for one in trainer.current.joined] == ["replay7x1_3_0"]
    metrics = policy.metrics(STEP)
    assert (metrics["planned_questions"], metrics["replayed_questions"], metrics["skipped_replays"]) == (2, 1, 1)
    assert policy.store.trajectory(int(policy.store.rows("past")[0])).use_count == 0


def test_a_group_that_lost_siblings_is_joined_under_a_session_of_its_own(rollouts, verl_hooks):
    groups = GROUPS | {"replay7x0": ("past", [([21], 0.0)])}
    roll_out(rollouts, groups)
    trainer = trainer_of(policy_of())
    batch = trainer._balance_batch(rollouts.batch(), {})
    assert by_uid(batch.keys)["replay7x0"] == ["replay7x0_0_0", "replay7x0_3_0"]


def test_rules_that_need_no_scores_call_no_worker(rollouts, verl_hooks):
    roll_out(rollouts)
    trainer = trainer_of(policy_of(rank="newest"))
    trainer.actor_rollout_wg = SimpleNamespace()
    batch, metrics = run(trainer, rollouts)
    rows = rollouts.read(batch.keys)
    assert rows["replay7x0_3_0"]["responses"].tolist() == [210]
    assert rows["replay7x1_3_0"]["responses"].tolist() == [240]
    assert (metrics["experience/scoring_calls"], metrics["experience/scoring_waste"]) == (0, 0)


def test_what_is_stored_with_its_prompt_is_scored_after_that(rollouts, verl_hooks):
    """Refill scores questions that are not in the step at all."""
    groups = {uid: group for uid, group in GROUPS.items() if uid.startswith("aa")}
    roll_out(rollouts, groups)
    policy = make("refill", K, rank="lowest_entropy")
    for i, first in enumerate((205, 231)):
        provenance = Provenance(policy.store.new_group(), successes=1, size=K, advantage=0.75)
        response = dataclasses.replace(stored_response(first), prompt_ids=[70 + i, 71])
        policy.store.add(f"elsewhere{i}", response, 1.0, 3, provenance=provenance, keep_prompt=True)
    trainer = trainer_of(policy, groups)
    _, metrics = run(trainer, rollouts)
    assert trainer.actor_rollout_wg.seen == [[70, 71, 205, 0], [71, 71, 231]]
    rows = rollouts.read([f"refill{STEP}x0_0_0"])
    assert rows[f"refill{STEP}x0_0_0"]["input_ids"].tolist() == [71, 71, 231]  # the lower entropy
    assert (metrics["experience/candidates_scored"], metrics["experience/scoring_calls"]) == (2, 1)


def test_each_is_scored_after_its_own_prompt_where_that_is_stored(rollouts, verl_hooks):
    roll_out(rollouts)
    policy = policy_of()
    policy.store.add("past", dataclasses.replace(stored_response(300), prompt_ids=[70, 71]), 1.0, 3, keep_prompt=True)
    trainer = trainer_of(policy)
    trainer._balance_batch(rollouts.batch(), {})
    seen = {row[-1]: row for row in trainer.actor_rollout_wg.seen}
    assert (seen[300], seen[231]) == ([70, 71, 300], [*PROMPTS["replay7x0"], 231])


# ---- what of its log-probs


@pytest.mark.parametrize("importance", ["past", "old"])
def test_a_stored_row_keeps_its_behaviour_log_probs_unless_importance_is_old(rollouts, verl_hooks, importance):
    roll_out(rollouts)
    trainer = trainer_of(policy_of(loss={"importance": importance}))
    batch, _ = run(trainer, rollouts)
    rows = rollouts.read(batch.keys, "old_log_probs", "responses")
    for key, row in rows.items():
        now = old_log_prob(row["responses"])
        if key in ("replay7x0_3_0", "replay7x1_3_0"):
            past = torch.full_like(now, -float(row["responses"][0]) / 512)
            torch.testing.assert_close(row["old_log_probs"], past if importance == "past" else now)
        else:
            torch.testing.assert_close(row["old_log_probs"], now)


def test_the_gap_between_engines_is_that_of_fresh_rows(rollouts, verl_hooks):
    roll_out(rollouts)
    verl_hooks.multiple = 7
    _, metrics = run(trainer_of(policy_of(), calculate_log_probs=True), rollouts)
    fresh = [response for _, rows in GROUPS.values() for response, _ in rows]
    sampled = np.concatenate([np.exp(-0.1 * (1 + np.arange(len(response)))) for response in fresh])
    trained = np.concatenate([old_log_prob(response).exp().numpy() for response in fresh])
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx(np.abs(sampled - trained).mean(), rel=1e-5)
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(np.abs(sampled - trained).max(), rel=1e-5)


# ---- what is stored, and the bookkeeping


@pytest.mark.parametrize("multiple", [1, 7], ids=["plain", "padded"])
def test_fresh_successes_are_stored_with_ids_and_training_log_probs(rollouts, verl_hooks, multiple):
    roll_out(rollouts)
    verl_hooks.multiple = multiple
    policy = policy_of()
    batch, metrics = run(trainer_of(policy), rollouts)
    assert len(batch) == (28 if multiple == 7 else 22)
    assert stored(policy, "half") == [kept([11, 12]), kept([14, 15, 16])]
    assert stored(policy, "past") == [*before("past"), kept([22, 23])]
    for question in ("solved", "hard", "mastered", "broken"):
        assert stored(policy, question) == []
    assert metrics["experience/added"] == 3


def test_bookkeeping_follows_from_fresh_and_replayed_rewards(rollouts, verl_hooks):
    roll_out(rollouts)
    policy = policy_of()
    _, metrics = run(trainer_of(policy), rollouts)
    counts = {question: policy.store.latest_count(question) for question, _ in GROUPS.values()}
    # The replayed success counts: 1 + 1 of "past", and 3 + 1 = K of "mastered".
    assert counts == {"half": 2, "past": 2, "solved": None, "hard": None, "mastered": None, "broken": None}
    assert policy.store.retired == ["solved", "mastered"]
    assert metrics["experience/partial_groups"] == 1


def test_a_stored_trajectory_says_what_its_group_was(rollouts, verl_hooks):
    roll_out(rollouts)
    policy = policy_of()
    run(trainer_of(policy), rollouts)
    (first, second), fresh = (policy.store.rows("half"), policy.store.rows("past")[-1])
    provenances = [policy.store.trajectory(int(row)).provenance for row in (first, second, fresh)]
    assert [(p.successes, p.size, p.advantage) for p in provenances] == [(2, K, 0.5)] * 3
    assert provenances[0].group == provenances[1].group != provenances[2].group


def test_the_order_of_arrival_does_not_change_the_state(rollouts, verl_hooks, transfer_queue):
    states = []
    for shuffle in (1, 2):
        roll_out(rollouts, shuffle=shuffle)
        policy = policy_of()
        batch, _ = run(trainer_of(policy), rollouts)
        states.append((policy.store.state(), policy.state_dict()))
        transfer_queue.kv_clear(keys=batch.keys, partition_id="train")
        rollouts.arrived.clear()
    ((first, first_meta), generator), ((second, second_meta), other_generator) = states
    assert (first_meta, generator) == (second_meta, other_generator)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_nothing_is_stored_before_replay_starts(rollouts, verl_hooks):
    groups = {uid: group for uid, group in GROUPS.items() if not uid.startswith("replay")}
    roll_out(rollouts, groups)
    waiting = policy_of(stored={}, start_threshold=0.9)
    run(trainer_of(waiting, groups), rollouts)
    assert list(waiting.store.questions()) == []


def test_a_group_without_any_rollout_is_skipped(rollouts, verl_hooks):
    roll_out(rollouts, {uid: group for uid, group in GROUPS.items() if uid != "aa-1"})
    policy = policy_of()
    run(trainer_of(policy), rollouts)
    assert policy.store.latest_count("half") is None
    assert stored(policy, "past") == [*before("past"), kept([22, 23])]


def test_tool_tokens_are_stored_as_such(rollouts, verl_hooks):
    groups = {"aa-1": ("half", [([11, 12], 1.0), ([13, 18], 0.0), ([14, 15], 1.0), ([17, 19], 0.0)])}
    roll_out(rollouts, groups, response_mask=[1, 0])
    policy = policy_of()
    run(trainer_of(policy, groups), rollouts)
    found = [policy.store.trajectory(row) for row in policy.store.rows("half")]
    assert [(one.token_ids.tolist(), one.mask.tolist()) for one in found] == [
        ([11, 12], [True, False]),
        ([14, 15], [True, False]),
    ]


def test_media_in_the_first_row_end_the_run_before_anything_is_stored(rollouts, verl_hooks):
    roll_out(rollouts)
    policy, media = policy_of(), list_of_dict_to_tensordict([{"multi_modal_inputs": {"pixel_values": torch.zeros(2)}}])
    tq.kv_batch_put(keys=rollouts.arrived[:1], partition_id="train", fields=media)
    with pytest.raises(NotImplementedError, match=r"brings multi_modal_inputs.*data\.image_key"):
        run(trainer_of(policy), rollouts)
    assert stored(policy, "half") == []


def test_several_outputs_of_a_session_end_the_run(rollouts, verl_hooks):
    roll_out(rollouts)
    rollouts.arrived.append(rollouts.arrived[0][:-1] + "1")
    with pytest.raises(NotImplementedError, match="default_agent_loop"):
        trainer_of(policy_of()).current.open(SimpleNamespace(keys=rollouts.arrived, partition_id="train"))


# ---- metrics


def test_metrics_of_a_step_are_of_fresh_rollouts(rollouts, verl_hooks):
    roll_out(rollouts)
    verl_hooks.multiple = 7
    trainer = trainer_of(policy_of())
    _, metrics = run(trainer, rollouts)
    expected = {
        "batch/pass_rate": 11 / 20,
        "batch/questions": 6.0,
        "batch/solve_all": 2.0,
        "batch/solve_none": 1.0,
        "batch/rows_out_of_update": 0.0,
        "reward/acc/mean": 11 / 20,
        "experience/replayed_questions": 2.0,
        "experience/skipped_draws": 3.0,
        "experience/scoring_calls": 1.0,
        "experience/scoring_waste": 1.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert {f"experience/{name}" for name in METRICS} <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())
    assert trainer.current.pass_rate == pytest.approx(11 / 20)


def test_the_threshold_of_success_says_what_is_solved(rollouts, verl_hooks):
    groups = {"aa-1": ("q", [([1], 0.6), ([2], 0.7), ([3], 0.8), ([4], 0.9)])}
    solved = []
    roll_out(rollouts, groups)
    for threshold in (0.5, 0.75, 0.9):
        trainer = trainer_of(policy_of("masked", {}, bookkeeping={"success_threshold": threshold}), groups)
        trainer._balance_batch(rollouts.batch(), {})
        metrics = trainer._close()
        solved.append((metrics["batch/solve_all"], metrics["batch/solve_none"]))
    assert solved == [(1, 0), (0, 0), (0, 1)]


# ---- the other policies

FRESH = {uid: group for uid, group in GROUPS.items() if uid not in ("replay7x0", "replay7x1", "aa-4")}


def test_on_policy_has_the_plans_order_and_no_flag(rollouts, verl_hooks):
    """Arrival decides nothing there either: which mini-batch a group is in would make a seeded run unlike its repetition."""
    roll_out(rollouts, FRESH)
    sent = rollouts.batch()
    trainer = trainer_of(make("on_policy", K), FRESH)
    batch, metrics = run(trainer, rollouts)
    assert batch.keys == [f"{uid}_{session}_0" for uid in FRESH for session in range(K)]
    assert batch.tags == [sent.tags[sent.keys.index(key)] for key in batch.keys]
    assert not any({FLAG, IN_UPDATE} & set(row) for row in rollouts.read(batch.keys).values())
    assert {metrics[f"experience/{name}"] for name in METRICS} == {0.0}
    assert metrics["batch/pass_rate"] == pytest.approx(6 / 12)


def test_masked_groups_are_flagged_and_stay_in_the_batch(rollouts, verl_hooks):
    roll_out(rollouts, FRESH)
    batch, metrics = run(trainer_of(make("masked", K, mask={"band": "medium"}), FRESH), rollouts)
    assert batch.keys == [f"{uid}_{session}_0" for uid in FRESH for session in range(K)]
    rows = rollouts.read(batch.keys)
    assert {key.split("_")[0] for key, row in rows.items() if row[IN_UPDATE]} == {"aa-1"}
    assert metrics["batch/rows_out_of_update"] == 2 * K
    assert {row[FLAG].item() for row in rows.values()} == {0.0}


def test_refill_takes_places_and_writes_its_advantages(rollouts, verl_hooks):
    roll_out(rollouts, FRESH)
    policy = make("refill", K)
    provenance = Provenance(policy.store.new_group(), successes=1, size=K, advantage=0.75)
    past = dataclasses.replace(stored_response(205), prompt_ids=[70])
    policy.store.add("elsewhere", past, 1.0, 3, provenance=provenance, keep_prompt=True)
    batch, metrics = run(trainer_of(policy, FRESH), rollouts)
    assert batch.keys[K] == f"refill{STEP}x0_0_0"  # the first place of "solved"
    rows = rollouts.read(batch.keys, "advantages", IN_UPDATE)
    assert rows[batch.keys[K]]["advantages"].tolist() == [0.75] * 2
    assert sum(row[IN_UPDATE] for row in rows.values()) == K + 1
    assert metrics["batch/rows_out_of_update"] == 2 * K - 1
    assert stored(policy, "half") == [kept([11, 12]), kept([14, 15, 16])]


class Everyone(Replay):
    """Keeps every rollout, and puts a stored trajectory into the place of the first."""

    def arrange(self, groups, tools, step):
        past = self.store.candidates().row
        return Arrangement([(0, 0)], [Placed(self.take(int(past[0]), step), 0.5)]) if len(past) else Arrangement()


def test_a_rollout_whose_place_was_taken_can_still_be_read(rollouts, verl_hooks):
    roll_out(rollouts, FRESH)
    policy = make(f"{HERE}:Everyone", K, admit="everything")
    policy.store.add("elsewhere", dataclasses.replace(stored_response(205), prompt_ids=[70]), 1.0, 3, keep_prompt=True)
    batch, _ = run(trainer_of(policy, FRESH), rollouts)
    assert batch.keys[0] == f"refill{STEP}x0_0_0"
    assert stored(policy, "half") == [kept(response, reward) for response, reward in GROUPS["aa-1"][1]]
    first = policy.store.trajectory(int(policy.store.rows("half")[0]))
    assert first.prompt_ids.tolist() == PROMPTS["aa-1"]


def test_extra_rows_come_with_their_advantages_and_are_counted(rollouts, verl_hooks):
    """Three updates of one rank: with three rows on top of twelve, nine empty ones make them equal."""
    roll_out(rollouts, FRESH)
    policy = make("on_top:OnTop", K)
    provenance = Provenance(policy.store.new_group(), successes=1, size=K, advantage=0.75)
    for first in (205, 231, 210):
        past = dataclasses.replace(stored_response(first), prompt_ids=[70, first])
        policy.store.add("elsewhere", past, 1.0, 3, provenance=provenance, keep_prompt=True)
    batch, metrics = run(trainer_of(policy, FRESH), rollouts)
    extra = [key for key in batch.keys if key.startswith("extra")]
    assert [i for i, key in enumerate(batch.keys) if key in extra] == [4, 12, 20]  # one an update
    assert len(batch) == 24
    rows = rollouts.read(batch.keys, "advantages", "prompts", "old_log_probs", "uid", FLAG, IN_UPDATE)
    assert {tuple(rows[key]["prompts"].tolist()) for key in extra} == {(70, 205), (70, 231), (70, 210)}
    for key in extra:
        first = int(rows[key]["prompts"][1])
        assert rows[key]["advantages"].tolist() == [0.75] * (1 + first % 3)
        assert rows[key]["old_log_probs"].tolist() == pytest.approx([-first / 512] * (1 + first % 3))
        assert (float(rows[key][FLAG]), float(rows[key][IN_UPDATE])) == (1, 1)
    assert len({rows[key]["uid"] for key in extra}) == 3  # no group with one another
    expected = {"experience/extra_rows": 3.0, "experience/replayed_rows": 3.0, "batch/rows_updated": 15.0}
    assert {name: metrics[name] for name in expected} == expected


class Silent(Policy):
    """Has a loss of its own and changes nothing: all rows are flagged, none is out."""

    @property
    def loss(self):
        return self.config.loss


def test_every_row_is_flagged_for_a_policy_with_a_loss(rollouts, verl_hooks):
    roll_out(rollouts, FRESH)
    verl_hooks.multiple = 5
    batch, _ = run(trainer_of(make(f"{HERE}:Silent", K), FRESH), rollouts)
    rows = rollouts.read(batch.keys)
    assert len(rows) == 15
    assert {(float(row[FLAG]), float(row[IN_UPDATE])) for row in rows.values()} == {(0.0, 1.0)}

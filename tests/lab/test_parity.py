"""Laboratory and trainer give a policy the same calls, and their updates get the same rows, advantages and losses.

Both run a step of their own code over made-up rollouts: `Lab.step`, and the trainer's hooks in verl's order. TransferQueue is a
dictionary here (tests/trainer has the real one), and an engine a function.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.config import ActorConfig

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.loss import ClipRange
from recipe.exgrpo.core.policies import Policy, make_policy
from recipe.exgrpo.core.policies.policy import Tools
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.lab.questions import Stream
from recipe.exgrpo.lab.rows import Objective, Row, batch_loss, tensors_of
from recipe.exgrpo.lab.trainer import Costs, Lab, LabSettings, write_advantages
from recipe.exgrpo.trainer import rows as queue_rows
from recipe.exgrpo.trainer import stored_rows, trainer
from recipe.exgrpo.trainer.objective import exgrpo_loss, mixed_group_advantage
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE, nested
from recipe.exgrpo.trainer.step import Step
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from verl_ext.dataset import index_questions

pytestmark = pytest.mark.verl

K, B, DATASET, STEPS = 4, 8, 40, 25


# ---- one world for both: what a rollout is depends on step, question and session alone


def dice(*parts) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def prompt_of(question: str) -> list[int]:
    return [1, 10 + int(question[1:])]


def rollout(step: int, question: str, session: int) -> tuple[list[int], float]:
    """(token ids, reward); a question has a difficulty of its own, and gets easier."""
    difficulty = dice(question).random()
    rng = dice(step, question, session)
    ids = rng.integers(3, 9, size=int(rng.integers(1, 5))).tolist()
    return ids, float(rng.random() < difficulty + 0.01 * step)


def log_probs(step: int, ids: Sequence[int]) -> np.ndarray:
    """Of a response under the policy of `step`, float32 [L]."""
    return -dice(step, np.asarray(ids).tolist()).random(len(ids)).astype(np.float32)


def entropies(step: int, ids: Sequence[int]) -> np.ndarray:
    """Of a response's tokens under the policy of `step`, float32 [L]."""
    return dice("entropy", step, np.asarray(ids).tolist()).random(len(ids)).astype(np.float32)


def scores_of(responses) -> Scores:
    found = np.array([dice(np.asarray(ids).tolist()).random(4) for ids in responses])
    return Scores(*found.T)


# ---- both sides; each returns (metrics, rows of the update in batch order)


def row_of(question, prompt, ids, reward, replayed, in_update, advantages, behaviour) -> tuple:
    """A row of the update, to be compared; `advantages` of own tokens."""
    ids = [np.asarray(values).tolist() for values in (prompt, ids)]
    advantages = [round(float(value), 6) for value in advantages]
    return question, *ids, float(reward), bool(replayed), bool(in_update), advantages, behaviour


class LabSide(Lab):
    """The laboratory without a model, its stream in the order of the loader below."""

    def __init__(self, policy: Policy):
        class InOrder:
            permutation = staticmethod(np.arange)

        ids = [f"q{i}" for i in range(DATASET)]
        self.policy, self.config, self.settings = policy, policy.config, LabSettings(questions=B, group_size=K)
        self.stream, self.costs = Stream(ids, InOrder()), Costs()
        self.prompts = {question: prompt_of(question) for question in ids}

    def run(self, step: int) -> tuple[dict, list]:
        self.now = step
        return self.step(step), self.trained

    def roll_out(self, slots):
        return [[self.fresh_row(slot.question, i) for i in range(slot.rollouts)] for slot in slots]

    def fresh_row(self, question: str, session: int) -> Row:
        ids, reward = rollout(self.now, question, session)
        return Row(question, self.prompts[question], ids, reward)

    def score(self, candidates):
        return scores_of([candidate.token_ids for candidate in candidates])

    def write_behaviour(self, rows):
        for row in rows:
            if row.behaviour is None:
                row.behaviour, row.entropies = log_probs(self.now, row.response), entropies(self.now, row.response)

    def update(self, batch):
        self.trained = [
            row_of(
                r.question,
                r.prompt,
                r.response,
                r.reward,
                r.is_replayed,
                r.in_update,
                np.broadcast_to(r.advantage, len(r.own_places)),
                r.behaviour.tolist(),
            )
            for r in (*batch.rows, *batch.extra)
        ]
        return {}


class Column(list):
    """Values of one field, one for each row, as far as the trainer asks for it."""

    def unbind(self):
        return list(self)

    @property
    def dtype(self):
        return self[0].dtype


class Queue:
    """TransferQueue as a dictionary."""

    def __init__(self):
        self.rows: dict[str, dict] = {}

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        there = set.intersection(*(set(self.rows[key]) for key in keys))
        names = (
            there if select_fields is None else there.intersection(select_fields)
        )  # as TransferQueue: none is an error
        return {name: Column(self.rows[key][name] for key in keys) for name in names}

    def kv_batch_put(self, keys, partition_id, fields, tags=None):
        for i, key in enumerate(keys):
            values = {name: fields[name][i] for name in list(fields.keys())}
            self.rows.setdefault(key, {}).update({n: getattr(v, "data", v) for n, v in values.items()})

    def kv_clear(self, keys, partition_id):
        for key in keys:
            del self.rows[key]


class VerlSide:
    """The trainer's own hooks in verl's order; verl's part of each does what workers would."""

    def __init__(self, policy: Policy, monkeypatch):
        found = self.trainer = object.__new__(ExGRPOTrainer)  # its constructor starts the whole stack
        found.settings, found.policy, found.group_size, found.current = policy.config, policy, K, Step()
        found.train_dataset = [self.dataset_row(i) for i in range(DATASET)]
        found.question_rows = index_questions(row["extra_info"] for row in found.train_dataset)
        found.train_dataloader = [collate_fn([row]) for row in found.train_dataset]
        found.train_dataloader_it, found.timing_raw, found.actor_rollout_wg = None, {}, None
        nodes = {"rollout": {"calculate_log_probs": False}, "actor": {"ppo_mini_batch_size": B // 2}}
        found.config = OmegaConf.create(
            {"data": {"train_batch_size": B, "gen_batch_size": 1}, "actor_rollout_ref": nodes}
        )
        found.tokenizer, found.history = SimpleNamespace(eos_token_id=0), SimpleNamespace(append=lambda line: 0)
        found._data_parallel_size, found._forward_budget = lambda: 1, lambda: None
        self.queue = Queue()
        for module in (queue_rows, stored_rows, trainer):
            monkeypatch.setattr(module, "tq", self.queue)
        monkeypatch.setattr(trainer, "score_candidates", self.score)
        monkeypatch.setattr(PPOTrainerSync, "_balance_batch", lambda self, batch, metrics: batch)
        monkeypatch.setattr(PPOTrainerSync, "_compute_old_log_prob", self.put_log_probs)
        monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", self.put_advantages)

    @staticmethod
    def dataset_row(i):
        info = {"index": i, "question_id": f"q{i}"}
        return {"raw_prompt": [], "extra_info": info, "dummy_tensor": torch.tensor([0], dtype=torch.uint8)}

    @staticmethod
    def score(workers, candidates, ranks, budget):
        return scores_of([candidate.trajectory.token_ids for candidate in candidates]), 1.0

    def put_log_probs(self, batch, metrics):
        for key in batch.keys:
            row = self.queue.rows[key]
            ids = row["responses"].tolist()
            row["old_log_probs"] = torch.tensor(log_probs(self.trainer.global_steps, ids))
            row["entropy"] = torch.tensor(entropies(self.trainer.global_steps, ids))
        return batch

    def put_advantages(self, batch, metrics):
        """verl's call of the estimator, its own for a policy without a loss: groups are rows of one uid."""
        rows = [self.queue.rows[key] for key in batch.keys]
        scores = torch.nn.utils.rnn.pad_sequence([row["rm_scores"] for row in rows], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([row["response_mask"].float() for row in rows], batch_first=True)
        policy, uids = self.trainer.policy, np.array([row["uid"] for row in rows])
        if policy.loss is None:
            found, _ = compute_grpo_outcome_advantage(scores, mask, uids, norm_adv_by_std_in_grpo=policy.by_std)
        else:
            found, _ = mixed_group_advantage(scores, mask, uids)
        for row, values in zip(rows, found, strict=True):
            row["advantages"] = values[: len(row["responses"])]
        return batch

    def fresh_row(self, uid: str, question: str, session: int, step: int) -> dict:
        """What verl's agent loop writes of a rollout, as far as the trainer asks for it."""
        ids, reward = rollout(step, question, session)
        prompt, response, mask = (
            torch.tensor(prompt_of(question)),
            torch.tensor(ids),
            torch.ones(len(ids), dtype=torch.int64),
        )
        scores = torch.zeros(len(ids))
        scores[-1] = reward
        return {
            "uid": uid, "prompts": prompt, "responses": response, "rm_scores": scores, "extra_fields": {},
            "input_ids": torch.cat([prompt, response]), "position_ids": torch.arange(len(prompt) + len(ids)),
            "response_mask": mask, "loss_mask": mask, "session_id": session, "num_turns": 2,
        }  # fmt: skip

    def run(self, step: int) -> tuple[dict, list]:
        found, self.queue.rows = self.trainer, {}
        found.global_steps = step
        plan = found._next_train_batch()
        questions = {uid: slot.question for uid, slot in found.current.slots.items()}
        for uid, count in zip(plan["uid"], plan["__rollout_n__"], strict=True):
            for session in range(count):
                self.queue.rows[f"{uid}_{session}_0"] = self.fresh_row(uid, questions[uid], session, step)
        keys = sorted(self.queue.rows)  # some order of arrival
        batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
        batch = found._balance_batch(batch, {})
        batch = found._compute_old_log_prob(batch, {})
        batch = found._compute_advantage(batch, {})
        on_top = [key for key in batch.keys if key.startswith("extra")]
        on_top.sort(key=lambda key: int(key.split("_")[0].split("x")[-1]))  # extra3x10_0_0, as the policy named them
        rows = [key for key in batch.keys if not key.startswith(("extra", "pad"))] + on_top
        return found._close(), [self.trained(key) for key in rows]

    def trained(self, key: str) -> tuple:
        row = self.queue.rows[key]
        own = row["advantages"][row["loss_mask"].bool()]
        question = f"q{int(row['prompts'][1]) - 10}"
        flags = row.get(FLAG, 0), row.get(IN_UPDATE, 1)
        behaviour = row["old_log_probs"].tolist()
        return row_of(question, row["prompts"], row["responses"], row["rm_scores"].sum(), *flags, own, behaviour)


# ---- what a policy is asked, and answers


class Recorded:
    """A policy's calls, in order, with all that it was told and all that it said."""

    def __init__(self, policy: Policy):
        self.policy, self.calls = policy, []
        for name in ("plan", "inject", "arrange", "finish"):
            setattr(policy, name, self.wrapped(name, getattr(policy, name)))

    def wrapped(self, name, method):
        def call(*args):
            args = [self.recording(arg) if isinstance(arg, Tools) else arg for arg in args]
            told = [self.plain(arg) for arg in args]
            said = method(*args)
            self.calls.append((name, told, self.plain(said)))
            return said

        return call

    def recording(self, tools: Tools) -> Tools:
        def read(members):
            found = tools.read(members)
            self.calls.append(("read", list(members), [self.plain(response) for response in found]))
            return found

        def score(trajectories):
            self.calls.append(("score", [self.plain(trajectory) for trajectory in trajectories]))
            return tools.score(trajectories)

        def entropies(members):
            found = tools.entropies(members)
            self.calls.append(("entropies", list(members), self.plain(found)))
            return found

        return Tools(score, read, entropies)

    def plain(self, value):
        """Groups, slots, trajectories, responses and arrangements as nested lists that compare."""
        if (
            isinstance(value, Response) and value.mask is None
        ):  # all tokens are the model's own, as said by the other side
            value = replace(value, mask=np.ones(len(value.token_ids), bool))
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item) for item in value]
        if isinstance(value, np.ndarray | torch.Tensor):
            return value.tolist()
        if isinstance(value, Tools) or hasattr(value, "draw"):
            return type(value).__name__ if isinstance(value, Tools) else len(value)
        if hasattr(value, "__dataclass_fields__"):
            return {name: self.plain(getattr(value, name)) for name in value.__dataclass_fields__}
        return repr(value) if isinstance(value, float) else value  # nan equals nan


def both_sides(config: ExGRPOConfig, monkeypatch):
    """(laboratory, trainer, their recorded policies)."""
    ours, theirs = Recorded(make_policy(config, K)), Recorded(make_policy(config, K))
    for side in (ours, theirs):
        if config.experience.init_from:
            add_traces(side.policy)
    return LabSide(ours.policy), VerlSide(theirs.policy, monkeypatch), ours, theirs


def add_traces(policy: Policy) -> None:
    """Up to three traces from elsewhere for each question."""
    for i in range(DATASET):
        for j in range(i % 4):
            ids = dice("trace", i, j).integers(3, 9, size=3 + j).tolist()
            policy.store.add(f"q{i}", Response(ids, log_probs(0, ids)), 1.0, step=0)


def same_state(ours: Policy, theirs: Policy) -> None:
    assert ours.state_dict() == theirs.state_dict()  # so that the next draws are the same
    assert (ours.store is None) == (theirs.store is None)
    if ours.store is not None:
        (columns, meta), (their_columns, their_meta) = ours.store.state(), theirs.store.state()
        assert meta == their_meta
        assert columns.keys() == their_columns.keys()
        for name, column in columns.items():
            np.testing.assert_array_equal(column, their_columns[name], err_msg=name)  # nan equals nan here


@pytest.mark.parametrize(("values", "happens"), [
    ({}, ["replayed_questions", "newly_retired"]),
    ({"start_threshold": None, "rank": "random", "question": {"weighting": "uniform"}}, ["replayed_questions"]),
    ({"rho": 0.75, "inject": False}, ["planned_questions"]),
    ({"rho": 1.0, "bookkeeping": {"review_interval": 5, "review_share": 0.5, "fresh_only": True},
      "buffer": {"max_per_question": 2, "cooldown_steps": 1}}, ["replayed_questions", "reviewed"]),
    ({"bookkeeping": {"retire": False, "keep_unsolved": True}, "rank": "lowest_perplexity"}, ["replayed_questions"]),
    ({"loss": {"importance": "old"}, "gate": "recent", "admit": "everything"}, ["replayed_questions"]),
    ({"rho": 0.0, "start_threshold": None}, ["newly_retired"]),
    ({"policy": "exgrpo", "rho": 0.25, "start_threshold": None, "admit": "lone_success", "loss": {"shaping": "clip"},
      "bookkeeping": {"retire_above": 2, "fresh_only": True}}, ["replayed_questions", "newly_retired"]),
    ({"policy": "refill"}, ["replayed_rows", "zero_variance_groups"]),
    ({"policy": "refill", "refill": {"source": "current"}}, ["replayed_rows"]),
    ({"policy": "refill", "refill": {"reps": 1, "power": 0.0}, "rank": "lowest_entropy"}, ["replayed_rows"]),
    ({"policy": "headroom", "rows": {"max_drift": 0.5}}, ["replayed_rows", "refused_groups", "headroom_mean"]),
    ({"policy": "headroom", "rows": {"max_drift": 0.5, "extra": 0.25}}, ["replayed_rows", "extra_rows"]),
    ({"policy": "rescue", "buffer": {"max_per_question": 2}}, ["replayed_rows", "rescued_groups"]),
    ({"policy": "anchored", "buffer": {"max_age_steps": 4}}, ["replayed_rows", "freed_rows"]),
    ({"policy": "anchored", "rank": "fresh", "rows": {"extra": 0.3, "decay_steps": 2.0}}, ["replayed_rows", "extra_rows"]),
    ({"policy": "repo", "rows": {"per_question": K}}, ["replayed_rows", "extra_rows"]),
    ({"policy": "prompts", "rho": 0.5, "buffer": {"cooldown_steps": 2, "max_reuse": 2}},
      ["planned_questions", "kept_prompts", "graduated_prompts"]),
    ({"policy": "prompts", "inject": False, "prompts": {"low": 0.0, "high": 0.4}}, ["planned_questions"]),
    ({"policy": "masked", "mask": {"band": "easy"}}, []),
    ({"policy": "masked", "mask": {"band": "medium"}}, []),
    ({"policy": "masked", "mask": {"band": "hard"}}, []),
    ({"policy": "on_policy"}, []),
    ({"policy": "grpo"}, []),
    ({"policy": "rl_zvp"}, ["shaped_rows", "shaped_advantage_mean"]),
    ({"policy": "rl_zvp", "options": {"alpha": 0.3}, "loss": {"denominator": "mixed"}}, ["shaped_rows"]),
    ({"policy": "luffy", "experience": {"init_from": ["traces"]}}, ["replayed_rows", "guided_groups"]),
    ({"policy": "rlep", "experience": {"init_from": ["traces"]}, "loss": {"shaping": "clip", "importance": "old"}},
      ["replayed_rows", "guided_groups"]),
    ({"policy": "on_policy", "loss": {"denominator": "mixed"}}, []),
    ({"policy": "refill", "loss": {"denominator": "mixed"}}, ["replayed_rows"]),
    ({"policy": "outside_policy:Rescue"}, ["replayed_rows", "rescued_groups"]),
    ({"policy": "on_top:OnTop", "options": {"most": 5}}, ["replayed_rows", "extra_rows"]),
    ({"policy": "on_top:OnTop", "options": {"most": B * K}, "rank": "rarity"}, ["replayed_rows", "extra_rows"]),
    ({"policy": "on_top:OnTop", "options": {"most": 0}}, ["added"]),
], ids=str)  # fmt: skip
def test_same_rollouts_give_the_same_calls_rows_metrics_and_stores(values, happens, monkeypatch):
    lab, verl, ours, theirs = both_sides(
        ExGRPOConfig.from_mapping({"seed": 5, "start_threshold": 0.3} | values), monkeypatch
    )
    totals = dict.fromkeys(happens, 0.0)
    for step in range(1, STEPS + 1):
        (metrics, rows), (their_metrics, their_rows) = lab.run(step), verl.run(step)
        # A policy without a loss of its own is not asked for more by the trainer, where verl's loss is in place.
        asked = {name for name, *_ in ours.calls} - ({"inject", "arrange"} if ours.policy.loss is None else set())
        assert [call for call in ours.calls if call[0] in asked] == theirs.calls
        assert rows == their_rows
        assert metrics == {name: their_metrics[name] for name in metrics}
        same_state(ours.policy, theirs.policy)
        ours.calls.clear(), theirs.calls.clear()
        totals = {name: total + metrics[f"experience/{name}"] for name, total in totals.items()}
    assert all(totals.values()), totals


def test_the_recorded_calls_tell_a_difference(monkeypatch):
    """The comparison above can fail: another seed, and it does."""
    config = ExGRPOConfig.from_mapping({"start_threshold": None})
    lab, verl, ours, theirs = both_sides(config, monkeypatch)
    theirs.policy.rng = np.random.default_rng(1)
    differ = set()
    for step in range(1, 8):
        (_, rows), (_, their_rows) = lab.run(step), verl.run(step)
        differ |= {"calls"} if ours.calls != theirs.calls else set()
        differ |= {"rows"} if rows != their_rows else set()
    assert differ == {"calls", "rows"}


# ---- advantage and loss

PROMPTS, RESPONSES = [3, 5, 1, 4, 2, 6], [4, 9, 1, 6, 2, 8]
HORIZON = 16


def rows_of_a_batch(out=()) -> list[Row]:
    """Ragged rows of two groups, the last of each replayed; behaviour log-probs on both sides of the clip range."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (p, n) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        behaviour = (-1.0 + 0.5 * rng.standard_normal(n)).astype(np.float32)
        prompt, response = rng.integers(3, 12, p).tolist(), rng.integers(3, 12, n).tolist()
        rows.append(Row(f"q{i // 3}", prompt, response, float(i % 2), i % 3 == 2, behaviour, in_update=i not in out))
    write_advantages([rows[:3], rows[3:]])
    return rows


def test_advantages_are_the_same():
    rows = rows_of_a_batch()
    scores = torch.zeros(len(rows), max(RESPONSES))
    mask = torch.arange(max(RESPONSES)) < torch.tensor(RESPONSES).unsqueeze(1)
    for i, row in enumerate(rows):
        scores[i, len(row.response) - 1] = row.reward
    theirs, _ = mixed_group_advantage(scores, mask.float(), np.array([row.question for row in rows]))
    for i, row in enumerate(rows):
        assert theirs[i][mask[i]].tolist() == pytest.approx([row.advantage] * len(row.response), abs=1e-7)
    assert any(row.advantage for row in rows)


def made_up(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up log-probs and entropies [n, L] of the response tokens, functions of one parameter."""
    return -parameter.exp(), parameter.sigmoid()


def whole_sequences(values: torch.Tensor) -> torch.Tensor:
    """Response values as verl's engine gives them: jagged over prompt and response, shifted by one, 9.0 elsewhere."""
    rows = []
    for i, (p, n) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        rows.append(torch.cat([values.new_full((p - 1,), 9.0), values[i, :n], values.new_full((1,), 9.0)]))
    return nested(rows)


def tensordict(rows: list[Row], active: bool) -> TensorDict:
    """The same batch as it comes out of TransferQueue."""
    masks = [torch.ones(len(row.response), dtype=torch.int64) for row in rows]
    columns = {
        "prompts": [torch.tensor(row.prompt) for row in rows],
        "responses": [torch.tensor(row.response) for row in rows],
        "input_ids": [torch.tensor([*row.prompt, *row.response]) for row in rows],
        "position_ids": [torch.arange(len(row.prompt) + len(row.response)) for row in rows],
        "response_mask": masks,
        "loss_mask": masks,
        "advantages": [torch.full((len(row.response),), row.advantage) for row in rows],
        "old_log_probs": [torch.tensor(row.behaviour) for row in rows],
    }
    data = TensorDict({name: nested(values) for name, values in columns.items()}, batch_size=len(rows))
    data[FLAG] = torch.tensor([float(row.is_replayed) for row in rows])
    data[IN_UPDATE] = torch.tensor([float(row.in_update) for row in rows])
    tokens = sum(len(row.response) for row in rows)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=len(rows), replay_active=active)
    return data


@pytest.mark.parametrize("loss", [
    LossConfig(), LossConfig(shaping="clip"), LossConfig(shaping="none"), LossConfig(beta=0.5),
    LossConfig(fresh_clip="before_replay"), LossConfig(fresh_clip="never"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("out", [(), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("active", [True, False])
def test_the_loss_of_a_ragged_batch_is_the_same(loss, out, active):
    rows = rows_of_a_batch(out)
    parameter = torch.randn(len(rows), max(RESPONSES), generator=torch.Generator().manual_seed(0)).requires_grad_()

    objective = Objective(loss, ClipRange(), 0.01, len(rows), HORIZON, active)
    ours, terms = batch_loss(*made_up(parameter), tensors_of(rows, max(PROMPTS) + 1), objective)
    (gradient,) = torch.autograd.grad(ours, parameter)

    actor = ActorConfig(
        strategy="fsdp2", rollout_n=3, use_dynamic_bsz=True, loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor=HORIZON, entropy_coeff=0.01,
    )  # fmt: skip
    log_probs, entropy = map(whole_sequences, made_up(parameter))
    output, data = {"log_probs": log_probs, "entropy": entropy}, tensordict(rows, active)
    theirs, metrics = exgrpo_loss(actor, loss, output, data)
    (their_gradient,) = torch.autograd.grad(theirs, parameter)

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert terms["pg_loss"] == pytest.approx(metrics["actor/pg_loss"].aggregate(), abs=1e-6)
    assert terms["entropy_loss"] == pytest.approx(metrics["actor/entropy_loss"].aggregate(), abs=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3

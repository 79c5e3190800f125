"""The laboratory and the verl trainer are two adapters of one core: same inputs, same plan, same books, same loss."""

import zlib

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.config import ActorConfig

import recipe.exgrpo.trainer.filling
import recipe.exgrpo.trainer.trainer
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig, MaskConfig
from recipe.exgrpo.core.loss import ClipRange
from recipe.exgrpo.core.policies.fill import FillManager
from recipe.exgrpo.core.policies.replay import ReplayManager
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.lab.modes import Fill, Masked, Replay
from recipe.exgrpo.lab.questions import Stream
from recipe.exgrpo.lab.rows import Objective, Row, batch_loss, tensors_of
from recipe.exgrpo.lab.trainer import write_advantages
from recipe.exgrpo.trainer.advantage import mixed_group_advantage
from recipe.exgrpo.trainer.collection import collect
from recipe.exgrpo.trainer.filling import fill_batch
from recipe.exgrpo.trainer.injection import nested
from recipe.exgrpo.trainer.masking import out_of_band
from recipe.exgrpo.trainer.objective import exgrpo_loss
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from verl_ext.dataset import index_questions

pytestmark = pytest.mark.verl

K, B, DATASET, STEPS = 4, 8, 40, 25


# ---- one world for both: what a rollout is depends on step, question and session alone


def dice(*parts) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def rollout(step: int, question: str, session: int) -> tuple[list[int], list[float], float]:
    """(token ids, log-probs of pi_old, reward); a question has a difficulty of its own, and gets easier."""
    difficulty = dice(question).random()
    rng = dice(step, question, session)
    ids = rng.integers(3, 9, size=int(rng.integers(1, 5))).tolist()
    log_probs = (-rng.random(len(ids))).astype(np.float32).tolist()
    return ids, log_probs, float(rng.random() < difficulty + 0.01 * step)


def score_of(ids) -> tuple[float, float]:
    rng = dice(tuple(np.asarray(ids).tolist()))
    return rng.random(), rng.random()


def scores_of(many) -> Scores:
    entropy, nll = zip(*map(score_of, many), strict=True)
    return Scores(np.array(entropy), np.array(nll))


def queue_row(ids, past) -> dict[str, torch.Tensor]:
    """What TransferQueue holds of a rollout, as far as the adapters ask for it."""
    tensors = {"responses": torch.tensor(ids), "old_log_probs": torch.tensor(past), "loss_mask": torch.ones(len(ids))}
    return tensors | {"prompts": torch.tensor([1, 2])}


class LabSide:
    """The lab's adapter, its stream in the order of the verl loader below."""

    def __init__(self, config):
        class InOrder:
            permutation = staticmethod(np.arange)

        self.mode = Replay(config, K)
        self.stream = Stream([f"q{i}" for i in range(DATASET)], InOrder())

    @property
    def manager(self):
        return self.mode.manager

    def step(self, step):
        slots = self.mode.slots(self.stream, B)
        made = [[rollout(step, slot.question, i) for i in range(slot.rollouts)] for slot in slots]
        groups = [
            [
                Row(slot.question, [1, 2], ids, reward, behaviour=np.array(past, np.float32))
                for ids, past, reward in rows
            ]
            for slot, rows in zip(slots, made, strict=True)
        ]
        rate = float(np.mean([row.reward for rows in groups for row in rows]))
        self.mode.inject(groups, slots, lambda candidates: scores_of([ids for _, ids in candidates]), step)
        self.mode.finish(groups, step, rate)
        replayed = [(r.question, r.response, r.reward) for rows in groups for r in rows if r.is_replayed]
        return [(slot.question, slot.rollouts) for slot in slots], sorted(replayed)


class VerlSide:
    """The trainer's own hooks; TransferQueue is a dict and the engine a function."""

    def __init__(self, config, monkeypatch):
        trainer = self.trainer = object.__new__(ExGRPOTrainer)  # its constructor starts the whole stack
        trainer.settings, trainer.group_size, trainer.mode = config, K, "replay"
        trainer.replay = ReplayManager(config, K)
        trainer.train_dataset = [self.row(i) for i in range(DATASET)]
        trainer.question_rows = index_questions(row["extra_info"] for row in trainer.train_dataset)
        trainer.train_dataloader = [collate_fn([row]) for row in trainer.train_dataset]
        trainer.train_dataloader_it = None
        trainer.config = OmegaConf.create({"data": {"train_batch_size": B, "gen_batch_size": 1}})
        trainer.timing_raw = {}
        trainer.actor_rollout_wg = None
        trainer._data_parallel_size = trainer._forward_budget = lambda: None
        self.rows = {}
        monkeypatch.setattr(recipe.exgrpo.trainer.trainer.tq, "kv_batch_get", self.read)
        monkeypatch.setattr(recipe.exgrpo.trainer.trainer, "inject", lambda batch, *rest: batch)
        monkeypatch.setattr(recipe.exgrpo.trainer.trainer, "score_candidates", self.score)

    @staticmethod
    def row(i):
        info = {"index": i, "question_id": f"q{i}"}
        return {"raw_prompt": [], "extra_info": info, "dummy_tensor": torch.tensor([0], dtype=torch.uint8)}

    @staticmethod
    def score(workers, candidates, ranks, budget):
        return scores_of([candidate.trajectory.token_ids for candidate in candidates]), 1.0

    def read(self, keys, partition_id, select_fields):
        return {name: [self.rows[key][name] for key in keys] for name in select_fields}

    @property
    def manager(self):
        return self.trainer.replay

    def step(self, step):
        trainer = self.trainer
        trainer.global_steps = step
        plan = trainer._next_train_batch()
        counts = dict(zip(plan["uid"], plan["__rollout_n__"], strict=True))
        slots = [(trainer.questions[uid], count) for uid, count in counts.items()]
        self.rows, rewards = {}, {}
        for uid, count in counts.items():
            for session in range(count):
                ids, past, rewards[f"{uid}_{session}_0"] = rollout(step, trainer.questions[uid], session)
                self.rows[f"{uid}_{session}_0"] = queue_row(ids, past)
        batch = KVBatchMeta(partition_id="train", keys=list(rewards), tags=[{} for _ in rewards])
        trainer._inject(batch)
        collect(trainer.replay, batch, rewards, trainer.replays, trainer.questions, step)
        trainer.replay.finish_step(step, float(np.mean(list(rewards.values()))))
        taken = [replay.trajectory for replay in trainer.replays]
        return slots, sorted((t.question, t.token_ids.tolist(), t.reward) for t in taken)


@pytest.mark.parametrize("values", [
    {},
    {"start_threshold": None, "trajectory": {"select": "random"}, "question": {"weighting": "uniform"}},
    {"rho": 0.75, "inject": False},
    {"rho": 1.0, "bookkeeping": {"review_interval": 5, "fresh_only": True}, "buffer": {"max_per_question": 2}},
    {"bookkeeping": {"retire": False, "keep_unsolved": True}, "trajectory": {"select": "lowest_perplexity"}},
    {"rho": 0.0, "start_threshold": None},
], ids=str)  # fmt: skip
def test_same_outcomes_give_the_same_plans_replays_and_books(values, monkeypatch):
    config = ExGRPOConfig.from_mapping({"seed": 5} | values)
    lab, verl = LabSide(config), VerlSide(config, monkeypatch)
    replayed = 0
    for step in range(1, STEPS + 1):
        found, expected = lab.step(step), verl.step(step)
        assert found == expected
        replayed += len(found[1])
        assert lab.manager.state() == verl.manager.state()
        assert lab.manager.metrics(step) == verl.manager.metrics(step)
        (columns, _), (theirs, _) = lab.manager.buffer.state(), verl.manager.buffer.state()
        assert columns.keys() == theirs.keys()
        for name, column in columns.items():
            np.testing.assert_array_equal(column, theirs[name], err_msg=name)  # nan equals nan here
    assert (replayed > 0) == (config.rho > 0 and config.inject)
    assert len(lab.manager.buffer.retired) > 0 or not config.bookkeeping.retire


@pytest.mark.parametrize("values", [{}, {"source": "current"}, {"reps": 1, "power": 0.0}], ids=str)
def test_same_outcomes_give_the_same_fill(values, monkeypatch):
    config = ExGRPOConfig.from_mapping({"seed": 5, "mode": "fill", "start_threshold": 0.3, "fill": values})
    lab, verl, rows = Fill(config, K), FillManager(config, K), {}

    def read(keys, partition_id, select_fields):
        return {name: [rows[key][name] for key in keys] for name in select_fields}

    monkeypatch.setattr(recipe.exgrpo.trainer.filling.tq, "kv_batch_get", read)
    monkeypatch.setattr(recipe.exgrpo.trainer.filling, "_exchange_rows", lambda batch, slots: batch)
    monkeypatch.setattr(recipe.exgrpo.trainer.filling, "flag_rows", lambda batch, dropped: None)
    filled = dropped = 0
    for step in range(1, STEPS + 1):
        questions = {f"u{i}": f"q{(step * 7 + i) % DATASET}" for i in range(B)}
        made = {uid: [rollout(step, question, i) for i in range(K)] for uid, question in questions.items()}
        groups = [
            [Row(questions[uid], [1, 2], ids, r, behaviour=np.array(past, np.float32)) for ids, past, r in found]
            for uid, found in made.items()
        ]
        rewards = {f"{uid}_{i}_0": r for uid, found in made.items() for i, (_, _, r) in enumerate(found)}
        rows = {f"{uid}_{i}_0": queue_row(ids, past) for uid, f in made.items() for i, (ids, past, _) in enumerate(f)}
        rate = float(np.mean(list(rewards.values())))
        lab.arrange(groups, step)
        lab.finish(groups, step, rate)
        batch = KVBatchMeta(partition_id="train", keys=list(rewards), tags=[{} for _ in rewards])
        theirs = fill_batch(verl, batch, rewards, questions, step)
        verl.finish_step(step, rate)
        assert [row.advantage for found in groups for row in found if row.is_replayed] == list(
            theirs.advantages.values()
        )
        assert lab.dropped == theirs.dropped
        (columns, meta), (their_columns, their_meta) = lab.manager.state(), verl.state()
        assert meta == their_meta
        assert {k: v.tolist() for k, v in columns.items()} == {k: v.tolist() for k, v in their_columns.items()}
        assert lab.manager.metrics() == verl.metrics()
        filled, dropped = filled + len(theirs.advantages), dropped + theirs.dropped
    assert filled > 0
    assert dropped > 0


def test_nothing_is_replayed_in_masked_mode():
    """The trainer has no manager then, and `loss.fresh_clip: before_replay` goes on clipping; so must the laboratory."""
    trainer = object.__new__(ExGRPOTrainer)
    trainer.replay = trainer.fill = None
    assert trainer.manager is None
    assert not Masked(ExGRPOConfig(mode="masked"), K).active


@pytest.mark.parametrize("band", ["easy", "medium", "hard"])
def test_masked_groups_are_the_same(band):
    groups = [[Row(f"q{k}", [1], [2], float(i < k)) for i in range(K)] for k in range(K + 1)]
    Masked(ExGRPOConfig(mode="masked", mask=MaskConfig(band)), K).arrange(groups, 1)
    rewards = {f"u{g}_{i}_0": row.reward for g, rows in enumerate(groups) for i, row in enumerate(rows)}
    kept = [row.in_update for rows in groups for row in rows]
    outside = set(out_of_band(rewards, band, 0.5))
    assert kept == [key not in outside for key in rewards]
    assert 0 < sum(kept) < len(kept)


# ---- advantage and loss

PROMPTS, RESPONSES = [3, 5, 1, 4, 2, 6], [4, 9, 1, 6, 2, 8]
HORIZON = 16


def rows_of_a_batch(dropped=()) -> list[Row]:
    """Ragged rows of two groups, the last of each replayed; behaviour log-probs on both sides of the clip range."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (p, n) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        behaviour = (-1.0 + 0.5 * rng.standard_normal(n)).astype(np.float32)
        prompt, response = rng.integers(3, 12, p).tolist(), rng.integers(3, 12, n).tolist()
        rows.append(
            Row(f"q{i // 3}", prompt, response, float(i % 2), i % 3 == 2, behaviour, in_update=i not in dropped)
        )
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


def policy(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
    data["is_replayed"] = torch.tensor([float(row.is_replayed) for row in rows])
    data["in_update"] = torch.tensor([float(row.in_update) for row in rows])
    tokens = sum(len(row.response) for row in rows)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=len(rows), replay_active=active)
    return data


@pytest.mark.parametrize("loss", [
    LossConfig(), LossConfig(shaping="clip"), LossConfig(shaping="none"), LossConfig(beta=0.5),
    LossConfig(fresh_clip="before_replay"), LossConfig(fresh_clip="never"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dropped", [(), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("active", [True, False])
def test_the_loss_of_a_ragged_batch_is_the_same(loss, dropped, active):
    rows = rows_of_a_batch(dropped)
    parameter = torch.randn(len(rows), max(RESPONSES), generator=torch.Generator().manual_seed(0)).requires_grad_()

    objective = Objective(loss, ClipRange(), 0.01, len(rows), HORIZON, active)
    ours, terms = batch_loss(*policy(parameter), tensors_of(rows, max(PROMPTS) + 1), objective)
    (gradient,) = torch.autograd.grad(ours, parameter)

    actor = ActorConfig(
        strategy="fsdp2", rollout_n=3, use_dynamic_bsz=True, loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor=HORIZON, entropy_coeff=0.01,
    )  # fmt: skip
    log_probs, entropy = map(whole_sequences, policy(parameter))
    output, data = {"log_probs": log_probs, "entropy": entropy}, tensordict(rows, active)
    theirs, metrics = exgrpo_loss(actor, loss, output, data, drops_rows=bool(dropped))
    (their_gradient,) = torch.autograd.grad(theirs, parameter)

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert terms["pg_loss"] == pytest.approx(metrics["actor/pg_loss"].aggregate(), abs=1e-6)
    assert terms["entropy_loss"] == pytest.approx(metrics["actor/entropy_loss"].aggregate(), abs=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3

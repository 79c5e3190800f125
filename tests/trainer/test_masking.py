"""Masked GRPO on a real TransferQueue, and a loss in which dropped rows have no part but keep their place."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig

from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.trainer.collection import read_outcomes
from recipe.exgrpo.trainer.masking import IN_UPDATE, flag_rows, mask_groups, out_of_band
from recipe.exgrpo.trainer.objective import exgrpo_loss
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

pytestmark = pytest.mark.verl

K = 4
SUCCESSES = {"none": 0, "hard": 1, "medium": 2, "easy": 3, "all": 4}


def fill(rollouts):
    for uid, successes in SUCCESSES.items():
        for session in range(K):
            rollouts.add(uid, session, [5 + session] * (1 + session), float(session < successes))
    return rollouts.batch()


@pytest.mark.parametrize(
    ("band", "kept"), [("easy", {"easy"}), ("medium", {"medium", "easy"}), ("hard", {"hard"})]
)  # 3 of 4 is both in [0.75, 1) and in (0.25, 0.75]
def test_flags_follow_the_band(rollouts, band, kept):
    batch = fill(rollouts)
    assert mask_groups(batch, read_outcomes(batch.keys, "train")[0], band, 0.5) == K * (len(SUCCESSES) - len(kept))
    rows = rollouts.read(batch.keys)
    assert {key.split("_")[0] for key, row in rows.items() if row[IN_UPDATE] == 1} == kept
    assert {key.split("_")[0] for key, row in rows.items() if row[IN_UPDATE] == 0} == set(SUCCESSES) - kept
    assert all(bool(row["response_mask"].all()) for row in rows.values())  # verl's own metrics still see every token


def test_rates_of_partial_groups_are_of_what_came_back():
    rewards = {"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.0, "b_1_0": 0.0, "b_2_0": 0.0}
    assert out_of_band(rewards, "medium", 0.5) == ["b_0_0", "b_1_0", "b_2_0"]


def test_rewards_are_sums_of_token_scores(rollouts):
    batch = fill(rollouts)
    found = read_outcomes(batch.keys, "train")[0]
    assert found == {f"{uid}_{s}_0": float(s < n) for uid, n in SUCCESSES.items() for s in range(K)}


@pytest.mark.parametrize(("mode", "dropped"), [("masked", 16), ("fill", 0)])
def test_the_trainer_masks_in_its_mode_only(rollouts, monkeypatch, mode, dropped):
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    monkeypatch.setattr(PPOTrainerSync, "_balance_batch", lambda self, batch, metrics: batch)
    trainer = object.__new__(ExGRPOTrainer)  # its constructor starts the whole stack
    trainer.settings = ExGRPOConfig.from_mapping({"mode": mode, "mask": {"band": "hard"}})
    trainer.mode, trainer.replay, trainer.dropped, trainer.group_size = mode, None, 0, K
    trainer.questions = dict.fromkeys(reversed(SUCCESSES))
    batch = trainer._balance_batch(fill(rollouts), {})
    assert trainer.dropped == dropped
    assert [key.split("_")[0] for key in batch.keys[::K]] == list(
        reversed(SUCCESSES)
    )  # the plan's order, not arrival's
    assert all(row["is_replayed"] == 0 for row in rollouts.read(batch.keys).values())
    assert ("in_update" in rollouts.read(batch.keys[:1])[batch.keys[0]]) == (mode == "masked")


# ---- the loss

LENGTHS = [3, 1, 4, 2]
PROMPT = 2
CONFIG = ActorConfig(
    strategy="fsdp2",
    rollout_n=4,
    use_dynamic_bsz=True,
    loss_agg_mode="seq-mean-token-sum-norm",
    loss_scale_factor=8,
    entropy_coeff=0.1,
)


def jagged(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def micro_batch(rows, in_update=None):
    rng = torch.Generator().manual_seed(3)
    past = [torch.randn(n, generator=rng) for n in LENGTHS]
    columns = {
        "prompts": [torch.zeros(PROMPT, dtype=torch.long) for _ in rows],
        "responses": [torch.zeros(LENGTHS[i], dtype=torch.long) for i in rows],
        "input_ids": [torch.zeros(PROMPT + LENGTHS[i], dtype=torch.long) for i in rows],
        "response_mask": [torch.ones(LENGTHS[i], dtype=torch.long) for i in rows],
        "old_log_probs": [past[i] for i in rows],
        "advantages": [torch.full((LENGTHS[i],), (-1.0) ** i) for i in rows],
    }
    data = TensorDict({name: jagged(values) for name, values in columns.items()}, batch_size=len(rows))
    data["is_replayed"] = torch.tensor([float(i == 2) for i in rows])
    if in_update is not None:
        data[IN_UPDATE] = torch.tensor(in_update)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=sum(LENGTHS), global_batch_size=len(LENGTHS))
    return data


def loss_and_gradient(rows, in_update=None, drops_rows=False):
    rng = torch.Generator().manual_seed(4)
    logs = [torch.randn(PROMPT + n, generator=rng) for n in LENGTHS]
    leaf = torch.nn.Parameter(torch.cat([logs[i] for i in rows]))
    offsets = torch.tensor([0, *np.cumsum([PROMPT + LENGTHS[i] for i in rows])])
    nested = torch.nested.nested_tensor_from_jagged(leaf, offsets)
    output = {"log_probs": nested, "entropy": nested * 0.5}
    loss, metrics = exgrpo_loss(CONFIG, LossConfig(), output, micro_batch(rows, in_update), drops_rows=drops_rows)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient.split([PROMPT + LENGTHS[i] for i in rows]), metrics


def test_dropped_rows_leave_every_term_and_keep_their_place_in_the_normaliser():
    loss, gradient, metrics = loss_and_gradient([0, 1, 2, 3], [1.0, 0.0, 1.0, 0.0], drops_rows=True)
    alone, of_alone, metrics_alone = loss_and_gradient([0, 2])  # same global_batch_size: the divisor stays 4
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(gradient[0], of_alone[0])
    torch.testing.assert_close(gradient[2], of_alone[1])
    assert not gradient[1].any()
    assert not gradient[3].any()
    assert metrics["sums/fresh_tokens"].values == metrics_alone["sums/fresh_tokens"].values
    whole, of_whole, _ = loss_and_gradient([0, 1, 2, 3])
    assert not torch.allclose(whole, loss)
    assert of_whole[1].any()


def test_a_missing_flag_is_an_error():
    with pytest.raises(KeyError, match=IN_UPDATE):
        loss_and_gradient([0, 1, 2, 3], drops_rows=True)


def test_flag_rows_covers_the_whole_batch(rollouts):
    batch = fill(rollouts)
    flag_rows(batch, batch.keys[:3])
    rows = rollouts.read(batch.keys, IN_UPDATE)
    assert [float(rows[key][IN_UPDATE]) for key in batch.keys] == [0.0] * 3 + [1.0] * (len(batch.keys) - 3)

"""The registered estimator, called the way verl's trainer calls it."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

from recipe.exgrpo.trainer import advantage

pytestmark = pytest.mark.verl

# Three questions, rows interleaved as after balancing; "b" has a replayed member, "lone" lost its siblings.
UIDS = ["a", "b", "lone", "a", "b", "b", "a", "b", "a"]
REWARDS = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.25, 1.0]
LENGTHS = [3, 5, 2, 1, 4, 5, 2, 5, 3]


def batch(rows=slice(None)) -> dict:
    lengths = torch.tensor(LENGTHS)[rows]
    mask = (torch.arange(5) < lengths[:, None]).long()
    scores = torch.zeros(mask.shape)
    scores[torch.arange(len(lengths)), lengths - 1] = torch.tensor(REWARDS)[rows]
    return {
        "token_level_rewards": scores,
        "response_mask": mask,
        "index": np.array(UIDS, dtype=object)[rows],
    }


GROUPS = [i for i, uid in enumerate(UIDS) if uid != "lone"]


@pytest.mark.parametrize("by_std", [False, True])
def test_equals_verls_grpo_on_groups(by_std):
    config = AlgoConfig(norm_adv_by_std_in_grpo=by_std)
    found, returns = get_adv_estimator_fn("exgrpo")(**batch(GROUPS), config=config)
    expected, _ = compute_grpo_outcome_advantage(**batch(GROUPS), norm_adv_by_std_in_grpo=by_std)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, returns)
    assert expected.abs().max() > 0.5


def test_a_group_of_one_gets_nothing_where_verl_gives_its_reward():
    row = [UIDS.index("lone")]
    config = AlgoConfig(norm_adv_by_std_in_grpo=False)
    assert not get_adv_estimator_fn("exgrpo")(**batch(row), config=config)[0].any()
    assert compute_grpo_outcome_advantage(**batch(row), norm_adv_by_std_in_grpo=False)[0].any()


@pytest.mark.parametrize("by_std", [False, True])
def test_through_verls_compute_advantage(by_std):
    rows = batch()
    proto = DataProto.from_dict(
        {name: rows[name] for name in ("token_level_rewards", "response_mask")}, {"uid": rows["index"]}
    )
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": by_std})
    data = compute_advantage(proto, adv_estimator=advantage.NAME, norm_adv_by_std_in_grpo=by_std, config=config)
    for i, (uid, reward) in enumerate(zip(UIDS, REWARDS, strict=True)):
        members = np.array([r for r, u in zip(REWARDS, UIDS, strict=True) if u == uid])
        expected = reward - members.mean()
        if by_std and len(members) > 1:
            expected /= members.std(ddof=1) + 1e-6
        row = data.batch["advantages"][i]
        np.testing.assert_allclose(row[: LENGTHS[i]], expected, rtol=1e-5, atol=1e-7)
        assert not row[LENGTHS[i] :].any()


def test_the_default_is_dr_grpo():
    without, _ = advantage.mixed_group_advantage(**batch())
    config = AlgoConfig(norm_adv_by_std_in_grpo=False)
    assert torch.equal(without, advantage.mixed_group_advantage(**batch(), config=config)[0])


def test_rewards_are_left_alone():
    rows = batch()
    before = rows["token_level_rewards"].clone()
    advantage.mixed_group_advantage(**rows)
    assert torch.equal(rows["token_level_rewards"], before)

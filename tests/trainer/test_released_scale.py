"""`exgrpo.loss.scale: released` against a float64 oracle of the released code's averages: ragged rows, micro-batches, ranks.

The form is that of verl/mix_src/mix_actor.py in the authors' repository: per micro-batch, the policy term is a sum over tokens
divided by 8192 and the entropy term a mean over the micro-batch's tokens; micro-batches add up (gradient_accumulation 1), and
FSDP averages gradients over ranks.
"""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.trainer.objective import exgrpo_loss
from recipe.exgrpo.trainer.rows import nested

pytestmark = pytest.mark.verl

PROMPTS, RESPONSES = [3, 5, 1, 4, 2, 6, 2, 3], [4, 9, 1, 6, 2, 8, 5, 3]
REPLAYED = [0, 0, 1, 0, 0, 1, 0, 0]
HORIZON, COEFFICIENT, BETA = 8192, 0.001, 0.1
# One list of micro-batches (rows) for each rank.
SPLITS = {
    "one rank, one micro-batch": [[[0, 1, 2, 3, 4, 5, 6, 7]]],
    "one rank, three micro-batches": [[[0, 3], [1, 2, 4], [5, 6, 7]]],
    "two ranks, unlike micro-batches": [[[0, 1], [2, 3]], [[4, 5, 6, 7]]],
    "four ranks": [[[0, 1]], [[2], [3]], [[4, 5]], [[6, 7]]],
}


def parameters():
    """Log-probs and entropies of all response tokens as leaves [8, 9], and behaviour log-probs and advantages."""
    rng = np.random.default_rng(0)
    log_probs = torch.tensor(-rng.exponential(size=(8, 9)), requires_grad=True)
    entropies = torch.tensor(rng.exponential(size=(8, 9)), requires_grad=True)
    behaviour = log_probs.detach() + torch.tensor(rng.normal(0, 0.4, size=(8, 9)))
    return log_probs, entropies, behaviour, torch.tensor(rng.choice([-0.375, 0.625], size=8))


def rows(values, chosen):
    """Response values as verl's engine gives them: jagged over prompt and response, shifted by one, 9.0 elsewhere."""
    parts = []
    for i in chosen:
        p, n = PROMPTS[i], RESPONSES[i]
        parts.append(torch.cat([values.new_full((p - 1,), 9.0), values[i, :n], values.new_full((1,), 9.0)]))
    return nested(parts)


def micro_batch(chosen, behaviour, advantages, ranks):
    columns = {
        "prompts": [torch.ones(PROMPTS[i], dtype=torch.int64) for i in chosen],
        "responses": [torch.ones(RESPONSES[i], dtype=torch.int64) for i in chosen],
        "input_ids": [torch.ones(PROMPTS[i] + RESPONSES[i], dtype=torch.int64) for i in chosen],
        "position_ids": [torch.arange(PROMPTS[i] + RESPONSES[i]) for i in chosen],
        "response_mask": [torch.ones(RESPONSES[i], dtype=torch.int64) for i in chosen],
        "loss_mask": [torch.ones(RESPONSES[i], dtype=torch.int64) for i in chosen],
        "advantages": [advantages[i].expand(RESPONSES[i]).clone() for i in chosen],
        "old_log_probs": [behaviour[i, : RESPONSES[i]].clone() for i in chosen],
    }
    data = TensorDict({name: nested(values) for name, values in columns.items()}, batch_size=len(chosen))
    data["is_replayed"] = torch.tensor([float(REPLAYED[i]) for i in chosen])
    data["in_update"] = torch.ones(len(chosen))
    tu.assign_non_tensor(
        data, dp_size=ranks, batch_num_tokens=sum(RESPONSES), global_batch_size=len(RESPONSES), replay_active=True
    )
    return data


def gradients(split, scale):
    """d loss / d (log-probs, entropies) through `exgrpo_loss`, averaged over ranks as FSDP does."""
    log_probs, entropies, behaviour, advantages = parameters()
    actor = ActorConfig(
        strategy="fsdp2", rollout_n=4, use_dynamic_bsz=True, loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor=HORIZON, entropy_coeff=COEFFICIENT,
    )  # fmt: skip
    config = LossConfig(fresh_clip="before_replay", scale=scale)
    for rank in split:
        for chosen in rank:
            output = {"log_probs": rows(log_probs, chosen), "entropy": rows(entropies, chosen)}
            loss, _ = exgrpo_loss(actor, config, output, micro_batch(chosen, behaviour, advantages, len(split)))
            (loss / len(split)).backward()
    return log_probs.grad, entropies.grad


def oracle(split):
    """The same by hand, token by token, in float64."""
    log_probs, _, behaviour, advantages = (value.detach().numpy() for value in parameters())
    policy, entropy = np.zeros((8, 9)), np.zeros((8, 9))
    for rank in split:
        for chosen in rank:
            tokens = sum(RESPONSES[i] for i in chosen)
            for i in chosen:
                for t in range(RESPONSES[i]):
                    w = np.exp(log_probs[i, t] - behaviour[i, t])
                    slope = BETA * w / (w + BETA) ** 2 if REPLAYED[i] else w  # d f(w) / d log pi
                    policy[i, t] += -advantages[i] * slope / HORIZON / len(split)
                    entropy[i, t] += -COEFFICIENT / tokens / len(split)
    return policy, entropy


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_gradients_are_the_released_codes(split):
    found, expected = gradients(split, "released"), oracle(split)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-12)
        assert np.abs(theirs).max() > 1e-6


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_its_policy_gradient_is_rows_per_rank_times_ours(split):
    """64 on the published 512 rows per update and 8 ranks."""
    released, ours = gradients(split, "released")[0], gradients(split, "dr_grpo")[0]
    torch.testing.assert_close(released, ours * len(RESPONSES) / len(split), rtol=1e-6, atol=1e-12)


def test_ours_does_not_depend_on_the_split_and_theirs_does():
    ours = [gradients(split, "dr_grpo") for split in SPLITS.values()]
    theirs = [gradients(split, "released") for split in SPLITS.values()]
    for policy, entropy in ours[1:]:
        torch.testing.assert_close(policy, ours[0][0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(entropy, ours[0][1], rtol=1e-6, atol=1e-12)
    assert not torch.allclose(theirs[0][1], theirs[1][1])
    assert not torch.allclose(theirs[0][0], theirs[2][0])

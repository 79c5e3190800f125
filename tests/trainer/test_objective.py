"""Loss and advantage as verl calls them: jagged micro-batches, a differentiable model, mini-batch totals, ranks, metrics."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric, reduce_metrics
from verl.utils.py_functional import append_to_dict, rename_dict
from verl.workers.config import ActorConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils.losses import ppo_loss

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.trainer.objective import ESTIMATOR, exgrpo_loss, mixed_group_advantage, replay_metrics
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE

pytestmark = pytest.mark.verl

VOCABULARY = 13
PROMPTS = [3, 5, 1, 4, 2, 6, 3, 2]
RESPONSES = [4, 9, 1, 6, 2, 8, 5, 1]
ADVANTAGES = [0.5, -0.5, 1.0, -1.0, 0.25, -0.75, 0.75, 0.0]
HORIZON = 16


def jagged(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


class Bigram(torch.nn.Module):
    """Logits by the last token: enough of a model for log-probs, entropies and gradients over packed rows."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.logits = torch.nn.Parameter(2 * torch.randn(VOCABULARY, VOCABULARY, generator=g).to(dtype))

    def forward(self, data: TensorDict) -> dict:
        """As verl's engine without padding: the last position of a row predicts the next row's first token."""
        ids = data["input_ids"]
        log_p = self.logits[ids.values()].log_softmax(-1)
        log_probs = log_p.gather(1, ids.values().roll(-1)[:, None]).squeeze(1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return {
            "log_probs": torch.nested.nested_tensor_from_jagged(log_probs, ids.offsets()),
            "entropy": torch.nested.nested_tensor_from_jagged(entropy, ids.offsets()),
        }


def mini_batch(replayed=(), is_weights=False, spread=1.0, dtype=torch.float32, out=()) -> TensorDict:
    """One rank's mini-batch as it comes out of TransferQueue; the last row is verl's padding (no response token).

    Rows `replayed` are stored trajectories, rows `out` have left the update.
    """
    g = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCABULARY, (n,), generator=g) for n in PROMPTS]
    responses = [torch.randint(VOCABULARY, (n,), generator=g) for n in RESPONSES]
    masks = [torch.ones(n, dtype=torch.int64) for n in RESPONSES]
    masks[-1].zero_()
    masks[3][2:4] = 0  # as rollout correction may rewrite it
    columns = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        "position_ids": [torch.arange(a + b) for a, b in zip(PROMPTS, RESPONSES, strict=True)],
        "response_mask": masks,
        "loss_mask": masks,
        "advantages": [a * m for a, m in zip(ADVANTAGES, masks, strict=True)],
    }
    data = TensorDict({name: jagged(rows) for name, rows in columns.items()}, batch_size=len(PROMPTS))
    with torch.no_grad():
        now = Bigram()(data)["log_probs"]
    past = [
        row[p - 1 : p + n - 1] + spread * torch.randn(n, generator=g)
        for row, p, n in zip(now.unbind(), PROMPTS, RESPONSES, strict=True)
    ]
    data["old_log_probs"] = jagged(past)
    data["ref_log_prob"] = jagged([row + 0.3 * torch.randn(len(row), generator=g) for row in past])
    if is_weights:
        data["rollout_is_weights"] = jagged([2 * torch.rand(n, generator=g) for n in RESPONSES])
    data[FLAG] = torch.tensor([float(i in replayed) for i in range(len(PROMPTS))])
    data[IN_UPDATE] = torch.tensor([float(i not in out) for i in range(len(PROMPTS))])
    for name in ("advantages", "old_log_probs", "ref_log_prob", "rollout_is_weights"):
        if name in data:
            data[name] = data[name].to(dtype)
    totals(data, dp_size=1)
    return data


def totals(data: TensorDict, dp_size: int) -> None:
    """What verl's engine writes into each rank's mini-batch: totals over all ranks."""
    tokens = data["loss_mask"].sum().item()
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=tokens, global_batch_size=len(data))


def actor(**settings) -> ActorConfig:
    defaults = {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": HORIZON, "entropy_coeff": 0.01}
    return ActorConfig(strategy="fsdp2", rollout_n=4, use_dynamic_bsz=True, **(defaults | settings))


def run(loss_fn, data, model=None, with_entropy=True):
    """(loss, gradient, metrics) of one micro-batch."""
    model = model or Bigram()
    output = model(data)
    if not with_entropy:
        output.pop("entropy")
    loss, metrics = loss_fn(model_output=output, data=data, dp_group=None)
    (gradient,) = torch.autograd.grad(loss, model.logits)
    return loss.detach(), gradient, metrics


def ours(config, loss_config=None):
    return partial(exgrpo_loss, config, loss_config or LossConfig())


# ---- off means off


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_agg_mode": "token-mean", "loss_scale_factor": None},
        {"loss_agg_mode": "seq-mean-token-mean", "loss_scale_factor": None},
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28, "clip_ratio_c": 1.5},
        {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "low_var_kl"},
        {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "kl"},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("is_weights", [True, False])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_without_a_replayed_row_it_is_verls_ppo_loss_bit_for_bit(settings, with_entropy, is_weights, dp_size):
    config, data = actor(**settings), mini_batch(is_weights=is_weights)
    totals(data, dp_size)
    loss, gradient, metrics = run(ours(config), data, with_entropy=with_entropy)
    expected, expected_gradient, expected_metrics = run(partial(ppo_loss, config), data, with_entropy=with_entropy)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)
    for name in {"actor/pg_loss", "actor/entropy_loss", "kl_loss"} & set(expected_metrics):
        assert metrics[name].values == expected_metrics[name].values
        assert metrics[name].aggregation == expected_metrics[name].aggregation
    assert ("actor/entropy_loss" in metrics) == with_entropy
    assert expected_gradient.abs().max() > 0


@pytest.mark.parametrize(("fresh_clip", "active", "equal"), [
    ("always", True, True), ("before_replay", False, True), ("before_replay", True, False), ("never", False, False),
])  # fmt: skip
def test_fresh_tokens_are_clipped_when_the_configuration_says_so(fresh_clip, active, equal):
    config, data = actor(), mini_batch()
    tu.assign_non_tensor(data, replay_active=active)
    loss, *_ = run(ours(config, LossConfig(fresh_clip=fresh_clip)), data)
    expected, *_ = run(partial(ppo_loss, config), data)
    assert torch.equal(loss, expected) == equal


def test_one_replayed_row_is_not_verls_ppo_loss():
    config, data = actor(), mini_batch(replayed=[1])
    assert not torch.equal(run(ours(config), data)[0], run(partial(ppo_loss, config), data)[0])


@pytest.mark.parametrize("flag", [FLAG, IN_UPDATE])
def test_a_batch_without_flags_raises(flag):
    data = mini_batch()
    del data[flag]
    with pytest.raises(KeyError, match=flag):
        run(ours(actor()), data)


# ---- the formula


def oracle(data, config, loss_config, active=True):
    """Loss and gradient in float64, one row at a time, from the definitions."""
    model = Bigram(torch.float64)
    weights = data["rollout_is_weights"].unbind() if "rollout_is_weights" in data else None
    total = torch.zeros((), dtype=torch.float64)
    for i, (ids, n) in enumerate(zip(data["input_ids"].unbind(), data["responses"].offsets().diff(), strict=True)):
        log_p = model.logits[ids[-n - 1 : -1]].log_softmax(-1)
        log_prob = log_p[torch.arange(n), ids[-n:]]
        mask, a, past = (data[k].unbind()[i].double() for k in ("response_mask", "advantages", "old_log_probs"))
        w = (log_prob - past).exp()
        low, high = 1 - config.clip_ratio_low, 1 + config.clip_ratio_high
        pessimistic = torch.minimum(w * a, torch.clip(w, low, high) * a)
        clipped = -torch.where(a < 0, torch.maximum(pessimistic, config.clip_ratio_c * a), pessimistic)
        clips = loss_config.fresh_clip == "always" or (loss_config.fresh_clip == "before_replay" and not active)
        token = clipped if clips else -w * a
        if data[FLAG][i]:
            token = {"policy": -a * w / (w + loss_config.beta), "none": -a * w, "clip": clipped}[loss_config.shaping]
        if weights and not data[FLAG][i]:
            token = token * weights[i].double()
        token = token + config.entropy_coeff * (log_p.exp() * log_p).sum(-1)
        if config.use_kl_loss:
            gap = data["ref_log_prob"].unbind()[i].double() - log_prob
            token = token + config.kl_loss_coef * (gap.exp() - gap - 1)
        total = total + (token * mask).sum() / HORIZON / len(data)
    (gradient,) = torch.autograd.grad(total, model.logits)
    return total.detach(), gradient


@pytest.mark.parametrize("shaping", ["policy", "none", "clip"])
@pytest.mark.parametrize("fresh_clip", ["always", "before_replay", "never"])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "weights-and-kl"])
def test_equals_the_float64_oracle_with_replayed_rows(shaping, fresh_clip, extras):
    config = actor(clip_ratio_high=0.28, use_kl_loss=extras, kl_loss_coef=0.05)
    loss_config = LossConfig(shaping=shaping, fresh_clip=fresh_clip, beta=0.2)
    data = mini_batch(replayed=[1, 4, 6], is_weights=extras)
    loss, gradient, _ = run(ours(config, loss_config), data)
    expected, expected_gradient = oracle(data, config, loss_config)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-5, atol=1e-8)


def test_importance_weights_of_the_rollout_reach_fresh_tokens_only():
    config = actor(entropy_coeff=0.0)
    data = mini_batch(replayed=[1, 4, 6], is_weights=True)
    weighted, *_ = run(ours(config), data)
    for row, replayed in ((1, True), (3, False)):
        changed = data.clone()
        weights = [w.clone() for w in data["rollout_is_weights"].unbind()]
        weights[row].zero_()
        changed["rollout_is_weights"] = jagged(weights)
        assert torch.equal(run(ours(config), changed)[0], weighted) == replayed


def test_masked_tokens_and_padding_rows_do_not_count():
    config, data = actor(), mini_batch(replayed=[1, 3, 7])
    loss, gradient, metrics = run(ours(config), data)
    dirty = data.clone()
    for name in ("old_log_probs", "advantages"):
        rows = [row.clone() for row in data[name].unbind()]
        rows[3][2:4] = 7.0
        rows[7][:] = -7.0
        dirty[name] = jagged(rows)
    again, same_gradient, same_metrics = run(ours(config), dirty)
    assert torch.equal(loss, again)
    assert torch.equal(gradient, same_gradient)
    assert {k: m.values for k, m in metrics.items()} == {k: m.values for k, m in same_metrics.items()}
    assert metrics["sums/replay_tokens"].aggregate() == RESPONSES[1] + RESPONSES[3] - 2


# ---- rows out of the update


@pytest.mark.parametrize("mode", ["seq-mean-token-sum-norm", "token-mean"])
@pytest.mark.parametrize("kl", [False, True], ids=["plain", "kl"])
def test_rows_out_of_the_update_leave_every_term_and_keep_their_place_in_the_normaliser(mode, kl):
    config, out = actor(loss_agg_mode=mode, use_kl_loss=kl, kl_loss_coef=0.05), [1, 3, 4]
    data, kept = mini_batch(replayed=[1, 6], out=out), [i for i in range(len(PROMPTS)) if i not in out]
    loss, gradient, metrics = run(ours(config), data)
    alone = tu.index_select_tensor_dict(mini_batch(replayed=[1, 6]), kept)
    totals_of(alone, data)  # those of the whole mini-batch: the divisor stays
    expected, expected_gradient, expected_metrics = run(ours(config), alone)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    for name, metric in metrics.items():
        assert metric.aggregate() == pytest.approx(expected_metrics[name].aggregate(), rel=1e-5), name
    whole, of_whole, _ = run(ours(config), mini_batch(replayed=[1, 6]))
    assert not torch.allclose(whole, loss)
    assert not torch.allclose(of_whole, gradient)


def totals_of(data: TensorDict, other: TensorDict) -> None:
    tu.assign_non_tensor(data, **{key: other[key] for key in ("dp_size", "batch_num_tokens", "global_batch_size")})


# ---- invariance to the split


def step(data, config, ranks, micro_batches):
    """(gradient, metrics) of one mini-batch as the engine runs it: `ranks` lists row indices per rank."""
    gradients, metrics = [], []
    for rows, split in zip(ranks, micro_batches, strict=True):
        model, mine = Bigram(), tu.index_select_tensor_dict(data, rows)
        tu.assign_non_tensor(mine, dp_size=len(ranks))
        collected = {}
        for micro in split(mine):
            loss, found = exgrpo_loss(config, LossConfig(), model(micro), micro)
            loss.backward()
            append_to_dict(collected, found)
        gradients.append(model.logits.grad)
        metrics.append(collected)
    merged = {name: Metric.aggregate_dp([rank[name] for rank in metrics]) for name in metrics[0]}
    return torch.stack(gradients).mean(0), merged  # FSDP averages gradients over ranks


def whole(data):
    return [data]


def single_rows(data):
    return [tu.index_select_tensor_dict(data, [i]) for i in range(len(data))]


def dynamic(max_tokens):
    def split(data):
        tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=max_tokens, sp_size=1)
        return prepare_micro_batches(data)[0]

    return split


def pairs(data):
    tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=2, sp_size=1)
    return prepare_micro_batches(data)[0]


@pytest.mark.parametrize("sequences", [5.5, 8, 12])
def test_sequences_are_what_it_is_divided_by_whatever_the_split(sequences):
    """A number from the driver in place of the rows of the mini-batch: every term and gradient in its proportion."""
    config, data = actor(), mini_batch(replayed=[1, 6])
    loss, gradient, metrics = run(ours(config), data)
    tu.assign_non_tensor(data, sequences=sequences)
    again, other, counted = run(ours(config), data)
    torch.testing.assert_close(again, loss * 8 / sequences)
    torch.testing.assert_close(other, gradient * 8 / sequences)
    for name in ("actor/pg_loss", "actor/entropy_loss"):
        assert counted[name].aggregate() == pytest.approx(metrics[name].aggregate() * 8 / sequences, rel=1e-5)
    for ranks, splits in SPLITS.values():
        split, merged = step(data, config, ranks, splits)
        torch.testing.assert_close(split, other, rtol=1e-5, atol=1e-7)
        assert merged["actor/pg_loss"] == pytest.approx(counted["actor/pg_loss"].aggregate(), rel=1e-5)


ALL_ROWS = list(range(8))
SPLITS = {
    "single rows": ([ALL_ROWS], [single_rows]),
    "pairs": ([ALL_ROWS], [pairs]),
    "token budget": ([ALL_ROWS], [dynamic(16)]),
    "shuffled": ([[6, 1, 3, 0, 7, 5, 2, 4]], [dynamic(20)]),
    "two ranks": ([[0, 1, 2, 3], [4, 5, 6, 7]], [whole, whole]),
    # All replayed rows on one rank, as many micro-batches on each.
    "two unlike ranks": ([[1, 4, 6, 2], [0, 3, 5, 7]], [pairs, pairs]),
}


@pytest.mark.parametrize("mode", ["seq-mean-token-sum-norm", "token-mean"])
@pytest.mark.parametrize("name", SPLITS)
def test_the_split_into_micro_batches_and_ranks_does_not_matter(name, mode):
    data, config = mini_batch(replayed=[1, 4, 6]), actor(loss_agg_mode=mode)
    gradient, metrics = step(data, config, [ALL_ROWS], [whole])
    again, split_metrics = step(data, config, *SPLITS[name])
    torch.testing.assert_close(again, gradient, rtol=1e-5, atol=1e-8)
    for term in ("actor/pg_loss", "actor/entropy_loss"):
        assert split_metrics[term] == pytest.approx(metrics[term], rel=1e-5)
    assert experience_metrics(split_metrics) == pytest.approx(experience_metrics(metrics), rel=1e-5)


def experience_metrics(metrics, mini_batches=2):
    """As they reach the trainer: verl averages over mini-batches and puts its prefix before the names."""
    named = rename_dict({name: [value] * mini_batches for name, value in metrics.items()}, "actor/")
    return replay_metrics(reduce_metrics(named))


@pytest.mark.parametrize("name", ["single rows", "two ranks"])
def test_without_a_scale_factor_the_split_would_matter(name):
    data, config = mini_batch(replayed=[1, 4, 6]), actor(loss_scale_factor=None)
    gradient, _ = step(data, config, [ALL_ROWS], [whole])
    again, _ = step(data, config, *SPLITS[name])
    assert (again - gradient).abs().max() > 0.03 * gradient.abs().max()


def test_metrics_equal_a_direct_computation_over_tokens():
    data = mini_batch(replayed=[1, 4, 6])
    _, metrics = step(data, actor(), *SPLITS["two unlike ranks"])
    with torch.no_grad():
        now = Bigram(torch.float64)(data)["log_probs"].unbind()
    ratios = {0.0: [], 1.0: []}
    for i, (row, past, mask) in enumerate(
        zip(now, data["old_log_probs"].unbind(), data["response_mask"].unbind(), strict=True)
    ):
        w = (row[-len(past) - 1 : -1] - past).exp()
        ratios[float(data[FLAG][i])] += w[mask.bool()].tolist()
    past, fresh = torch.tensor(ratios[1.0]), torch.tensor(ratios[0.0])
    found = experience_metrics(metrics)
    assert found == pytest.approx(
        {
            "actor/replay_ratio_mean": float(past.mean()),
            "actor/replay_shaped_mean": float((past / (past + 0.1)).mean()),
            "actor/replay_ess": float(past.sum() ** 2 / (past**2).sum() / len(past)),
            "actor/fresh_ratio_mean": float(fresh.mean()),
            "actor/ppo_kl": -float(fresh.log().mean()),
            "actor/pg_clipfrac": found["actor/pg_clipfrac"],
        },
        rel=1e-4,
    )


def test_on_policy_every_ratio_is_one():
    _, metrics = step(mini_batch(replayed=[1, 4], spread=0.0), actor(), [ALL_ROWS], [pairs])
    expected = {"replay_ratio_mean": 1, "replay_shaped_mean": 1 / 1.1, "replay_ess": 1, "fresh_ratio_mean": 1}
    expected |= {"pg_clipfrac": 0, "ppo_kl": 0}
    assert experience_metrics(metrics) == pytest.approx(rename_dict(expected, "actor/"), rel=1e-5, abs=1e-6)


def test_without_a_replayed_row_clip_share_and_divergence_are_verls():
    config, data = actor(), mini_batch()
    expected = {name: metric.aggregate() for name, metric in run(partial(ppo_loss, config), data)[2].items()}
    _, metrics = step(data, config, *SPLITS["two ranks"])
    found = experience_metrics(metrics)
    assert expected["actor/pg_clipfrac"] > 0.1
    for name in ("actor/pg_clipfrac", "actor/ppo_kl"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_sums_are_taken_out_of_the_metrics():
    _, metrics = step(mini_batch(replayed=[1]), actor(), [ALL_ROWS], [pairs])
    named = rename_dict(metrics, "actor/")
    replay_metrics(named)
    assert set(named) == {"actor/pg_loss", "actor/entropy_loss"}


def test_the_on_policy_baseline_reports_zeros_and_keeps_verls_own_metrics():
    metrics = {"actor/pg_clipfrac": 0.2, "actor/ppo_kl": 0.01}
    metrics |= replay_metrics(metrics)
    zeros = dict.fromkeys(["replay_ratio_mean", "replay_shaped_mean", "replay_ess", "fresh_ratio_mean"], 0.0)
    assert metrics == {"actor/pg_clipfrac": 0.2, "actor/ppo_kl": 0.01} | rename_dict(zeros, "actor/")


def test_the_shaped_gradient_on_policy_is_the_plain_one_times_beta_over_one_plus_beta_squared():
    config = actor(entropy_coeff=0.0)
    every = mini_batch(replayed=ALL_ROWS, spread=0.0)
    none = mini_batch(spread=0.0)
    shaped, plain = run(ours(config), every)[1], run(ours(config), none)[1]
    torch.testing.assert_close(shaped, plain * (0.1 / 1.21), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("low", "high", "dual"), itertools.product([0.1, 0.3], [0.1, 0.4], [1.2, 10.0]))
def test_the_clip_range_is_verls(low, high, dual):
    config = actor(clip_ratio_low=low, clip_ratio_high=high, clip_ratio_c=dual)
    data = mini_batch()
    assert torch.equal(run(ours(config), data)[0], run(partial(ppo_loss, config), data)[0])


# ---- the advantage estimator, called the way verl's trainer calls it

# Three questions, rows interleaved as after balancing; "b" has a replayed member, "lone" lost its siblings.
UIDS = ["a", "b", "lone", "a", "b", "b", "a", "b", "a"]
REWARDS = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.25, 1.0]
LENGTHS = [3, 5, 2, 1, 4, 5, 2, 5, 3]


def group_batch(rows=slice(None)) -> dict:
    lengths = torch.tensor(LENGTHS)[rows]
    mask = (torch.arange(5) < lengths[:, None]).long()
    scores = torch.zeros(mask.shape)
    scores[torch.arange(len(lengths)), lengths - 1] = torch.tensor(REWARDS)[rows]
    return {
        "token_level_rewards": scores,
        "response_mask": mask,
        "index": np.array(UIDS, dtype=object)[rows],
    }


WHOLE = [i for i, uid in enumerate(UIDS) if uid != "lone"]


@pytest.mark.parametrize("by_std", [False, True])
def test_equals_verls_grpo_on_groups(by_std):
    config = AlgoConfig(norm_adv_by_std_in_grpo=by_std)
    found, returns = get_adv_estimator_fn(ESTIMATOR)(**group_batch(WHOLE), config=config)
    expected, _ = compute_grpo_outcome_advantage(**group_batch(WHOLE), norm_adv_by_std_in_grpo=by_std)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, returns)
    assert expected.abs().max() > 0.5


def test_a_group_of_one_gets_nothing_where_verl_gives_its_reward():
    row = [UIDS.index("lone")]
    config = AlgoConfig(norm_adv_by_std_in_grpo=False)
    assert not get_adv_estimator_fn(ESTIMATOR)(**group_batch(row), config=config)[0].any()
    assert compute_grpo_outcome_advantage(**group_batch(row), norm_adv_by_std_in_grpo=False)[0].any()


@pytest.mark.parametrize("by_std", [False, True])
def test_through_verls_compute_advantage(by_std):
    rows = group_batch()
    proto = DataProto.from_dict(
        {name: rows[name] for name in ("token_level_rewards", "response_mask")}, {"uid": rows["index"]}
    )
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": by_std})
    data = compute_advantage(proto, adv_estimator=ESTIMATOR, norm_adv_by_std_in_grpo=by_std, config=config)
    for i, (uid, reward) in enumerate(zip(UIDS, REWARDS, strict=True)):
        members = np.array([r for r, u in zip(REWARDS, UIDS, strict=True) if u == uid])
        expected = reward - members.mean()
        if by_std and len(members) > 1:
            expected /= members.std(ddof=1) + 1e-6
        row = data.batch["advantages"][i]
        np.testing.assert_allclose(row[: LENGTHS[i]], expected, rtol=1e-5, atol=1e-7)
        assert not row[LENGTHS[i] :].any()


def test_the_default_is_dr_grpo():
    without, _ = mixed_group_advantage(**group_batch())
    config = AlgoConfig(norm_adv_by_std_in_grpo=False)
    assert torch.equal(without, mixed_group_advantage(**group_batch(), config=config)[0])


def test_rewards_are_left_alone():
    rows = group_batch()
    before = rows["token_level_rewards"].clone()
    mixed_group_advantage(**rows)
    assert torch.equal(rows["token_level_rewards"], before)

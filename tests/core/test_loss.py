"""The mixed-policy loss: values and gradients against formulas written out token by token in float64."""

import itertools
import math

import pytest
import torch

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.loss import (
    ClipRange,
    clip_sums,
    clips_fresh,
    importance_ratio,
    mixed_policy_loss,
    policy_shaping,
    ratio_metrics,
    ratio_sums,
    replayed_loss,
)

CLIP = ClipRange(low=0.2, high=0.28, dual=3.0)
SHAPINGS = ("policy", "none", "clip")
FRESH_CLIPS = ("always", "before_replay", "never")


def clipped_token(w, a, clip=CLIP):
    """PPO clip and dual clip (value, d value / d log w)."""
    bounded = min(max(w, 1 - clip.low), 1 + clip.high)
    value, slope = (-a * w, -a * w) if -a * w >= -a * bounded else (-a * bounded, 0.0)
    return (-a * clip.dual, 0.0) if a < 0 and value > -a * clip.dual else (value, slope)


def oracle_token(log_prob, behaviour, a, replayed, config, clip, active):
    """Eq. 4 for one token: (loss, d loss / d log_prob)."""
    w = math.exp(log_prob - behaviour)
    if replayed and config.shaping == "policy":
        return -a * w / (w + config.beta), -a * config.beta * w / (w + config.beta) ** 2
    if replayed:
        return clipped_token(w, a, clip) if config.shaping == "clip" else (-a * w, -a * w)
    unclipped = config.fresh_clip == "never" or (config.fresh_clip == "before_replay" and active)
    return (-a * w, -a * w) if unclipped else clipped_token(w, a, clip)


def batch(seed=0, n=6, length=7, spread=1.5):
    """log_prob, behaviour, advantages [n, L] (one advantage a row, as from groups) and is_replayed [n], float64."""
    g = torch.Generator().manual_seed(seed)
    behaviour = -3 * torch.rand(n, length, generator=g, dtype=torch.float64)
    log_prob = behaviour + spread * torch.randn(n, length, generator=g, dtype=torch.float64)
    advantages = torch.tensor([0.6, -0.4, 0.0, 0.6, -0.4, 1.0][:n], dtype=torch.float64)[:, None].expand(n, length)
    return log_prob, behaviour, advantages, torch.arange(n) % 2 == 1


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(("shaping", "fresh_clip"), itertools.product(SHAPINGS, FRESH_CLIPS))
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_values_and_gradients_equal_the_formulas(shaping, fresh_clip, active, beta):
    config = LossConfig(shaping=shaping, fresh_clip=fresh_clip, beta=beta)
    log_prob, behaviour, advantages, is_replayed = batch()
    log_prob.requires_grad_()
    loss = mixed_policy_loss(log_prob, behaviour, advantages, is_replayed, config, CLIP, active)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    loss = loss.detach()
    for i, t in itertools.product(*map(range, log_prob.shape)):
        token = (*(float(x[i, t]) for x in (log_prob.detach(), behaviour, advantages)), bool(is_replayed[i]))
        value, slope = oracle_token(*token, config, CLIP, active)
        assert float(loss[i, t]) == pytest.approx(value, rel=1e-12)
        assert float(gradient[i, t]) == pytest.approx(slope, rel=1e-12)


def test_the_batch_of_these_tests_reaches_every_branch():
    log_prob, behaviour, advantages, is_replayed = batch()
    w, fresh = (log_prob - behaviour).exp(), ~is_replayed[:, None]
    assert (fresh & (advantages > 0) & (w > 1 + CLIP.high)).any()
    assert (fresh & (advantages < 0) & (w < 1 - CLIP.low)).any()
    assert (fresh & (advantages > 0) & (w < 1)).any()
    assert (~fresh & (advantages < 0) & (w > CLIP.dual)).any()


@pytest.mark.parametrize(("a", "w", "expected"), [(-1.0, 5.0, (3.0, 0.0)), (-1.0, 2.0, (2.0, 2.0))])
def test_the_dual_clip_bounds_the_loss_of_bad_tokens(a, w, expected):
    log_prob = torch.tensor([[math.log(w)]], dtype=torch.float64, requires_grad=True)
    loss = mixed_policy_loss(
        log_prob, torch.zeros(1, 1), torch.full((1, 1), a), torch.tensor([False]), LossConfig(), CLIP, True
    )
    loss.sum().backward()
    assert (float(loss), float(log_prob.grad)) == pytest.approx(expected)


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("fresh_clip", FRESH_CLIPS)
def test_gradcheck(shaping, fresh_clip):
    config = LossConfig(shaping=shaping, fresh_clip=fresh_clip)
    log_prob, behaviour, advantages, is_replayed = batch(seed=4, spread=0.5)

    def loss(x):
        return mixed_policy_loss(x, behaviour, advantages, is_replayed, config, CLIP, True)

    assert torch.autograd.gradcheck(loss, log_prob.requires_grad_())


@pytest.mark.parametrize(("beta", "factor"), [(0.1, 0.0826446281), (0.5, 0.2222222222), (1.0, 0.25)])
def test_on_policy_the_replayed_gradient_is_beta_over_one_plus_beta_squared(beta, factor):
    log_prob = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    replayed_loss(log_prob, torch.zeros(1, 3), advantages, LossConfig(beta=beta), CLIP).sum().backward()
    torch.testing.assert_close(log_prob.grad, -advantages * factor, rtol=1e-9, atol=0)


def test_shaping_favours_tokens_that_the_policy_has_come_to_doubt():
    w = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64, requires_grad=True)
    policy_shaping(w.log(), 0.1).sum().backward()
    assert (w.grad.diff() < 0).all()
    assert policy_shaping(w.log(), 0.1).tolist() == pytest.approx([x / (x + 0.1) for x in (0.01, 0.1, 1.0, 10.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("log_ratio", [1e3, -1e3, 89.0, 21.0, -104.0])
def test_extreme_ratios_neither_overflow_nor_poison_the_gradient(log_ratio, shaping, dtype):
    for replayed, a in itertools.product((False, True), (1.0, -1.0)):
        log_prob = torch.full((1, 1), log_ratio, dtype=dtype, requires_grad=True)
        loss = mixed_policy_loss(
            log_prob,
            torch.zeros(1, 1, dtype=dtype),
            torch.full((1, 1), a, dtype=dtype),
            torch.tensor([replayed]),
            LossConfig(shaping=shaping, fresh_clip="never"),
            CLIP,
            True,
        )
        loss.sum().backward()
        assert loss.isfinite().all()
        assert log_prob.grad.isfinite().all()


def test_shaping_saturates_at_the_ends():
    ends = policy_shaping(torch.tensor([1e3, -1e3]), 0.1)
    assert ends.tolist() == [1.0, 0.0]


def test_ratios_are_bounded_as_in_verl():
    ratio = importance_ratio(torch.tensor([100.0, -100.0, 0.5]), torch.zeros(3))
    assert ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20), math.exp(0.5)])


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_the_flag_decides_and_nothing_else(shaping):
    log_prob, behaviour, advantages, _ = batch()
    config = LossConfig(shaping=shaping)
    args = (log_prob, behaviour, advantages)
    none = mixed_policy_loss(*args, torch.zeros(6, dtype=torch.bool), config, CLIP, True)
    every = mixed_policy_loss(*args, torch.ones(6, dtype=torch.bool), config, CLIP, True)
    flags = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])  # floats, as the batch carries them
    mixed = mixed_policy_loss(*args, flags, config, CLIP, True)
    for i, flag in enumerate(flags):
        assert torch.equal(mixed[i], every[i] if flag else none[i])
    assert torch.equal(every, replayed_loss(*args, config, CLIP))
    assert (shaping == "clip") == torch.equal(every, none)


@pytest.mark.parametrize(
    ("fresh_clip", "before", "after"),
    [("always", True, True), ("before_replay", True, False), ("never", False, False)],
)
def test_when_fresh_tokens_are_clipped(fresh_clip, before, after):
    assert (clips_fresh(fresh_clip, False), clips_fresh(fresh_clip, True)) == (before, after)


# ---- metrics


def ragged_mask(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


MASK = ragged_mask([7, 3, 1, 5, 2, 7], 7)


def sums_of(rows, beta=0.1):
    log_prob, behaviour, _, is_replayed = batch()
    return ratio_sums(log_prob[rows], behaviour[rows], MASK[rows], is_replayed[rows], beta)


def test_ratio_metrics_equal_a_direct_computation_over_real_tokens():
    log_prob, behaviour, _, is_replayed = batch()
    tokens = {True: [], False: []}
    for i, t in itertools.product(range(6), range(7)):
        if MASK[i, t]:
            tokens[bool(is_replayed[i])].append(math.exp(float(log_prob[i, t] - behaviour[i, t])))
    past, fresh = tokens[True], tokens[False]
    assert (len(past), len(fresh)) == (3 + 5 + 7, 7 + 1 + 2)
    metrics = ratio_metrics(sums_of(slice(None)))
    assert metrics == pytest.approx(
        {
            "replay_ratio_mean": sum(past) / len(past),
            "replay_shaped_mean": sum(w / (w + 0.1) for w in past) / len(past),
            "replay_ess": sum(past) ** 2 / sum(w * w for w in past) / len(past),
            "fresh_ratio_mean": sum(fresh) / len(fresh),
        }
    )


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[0, 1], [2, 3, 4, 5]], [[5, 0, 3], [1], [4, 2]]])
def test_ratio_sums_add_up_over_any_split(split):
    parts = [sums_of(rows) for rows in split]
    added = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert added == pytest.approx(sums_of(slice(None)), rel=1e-12)
    assert ratio_metrics(added) == pytest.approx(ratio_metrics(sums_of(slice(None))), rel=1e-12)


def clip_sums_of(rows):
    log_prob, behaviour, advantages, is_replayed = batch()
    return clip_sums(log_prob[rows], behaviour[rows], advantages[rows], MASK[rows], is_replayed[rows], CLIP)


def test_clipped_tokens_and_divergence_are_counted_over_fresh_tokens():
    log_prob, behaviour, advantages, is_replayed = batch()
    clipped, divergence = 0, 0.0
    for i, t in itertools.product(range(6), range(7)):
        if MASK[i, t] and not is_replayed[i]:
            w, a = math.exp(float(log_prob[i, t] - behaviour[i, t])), float(advantages[i, t])
            clipped += (a > 0 and w > 1 + CLIP.high) or (a < 0 and w < 1 - CLIP.low)
            divergence -= math.log(w)
    assert clipped > 0
    assert clip_sums_of(slice(None)) == pytest.approx({"clipped": clipped, "kl": divergence})
    parts = [clip_sums_of(rows) for rows in ([0, 3], [1, 2, 4], [5])]
    assert {name: sum(part[name] for part in parts) for name in parts[0]} == pytest.approx(clip_sums_of(slice(None)))


def test_padding_does_not_reach_the_metrics():
    log_prob, behaviour, advantages, is_replayed = batch()
    for garbage in (math.nan, 1e30, -math.inf):
        dirty = log_prob.masked_fill(~MASK, garbage)
        assert ratio_sums(dirty, behaviour, MASK, is_replayed, 0.1) == sums_of(slice(None))
        assert clip_sums(dirty, behaviour, advantages, MASK, is_replayed, CLIP) == clip_sums_of(slice(None))


def test_effective_sample_size_is_one_on_policy_and_drops_with_a_dominant_token():
    replayed = torch.tensor([True])
    mask = torch.ones(1, 4)
    level = ratio_metrics(ratio_sums(torch.zeros(1, 4), torch.zeros(1, 4), mask, replayed, 0.1))
    assert level == pytest.approx(
        {"replay_ratio_mean": 1.0, "replay_shaped_mean": 1 / 1.1, "replay_ess": 1.0, "fresh_ratio_mean": 0.0}
    )
    peaked = ratio_sums(torch.tensor([[15.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4), mask, replayed, 0.1)
    assert ratio_metrics(peaked)["replay_ess"] == pytest.approx(0.25, rel=1e-4)


def test_no_tokens_give_zeros():
    sums = ratio_sums(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([True, False]), 0.1)
    assert set(sums.values()) == {0.0}
    assert set(ratio_metrics(sums).values()) == {0.0}


def test_metrics_leave_no_trace_in_the_graph():
    log_prob, behaviour, _, is_replayed = batch()
    sums = ratio_sums(log_prob.requires_grad_(), behaviour, MASK, is_replayed, 0.1)
    assert all(type(value) is float for value in sums.values())

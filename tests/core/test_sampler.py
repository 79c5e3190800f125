"""The bucket sampler against laws worked out by hand: enumeration and chi-square with fixed seeds."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.core.config import QuestionConfig
from recipe.exgrpo.core.sampler import allocate, bucket_probabilities, interleave, log_weights, sample_questions

K = 8
# Each weighting of bucket k as method.md writes it, K = 8.
WEIGHTS = {
    "count": (QuestionConfig(), lambda k: math.exp(-((k - 4.0) ** 2) / 2)),
    "count, sigma 1.5": (QuestionConfig(sigma=1.5), lambda k: math.exp(-((k - 4.0) ** 2) / 4.5)),
    "count, mu 0.25": (QuestionConfig(mu=0.25), lambda k: math.exp(-((k - 2.0) ** 2) / 2)),
    "accuracy": (QuestionConfig(sigma_unit="accuracy"), lambda k: math.exp(-((k / 8 - 0.5) ** 2) / 2)),
    "accuracy, sigma 0.2": (
        QuestionConfig(sigma_unit="accuracy", sigma=0.2),
        lambda k: math.exp(-((k / 8 - 0.5) ** 2) / 0.08),
    ),
    "linear": (QuestionConfig(weighting="linear"), lambda k: k / 8),
    "sqrt": (QuestionConfig(weighting="sqrt"), lambda k: math.sqrt(k / 8)),
    "linear_clip": (QuestionConfig(weighting="linear_clip"), lambda k: min(k / 8, 0.5)),
}
ALL = [*(config for config, _ in WEIGHTS.values()), QuestionConfig(weighting="uniform")]


def filled(sizes: dict[int, int], group_size: int = K) -> ExperienceBuffer:
    """A buffer with sizes[k] eligible questions of latest count k, named "k:i"."""
    buffer = ExperienceBuffer(group_size, segment_tokens=256)
    for k, n in sizes.items():
        for i in range(n):
            buffer.record(f"{k}:{i}", k)
            buffer.add(f"{k}:{i}", Response([1], [-1.0]), 1.0, step=0)
    return buffer


def buckets_of(questions: list[str]) -> Counter:
    return Counter(int(question.split(":")[0]) for question in questions)


def p_value(observed, expected) -> float:
    """Probability of a chi-square statistic as large as this one or larger; cells expected 10 times or less are pooled."""
    order = np.argsort(expected)
    observed, expected = np.asarray(observed, float)[order], np.asarray(expected, float)[order]
    pooled = [0, *range(np.count_nonzero(np.cumsum(expected) <= 10) + 1, len(expected))]
    observed, expected = np.add.reduceat(observed, pooled), np.add.reduceat(expected, pooled)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2.0), torch.tensor(statistic / 2)))


@pytest.mark.parametrize("name", WEIGHTS)
def test_bucket_counts_are_one_multinomial(name):
    config, weight = WEIGHTS[name]
    buffer, rng = filled(dict.fromkeys(range(1, K), 60)), np.random.default_rng(5)
    p = np.array([weight(k) for k in range(1, K)])
    p /= p.sum()
    n, times = 40, 600
    draws = [buckets_of(sample_questions(buffer, n, config, rng)) for _ in range(times)]
    counts = np.array([[draw[k] for k in range(1, K)] for draw in draws])
    assert (counts.sum(1) == n).all()
    assert p_value(counts.sum(0), times * n * p) > 1e-3
    # Quotas rounded from the weights would have the right mean and no variance.
    np.testing.assert_allclose(counts.var(0), n * p * (1 - p), rtol=0.2, atol=0.1)


def test_the_two_units_of_sigma_are_far_apart():
    count, accuracy = (
        bucket_probabilities(log_weights(K, QuestionConfig(sigma_unit=unit)), np.ones(K + 1, bool))
        for unit in ("count", "accuracy")
    )
    assert count[4] == pytest.approx(0.399, abs=1e-3)
    assert count[1] == pytest.approx(0.00443, abs=1e-5)
    assert accuracy[4] == pytest.approx(0.147, abs=1e-3)
    assert accuracy[1] == pytest.approx(0.137, abs=1e-3)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_solved_and_unsolved_buckets_have_no_weight(config):
    logs = log_weights(K, config)
    assert logs.shape == (K + 1,)
    assert np.isneginf(logs[[0, K]]).all()
    assert np.isfinite(logs[1:K]).all()


def test_weights_are_renormalised_over_buckets_that_are_not_empty():
    buffer, rng = filled({3: 5, 6: 5}), np.random.default_rng(1)
    near, far = math.exp(-0.5), math.exp(-2.0)
    times = 4000
    drawn = Counter(k for _ in range(times) for k in buckets_of(sample_questions(buffer, 1, QuestionConfig(), rng)))
    p = near / (near + far)
    assert p_value([drawn[3], drawn[6]], [times * p, times * (1 - p)]) > 1e-3


def law_with_redistribution(sizes, weights, n) -> Counter:
    """Exact law of the bucket counts: a multinomial draw, its excess drawn again over the buckets with room."""
    law = Counter()

    def draw(taken, missing, probability):
        if missing == 0:
            law[taken] += probability
            return
        room = [w if t < s else 0.0 for w, t, s in zip(weights, taken, sizes, strict=True)]
        for sequence in itertools.product(range(len(sizes)), repeat=missing):
            p = math.prod(room[i] / sum(room) for i in sequence)
            if p > 0:
                got = [min(t + sequence.count(i), s) for i, (t, s) in enumerate(zip(taken, sizes, strict=True))]
                draw(tuple(got), missing - (sum(got) - sum(taken)), probability * p)

    draw((0,) * len(sizes), n, 1.0)
    return law


def test_excess_of_a_small_bucket_is_drawn_again_by_weight():
    inner, n, times = (2, 1, 3), 3, 20_000
    weights = [math.exp(-((k - 2.0) ** 2) / 2) for k in (1, 2, 3)]
    law = law_with_redistribution(inner, weights, n)
    assert sum(law.values()) == pytest.approx(1.0)
    sizes, rng = np.array([0, *inner, 0]), np.random.default_rng(2)
    drawn = Counter(tuple(allocate(sizes, np.log([1e-300, *weights, 1e-300]), n, rng)[1:4]) for _ in range(times))
    assert set(drawn) <= set(law)
    assert p_value([drawn[x] for x in law], [times * law[x] for x in law]) > 1e-3


def test_tiny_buckets_are_emptied_and_the_rest_comes_from_where_there_is_room():
    questions = sample_questions(filled({4: 2, 5: 1, 1: 30}), 20, QuestionConfig(), np.random.default_rng(0))
    assert buckets_of(questions) == {4: 2, 5: 1, 1: 17}


@pytest.mark.parametrize("config", ALL, ids=str)
def test_an_empty_buffer_gives_nothing(config):
    assert sample_questions(filled({}), 5, config, np.random.default_rng(0)) == []


@pytest.mark.parametrize("config", ALL, ids=str)
def test_nothing_asked_gives_nothing_and_touches_no_generator(config):
    rng = np.random.default_rng(0)
    assert sample_questions(filled({4: 3}), 0, config, rng) == []
    if config.weighting != "uniform":
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("config", ALL, ids=str)
@pytest.mark.parametrize("n", [9, 10, 1000])
def test_more_than_the_buffer_holds_gives_each_question_once(config, n):
    buffer = filled({1: 3, 4: 1, 7: 5})
    questions = sample_questions(buffer, n, config, np.random.default_rng(0))
    assert sorted(questions) == sorted([f"1:{i}" for i in range(3)] + ["4:0"] + [f"7:{i}" for i in range(5)])


@pytest.mark.parametrize("k", [1, 63])
def test_a_lone_far_bucket_is_drawn_although_its_weight_underflows(k):
    config = QuestionConfig(sigma=0.5)
    assert math.exp(-((k - 32.0) ** 2) / (2 * config.sigma**2)) == 0.0
    questions = sample_questions(filled({k: 4}, group_size=64), 3, config, np.random.default_rng(0))
    assert buckets_of(questions) == {k: 3}


def test_far_buckets_are_reached_once_near_ones_are_used_up():
    buffer = filled({32: 2, 60: 3, 2: 3}, group_size=64)
    questions = sample_questions(buffer, 7, QuestionConfig(sigma=0.5), np.random.default_rng(0))
    # 60 is 28 away from the mean, 2 is 30 away: exp(-1568) against exp(-1800), a factor of e^232.
    assert buckets_of(questions) == {32: 2, 60: 3, 2: 2}


@pytest.mark.parametrize("sizes", [{4: 5}, {1: 1, 4: 1, 7: 3}])
def test_uniform_draws_every_set_of_questions_alike(sizes):
    buffer, rng, times = filled(sizes), np.random.default_rng(3), 6000
    config = QuestionConfig(weighting="uniform")
    drawn = Counter(frozenset(sample_questions(buffer, 2, config, rng)) for _ in range(times))
    assert len(drawn) == math.comb(5, 2)
    assert p_value(list(drawn.values()), [times / 10] * 10) > 1e-3


def test_inside_a_bucket_questions_are_uniform_without_replacement():
    buffer, rng, times = filled({3: 5}), np.random.default_rng(4), 6000
    drawn = Counter(frozenset(sample_questions(buffer, 2, QuestionConfig(), rng)) for _ in range(times))
    assert {len(pair) for pair in drawn} == {2}
    assert p_value(list(drawn.values()), [times / 10] * 10) > 1e-3


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(1, K - 1), st.integers(0, 6), max_size=K - 1),
    n=st.integers(0, 50),
    config=st.sampled_from(ALL),
    seed=st.integers(0, 2**32 - 1),
)
def test_distinct_eligible_questions_as_many_as_there_are(sizes, n, config, seed):
    questions = sample_questions(filled(sizes), n, config, np.random.default_rng(seed))
    assert len(questions) == len(set(questions)) == min(n, sum(sizes.values()))
    assert all(count <= sizes[k] for k, count in buckets_of(questions).items())


def test_ineligible_questions_are_never_drawn():
    buffer = filled({2: 3, 5: 3})
    buffer.retire("5:0")
    buffer.record("5:1", 0)
    buffer.record("no trajectory", 4)
    questions = sample_questions(buffer, 10, QuestionConfig(), np.random.default_rng(0))
    assert sorted(questions) == ["2:0", "2:1", "2:2", "5:2"]


@pytest.mark.parametrize("config", ALL, ids=str)
def test_a_generator_restored_from_json_draws_the_same(config):
    buffer, rng = filled({2: 20, 4: 4, 6: 20}), np.random.default_rng(9)
    sample_questions(buffer, 7, config, rng)
    saved = json.loads(json.dumps(rng.bit_generator.state))
    following = [sample_questions(buffer, 7, config, rng) for _ in range(20)]
    other = np.random.default_rng(0)
    other.bit_generator.state = saved
    assert [sample_questions(buffer, 7, config, other) for _ in range(20)] == following
    assert len({tuple(questions) for questions in following}) > 1


@given(a=st.integers(0, 20), b=st.integers(0, 20))
def test_interleaving_spreads_both_lists_evenly(a, b):
    merged = interleave([("a", i) for i in range(a)], [("b", i) for i in range(b)])
    assert Counter(merged) == Counter([("a", i) for i in range(a)] + [("b", i) for i in range(b)])
    for name, n in (("a", a), ("b", b)):
        assert [i for kind, i in merged if kind == name] == list(range(n))
        share = np.cumsum([kind == name for kind, _ in merged]) - n * np.arange(1, a + b + 1) / max(a + b, 1)
        assert np.abs(share).max(initial=0) <= 1

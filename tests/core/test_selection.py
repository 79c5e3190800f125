"""Scores of stored trajectories, and who is taken by them, against an oracle that sees one unpadded trajectory at a time."""

import math

import numpy as np
import pytest
import torch

from recipe.exgrpo.core.policies.rank import RANK
from recipe.exgrpo.core.selection import Scores, headroom, masked_mean, token_means

VOCABULARY = 11
GARBAGE = {"zero": 0.0, "nan": math.nan, "huge": 1e30, "-inf": -math.inf}


def ragged_rows(seed: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(logits [P + L, V], response ids [L]) of n candidates; prompts and responses of unequal lengths, sharp and flat."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        prompt, response = (int(torch.randint(1, 9, (), generator=g)) for _ in range(2))
        sharpness = 4 * torch.rand((), generator=g)
        logits = sharpness * torch.randn(prompt + response, VOCABULARY, generator=g)
        rows.append((logits, torch.randint(VOCABULARY, (response,), generator=g)))
    return rows


def oracle(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, float]:
    """Mean token entropy and negative log-likelihood, token by token from the definitions."""
    entropies, surprises = [], []
    for position, token in enumerate(ids.tolist(), start=len(logits) - len(ids)):
        # The logits before a token predict it.
        p = np.exp(logits[position - 1].double().numpy())
        p /= p.sum()
        entropies.append(-sum(x * math.log(x) for x in p))
        surprises.append(-math.log(p[token]))
    return sum(entropies) / len(ids), sum(surprises) / len(ids)


def scored_in_micro_batches(rows, sizes: list[int], garbage: float, left: bool) -> Scores:
    """Scores as an engine makes them: micro-batches padded to their own width, with garbage where there is no token."""
    entropy, nll, start = [], [], 0
    for size in sizes:
        part = rows[start : start + size]
        start += size
        width = max(len(ids) for _, ids in part) + 2
        columns = {name: torch.full((size, width), garbage) for name in ("entropy", "nll")}
        mask = torch.zeros(size, width, dtype=torch.int64)
        for i, (logits, ids) in enumerate(part):
            log_p = logits[-len(ids) - 1 : -1].log_softmax(-1)
            where = slice(width - len(ids), width) if left else slice(0, len(ids))
            columns["entropy"][i, where] = -(log_p.exp() * log_p).sum(-1)
            columns["nll"][i, where] = -log_p.gather(1, ids[:, None]).squeeze(1)
            mask[i, where] = 1
        entropy.append(masked_mean(columns["entropy"], mask))
        nll.append(masked_mean(columns["nll"], mask))
    assert start == len(rows)
    nothing = np.zeros(len(rows))
    return Scores(torch.cat(entropy).numpy(), torch.cat(nll).numpy(), nothing, nothing)


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("sizes", [[24], [1] * 24, [5, 1, 7, 3, 8]], ids=["one", "single rows", "ragged"])
def test_scores_and_choices_equal_the_unpadded_oracle(sizes, garbage, left):
    rows = ragged_rows(seed=len(sizes), n=24)
    scores = scored_in_micro_batches(rows, sizes, garbage, left)
    expected = np.array([oracle(*row) for row in rows])
    np.testing.assert_allclose(scores.entropy, expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(scores.nll, expected[:, 1], rtol=1e-5)
    assert scores.entropy.dtype == np.float64
    owners = np.arange(24) % 5  # candidates of five questions, as they lie in the batch
    for question in range(5):
        mine = owners == question
        own = expected[mine]
        for rank, best in {
            "lowest_entropy": own[:, 0].argmin(),
            "highest_entropy": own[:, 0].argmax(),
            "lowest_perplexity": np.exp(own[:, 1]).argmin(),
        }.items():
            assert RANK[rank](None, scores[mine], None)[0] == best


def test_the_oracle_rules_disagree_so_that_choosing_by_another_one_shows():
    expected = np.array([oracle(*row) for row in ragged_rows(seed=3, n=24)])
    assert len({expected[:, 0].argmin(), expected[:, 0].argmax(), expected[:, 1].argmin()}) == 3


def test_masked_mean_counts_only_masked_tokens():
    values = torch.tensor([[1.0, 2.0, 100.0], [4.0, 50.0, 50.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(values, mask).tolist() == [1.5, 4.0]


def test_masked_mean_adds_up_in_float64():
    values = torch.cat([torch.full((1, 1), 1e8), torch.ones(1, 4095)], dim=1)
    assert float(masked_mean(values, torch.ones(1, 4096))) == (1e8 + 4095) / 4096


def test_a_candidate_without_response_is_an_error():
    with pytest.raises(ValueError, match="no response token"):
        masked_mean(torch.ones(2, 3), torch.tensor([[1, 0, 0], [0, 0, 0]]))


# ---- headroom and drift (arXiv 2609.03941)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_means_over_own_tokens_equal_the_definitions(garbage):
    rng = np.random.default_rng(3)
    lengths, width = [4, 1, 6, 3], 6
    log_probs, behaviour, entropy = (-3 * rng.random((4, width)) for _ in range(3))
    mask = np.arange(width) < np.array(lengths)[:, None]
    mask[2, 1] = False  # a token that the model did not write
    padded = [torch.tensor(np.where(mask, values, garbage)) for values in (log_probs, -entropy, behaviour)]
    found = token_means(*padded, torch.tensor(mask))
    for i in range(4):
        own = [j for j in range(width) if mask[i, j]]
        expected = {
            "entropy": sum(-entropy[i, j] for j in own),
            "nll": sum(-log_probs[i, j] for j in own),
            "probability": sum(math.exp(log_probs[i, j]) for j in own),
            "drift": sum((log_probs[i, j] - behaviour[i, j]) ** 2 for j in own),
        }
        assert {name: float(found[name][i]) for name in found} == pytest.approx(
            {name: value / len(own) for name, value in expected.items()}, rel=1e-6
        )
    assert {values.dtype for values in found.values()} == {torch.float64}


def test_headroom_is_what_is_left_in_the_direction_of_the_advantage():
    found = headroom(np.array([0.9, 0.9, 0.9, 0.1]), np.array([0.5, -0.5, 0.0, 1e-9]))
    assert found.tolist() == pytest.approx([0.1, 0.9, 0.0, 0.9])

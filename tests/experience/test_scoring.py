"""Log-probs of the start policy: every trace its own, whatever shares a forward pass, against float64 one at a time."""

import numpy as np
import pytest
import torch
from toy_target import MODEL
from transformers import AutoModelForCausalLM

from recipe.exgrpo.experience.scoring import ModelScorer, passes, with_progress

LENGTHS = ((3, 5), (4, 20), (2, 1), (6, 9), (3, 14))  # of prompt and response


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(5, 280, n).astype(np.int32) for n in lengths) for lengths in LENGTHS]


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)


def alone(model, prompt, ids, temperature) -> np.ndarray:
    """One sequence without padding."""
    tokens = torch.tensor([[*prompt.tolist(), *ids.tolist()]])
    with torch.no_grad():
        log_probs = (model(tokens).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return log_probs.gather(1, torch.from_numpy(ids).long()[:, None])[:, 0].numpy()


@pytest.mark.parametrize("max_tokens", [1, 30, 4096])
def test_scores_are_those_of_each_trace_alone(pairs, reference, max_tokens):
    scorer = ModelScorer.load(MODEL, temperature=0.7, max_tokens=max_tokens)
    for (prompt, ids), found in zip(pairs, scorer(pairs), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone(reference, prompt, ids, 0.7), atol=2e-5)


def test_a_long_response_is_scored_in_pieces(pairs, reference, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.experience.scoring.STEPS", 4)
    found = ModelScorer.load(MODEL, temperature=1.0)(pairs)
    for (prompt, ids), values in zip(pairs, found, strict=True):
        np.testing.assert_allclose(values, alone(reference, prompt, ids, 1.0), atol=2e-5)


def test_a_pass_holds_so_many_positions_padding_included():
    lengths = [len(prompt) + n for prompt, n in [("x" * p, r) for p, r in LENGTHS]]
    for limit in (1, 24, 30, 1000):
        found = passes(lengths, limit)
        assert sorted(i for places in found for i in places) == list(range(len(lengths)))
        for places in found:
            assert len(places) == 1 or len(places) * max(lengths[i] for i in places) <= limit
    assert [len(passes(lengths, limit)) for limit in (1, 1000)] == [len(lengths), 1]


def test_progress_is_heard_after_every_chunk_and_the_order_stays():
    heard, calls = [], []
    score = with_progress(lambda pairs: calls.append(len(pairs)) or [2 * pair for pair in pairs], heard.append, chunk=2)
    assert score([1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert heard == calls == [2, 2, 1]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=rf"model {tmp_path}: cannot be loaded \("):
        ModelScorer.load(str(tmp_path), 1.0)

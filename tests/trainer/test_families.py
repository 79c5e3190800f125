"""Other architectures: the engine's packed forward pass, by which the trainer scores and trains, against plain transformers.

Weights are random and small, in float32; the reference is float64, one unpadded sequence at a time. Table: docs/models.md.
"""

import numpy as np
import pytest
import transformers
from families import FAMILIES, THINKING, TOY, model_folder
from likelihoods import make_candidates, reference
from verl.utils import hf_tokenizer
from workers import group_of, local_worker

from recipe.exgrpo.trainer.prompts import prompt_builder
from recipe.exgrpo.trainer.scoring import ForwardBudget, score_candidates

pytestmark = pytest.mark.verl

BUDGET = ForwardBudget(temperature=1.0, max_tokens=64, packed=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_scores_are_those_of_plain_transformers(family, compose, tmp_path):
    folder = model_folder(family, tmp_path / "model")
    candidates = make_candidates()
    with local_worker(compose("hardware=tiny", f"actor_rollout_ref.model.path={folder}")) as worker:
        scores, _ = score_candidates(group_of(worker), candidates, 1, BUDGET)
    entropy, nll = reference(folder, candidates)
    np.testing.assert_allclose(scores.nll, nll, atol=2e-5)
    np.testing.assert_allclose(scores.entropy, entropy, atol=2e-5)
    assert np.ptp(nll) > 0.05  # rows that differ


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma"])
def test_the_prompts_of_a_run_think_or_do_not_as_it_says(family, compose):
    """The builder of verl's agent loop, which the trainer's resume asks as well."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY)
    tokenizer.chat_template = THINKING
    texts = {}
    for switch in ("", "+data.apply_chat_template_kwargs.enable_thinking=false"):
        builder = prompt_builder(compose("hardware=tiny", *filter(None, [switch])), tokenizer, family)
        texts[switch] = tokenizer.decode(builder.build_initial_tokens([{"role": "user", "content": "1+1"}]))
    plain, without = texts.values()
    assert plain.endswith("assistant: ")
    assert without == plain + "<think></think>"


@pytest.mark.parametrize("pad", ["<eos> of its own", None])
def test_a_tokenizer_without_a_pad_token_pads_with_its_end(pad, tmp_path):
    """pad = eos: verl's loader sets it, and rows are kept unpadded, so that no end is taken for padding (the test above)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY)
    tokenizer.pad_token = tokenizer.eos_token if pad else None
    tokenizer.save_pretrained(tmp_path)
    found = hf_tokenizer(str(tmp_path))
    assert found.pad_token_id == found.eos_token_id == tokenizer.eos_token_id

"""The shipped toy base model: a small ordinary Hugging Face folder whose pass rate leaves room above and below."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import make_toy, toy_task
from data.toy_task import Noise, make_questions

MODEL = Path(__file__).resolve().parents[2] / "data/toy/model"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)  # faster for matrices this small, and the same figures on any core count
    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_folder_is_small_and_carries_no_code():
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    assert {file.suffix for file in files} == {".json", ".jinja", ".safetensors"}


def test_model_is_a_float32_qwen2_with_tied_embeddings(model):
    assert model.config.model_type == "qwen2"
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.hidden_size // model.config.num_attention_heads == 32  # a head size that vLLM on CPU supports
    assert 250_000 < sum(p.numel() for p in model.parameters()) < 400_000


def test_tokenizer_covers_the_vocabulary_exactly(model, tokenizer):
    """vLLM masks logits past len(tokenizer), the trainer does not: unequal sizes would shift every log-prob."""
    assert len(tokenizer) == model.config.vocab_size
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert len(tokenizer("\n").input_ids) == 1
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_shipped_tokenizer_is_the_one_the_script_makes(tokenizer):
    made = make_toy.make_tokenizer()
    assert tokenizer.get_vocab() == made.get_vocab()
    assert tokenizer.chat_template == made.chat_template


@pytest.mark.parametrize(
    "text", ["Start 45: +7 *3 -8 (mod 100)", "45+7=52\n\\boxed{52}", "naïve 你好 \U0001f600\t\x00 end"]
)
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_lengths_fit_the_limits_and_vary(tokenizer):
    questions = make_questions(500, np.random.default_rng(0))
    prompts = [len(make_toy.encode_prompt(tokenizer, q)) for q in questions]
    responses = [len(tokenizer(toy_task.render_solution(q)).input_ids) + 1 for q in questions]
    assert max(prompts) <= toy_task.MAX_PROMPT_TOKENS
    assert max(responses) <= toy_task.MAX_RESPONSE_TOKENS
    assert max(responses) > 2 * min(responses)


def test_only_the_demonstration_is_learnt(tokenizer):
    questions = make_questions(4, np.random.default_rng(0))
    input_ids, labels = make_toy.demonstration_batch(tokenizer, questions, Noise(), np.random.default_rng(0))
    for question, ids, label in zip(questions, input_ids, labels, strict=True):
        learnt = label != -100
        assert tokenizer.decode(ids[learnt]) == toy_task.render_solution(question) + "<|im_end|>"
        assert torch.equal(ids[learnt], label[learnt])


def test_pass_rate_has_room(model, tokenizer):
    """At temperature 1.0, on the first train and the first held-out questions."""
    train, heldout = make_toy.make_splits()
    assert 0.2 < make_toy.success_counts(model, tokenizer, train[:64], group_size=4).mean() / 4 < 0.4
    assert 0.2 < make_toy.success_counts(model, tokenizer, heldout[:64], group_size=4).mean() / 4 < 0.4


def test_every_bucket_fills(model, tokenizer):
    """Counts of 8 rollouts take each value 0..8 on train questions: the easiest 80, the hardest 16, 32 from between."""
    by_difficulty = sorted(make_toy.make_splits()[0], key=lambda q: toy_task.hard_steps(q) + len(q.steps) / 2)
    sample = by_difficulty[:80] + by_difficulty[128:384:8] + by_difficulty[-16:]
    counts = make_toy.success_counts(model, tokenizer, sample)
    assert np.bincount(counts, minlength=9).min() >= 1
    assert counts[:16].mean() > counts[-16:].mean() + 2  # the spread is over questions, not sampling luck alone

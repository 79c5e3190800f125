"""The shipped base model of the tool task: small, it calls the calculator, and its pass rate leaves room above and below."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import make_tool_task
from data.make_tool_task import make_splits, success_counts

MODEL = Path(__file__).resolve().parents[2] / "data/tool/model"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_folder_is_small_and_carries_no_code():
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    assert {file.suffix for file in files} == {".json", ".jinja", ".safetensors"}


def test_shipped_tokenizer_is_the_one_the_script_makes(model, tokenizer):
    made = make_tool_task.make_tokenizer()
    assert len(tokenizer) == model.config.vocab_size  # vLLM masks what is beyond, the trainer does not
    assert tokenizer.get_vocab() == made.get_vocab()
    assert tokenizer.chat_template == made.chat_template
    text = f"{make_tool_task.CALL}47*62{make_tool_task.CALL_END}<|im_end|>"
    assert tokenizer(text).input_ids == made(text).input_ids


def test_it_calls_sometimes(model, tokenizer):
    torch.manual_seed(0)
    questions = make_splits()[0][:64]
    prompts = [make_tool_task.encode_prompt(tokenizer, question) for question in questions]
    first = [tokenizer.decode(ids) for ids in make_tool_task.sample_turns(model, tokenizer, prompts)]
    assert 0.3 < np.mean([make_tool_task.CALL in text for text in first]) < 0.95


def test_pass_rate_has_room_and_is_spread_over_questions(model, tokenizer):
    questions = make_splits()[0][:64]
    counts = success_counts(model, tokenizer, questions)
    assert 0.15 < counts.mean() / 8 < 0.4
    assert len(set(counts.tolist())) >= 6
    by_steps = [counts[[len(q.steps) == n for q in questions]].mean() for n in (1, 2, 3)]
    assert by_steps[0] > by_steps[1] > by_steps[2]

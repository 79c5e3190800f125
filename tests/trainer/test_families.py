"""Other architectures: the engine's packed forward pass, by which the trainer scores and trains, against plain transformers.

Weights are random and small, in float32; the reference is float64, one unpadded sequence at a time. Table: docs/models.md.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from verl.utils import hf_tokenizer
from workers import group_of, local_worker

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.trainer.prompts import prompt_builder
from recipe.exgrpo.trainer.scoring import Candidate, ForwardBudget, score_candidates

pytestmark = pytest.mark.verl

TOY = Path("data/toy/model")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 290,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 0,  # pad = eos: the pad token never stands for an end inside a row
}
FAMILIES = {
    "Qwen2, tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen2, untied": ("Qwen2Config", {"tie_word_embeddings": False}),
    "Qwen3, tied, heads wider than hidden": ("Qwen3Config", {"tie_word_embeddings": True, "head_dim": 32}),
    "Llama, untied": ("LlamaConfig", {"tie_word_embeddings": False}),
    "SmolLM2 (Llama, tied)": ("LlamaConfig", {"tie_word_embeddings": True}),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "Gemma": ("GemmaConfig", {"head_dim": 16}),
    "Gemma 3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8}),
}
LENGTHS = [(3, 5), (9, 1), (6, 12), (4, 8), (7, 3), (2, 20)]
# Qwen3's way: an empty thought closes the turn's opening where thinking is off.
THINKING = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
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


def model_folder(family: str, folder: Path) -> Path:
    """A Hugging Face folder with random weights, large enough for the context to matter, and the toy task's tokenizer."""
    name, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | own, initializer_range=0.2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in TOY.glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(TOY / "chat_template.jinja", folder)
    return folder


def make_candidates() -> list[Candidate]:
    rng = np.random.default_rng(0)
    rows = []
    for row, (prompt, response) in enumerate(LENGTHS):
        ids = rng.integers(0, 280, response).astype(np.int32)
        stored = Trajectory(row, "q", ids, np.zeros(response, np.float32), np.ones(response, bool), 1.0, 0)
        rows.append(Candidate(torch.as_tensor(rng.integers(0, 280, prompt)), stored))
    return rows


def reference(folder: Path, candidates: list[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """(entropy, negative log-likelihood), means over each response, float64 [n]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    found = []
    for candidate in candidates:
        response = torch.as_tensor(candidate.trajectory.token_ids, dtype=torch.int64)
        with torch.no_grad():
            logits = model(torch.cat([candidate.prompt, response])[None]).logits[0, len(candidate.prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        found.append((float(entropy), float(-log_p[torch.arange(len(response)), response].mean())))
    return tuple(np.array(found).T)

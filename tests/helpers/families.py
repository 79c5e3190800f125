"""Small models with random weights of the architectures that `MODEL=` may name (docs/models.md)."""

import shutil
from pathlib import Path

import torch
import transformers

from recipe.exgrpo.presets.compose import ROOT

TOY = ROOT / "data/toy/model"
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
# Qwen3's way: an empty thought closes the turn's opening where thinking is off.
THINKING = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


def model_folder(family: str, folder: Path, **sizes: int) -> Path:
    """A Hugging Face folder with random weights, large enough for the context to matter, and the toy task's tokenizer."""
    name, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | own | sizes, initializer_range=0.2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in (*TOY.glob("*token*"), TOY / "chat_template.jinja"):
        shutil.copy(file, folder)
    return folder

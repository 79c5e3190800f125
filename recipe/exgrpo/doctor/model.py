"""A model with random weights and the shape of Qwen2.5-0.5B, with a tokenizer of its vocabulary: no hub is asked.

What a machine does with it costs what the real one costs. On CPU a small shape of the same family takes its place.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from recipe.exgrpo.checks.shapes import KNOWN
from recipe.exgrpo.presets.compose import ROOT
from verl_ext.files import new_folder, write_atomically

SHAPE = "Qwen/Qwen2.5-0.5B-Instruct"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 4096,
}
TOKENIZER = ROOT / "data/toy/model"
FILES = ("tokenizer_config.json", "chat_template.jinja")
POSITIONS = 2048


def shape_fields(small: bool) -> dict[str, Any]:
    """The fields of config.json: those of Qwen2.5-0.5B, or of a model 100 times smaller with the same heads."""
    return KNOWN[SHAPE] | {"max_position_embeddings": POSITIONS} | (SMALL if small else {})


def make_model(folder: Path, small: bool, seed: int = 0) -> Path:
    """Write a Hugging Face folder with weights drawn as transformers initialises them, in bfloat16; kept if it is there."""
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # doctor has one of its own
    torch.manual_seed(seed)
    fields = shape_fields(small)
    with new_folder(folder) as new:
        write_tokenizer(new, fields["vocab_size"])
        tokenizer = AutoTokenizer.from_pretrained(new)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        model = Qwen2ForCausalLM(Qwen2Config(**fields, **ends, use_sliding_window=False))
        model.to(torch.bfloat16).save_pretrained(new)
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """The toy task's tokenizer with a word for each of the other ids, so that every response is a text; its special tokens are
    the last of `vocabulary` ids."""
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    words, special = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    first = vocabulary - len(special)
    tokenizer["model"]["vocab"] = words | {f"Ġw{number}": number for number in range(len(words), first)}
    tokenizer["added_tokens"] = [token | {"id": first + i} for i, token in enumerate(special)]
    write_atomically(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    for name in FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)

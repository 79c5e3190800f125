"""Sizes of a model, from its folder, the hub's cache, or a table of the paper's backbones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "model_type": "qwen2",
}
_QWEN_1_5B = _QWEN_7B | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "model_type": "llama",
    "max_position_embeddings": 131072,
}
# Models to start with (scripts/start): config.json of each hub repository; the counts that follow are its model card's
# (tests/checks/test_start_shapes.py).
_QWEN3 = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "model_type": "qwen3",
    "max_position_embeddings": 40960,
}
_QWEN3_4B = _QWEN3 | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
_QWEN_0_5B = _QWEN_1_5B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
}
_SMOLLM2_360M = {
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "model_type": "llama",
    "max_position_embeddings": 8192,
}
# The fields of config.json that estimates need, for hub ids that are not downloaded yet.
KNOWN = {
    "Elliott/Qwen2.5-Math-7B-16k-think": _QWEN_7B | {"max_position_embeddings": 16384},
    "Elliott/LUFFY-Qwen-Math-7B-Zero": _QWEN_7B | {"max_position_embeddings": 16384},
    "Qwen/Qwen2.5-Math-7B": _QWEN_7B | {"max_position_embeddings": 4096},
    "Qwen/Qwen2.5-7B": _QWEN_7B | {"max_position_embeddings": 131072},
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B | {"max_position_embeddings": 32768},
    "Qwen/Qwen2.5-Math-1.5B": _QWEN_1_5B | {"max_position_embeddings": 4096},
    "outputs/models/Qwen2.5-Math-1.5B-16k": _QWEN_1_5B | {"max_position_embeddings": 16384},  # until it is made
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN_0_5B | {"max_position_embeddings": 32768},
    "Qwen/Qwen2.5-1.5B": _QWEN_1_5B | {"max_position_embeddings": 131072},
    "Qwen/Qwen3-0.6B": _QWEN3,
    "Qwen/Qwen3-1.7B": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "Qwen/Qwen3-4B-Base": _QWEN3_4B | {"max_position_embeddings": 32768},
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _SMOLLM2_360M,
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only model with gated MLPs; `parameters` counts tied embeddings once,
    `family` is its `model_type`."""

    parameters: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int | None
    tied: bool
    dtype: str | None
    family: str | None = None

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def largest_tensor(self) -> int:
        """Its parameters: of the embedding, or of one projection in a model with a small vocabulary."""
        return self.hidden * max(self.vocab, self.ffn)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a config.json of the Llama family (Llama, Qwen2, Qwen3, Mistral). Raises KeyError for another layout."""
    hidden, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings", False))
    projections = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    biases = (heads + 2 * kv_heads) * head_dim if config.get("model_type") == "qwen2" else 0
    layer = projections + biases + 3 * hidden * ffn + 2 * hidden
    vocab = config["vocab_size"]
    return ModelShape(
        parameters=vocab * hidden * (1 if tied else 2) + layers * layer + hidden,
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        positions=config.get("max_position_embeddings"),
        tied=tied,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        family=config.get("model_type"),
    )


def is_missing(path: str) -> bool:
    """True for a folder that is not there; what may be a hub id may still be downloaded."""
    return not Path(path).expanduser().is_dir() and (path.count("/") != 1 or path.startswith((".", "~")))


def local_folder(path: str | None) -> Path | None:
    """The folder of a model or tokenizer path, or of a hub id that is in the local cache; None if it is not here."""
    if not path:
        return None
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else _cached(path)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def model_shape(path: str) -> ModelShape | None:
    """The model's shape; None when nothing is known about it here."""
    folder = local_folder(path)
    if folder is not None and (folder / "config.json").is_file():
        try:
            return shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError):
            return None
    return shape_of(KNOWN[path]) if path in KNOWN else None

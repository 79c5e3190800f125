"""Checks of the model: its shape (from its folder, the hub's cache, or a table of the paper's backbones) and its tokenizer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.weights import folder_problems

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
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only model with gated MLPs; `parameters` counts tied embeddings once."""

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

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)


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


def longest_sequence(config: DictConfig) -> int:
    """Tokens of the longest prompt with response that can come out of the rollout."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    limit = config.actor_rollout_ref.rollout.max_model_len
    return min(longest, limit) if limit else longest


def model_findings(config: DictConfig) -> Iterator[Finding]:
    """Folder, context length, precision and tensor parallelism."""
    model = config.actor_rollout_ref.model
    yield from _folder_findings(model.path)
    yield from _length_findings(config)
    shape = model_shape(model.path)
    if shape is not None:
        yield from _context_findings(config, shape)
        yield from _parallel_findings(config, shape)
        yield from _dtype_findings(config, shape)


def _folder_findings(path: str) -> Iterator[Finding]:
    folder = Path(path).expanduser()
    key = "actor_rollout_ref.model.path"
    if is_missing(path):
        yield error(
            f"{key}: the folder {path} does not exist; set MODEL or {key} to a model folder or hub id, or make it "
            "(data/prepare_model.py)."
        )
    if not folder.is_dir():
        return
    yield from (error(f"{key}: {path} {problem}") for problem in folder_problems(folder))


def _length_findings(config: DictConfig) -> Iterator[Finding]:
    limit = config.actor_rollout_ref.rollout.max_model_len
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    key = "actor_rollout_ref.rollout.max_model_len"
    if limit and limit <= prompt:
        yield error(f"{key} ({limit}) leaves no room for a response after data.max_prompt_length ({prompt}); raise it.")
    elif limit and limit < prompt + response:
        yield warning(
            f"{key} ({limit}) is below data.max_prompt_length + data.max_response_length ({prompt + response}): long "
            "responses end earlier than the loss scale assumes; raise it or lower data.max_response_length."
        )


def _context_findings(config: DictConfig, shape: ModelShape) -> Iterator[Finding]:
    needed = config.actor_rollout_ref.rollout.max_model_len
    needed = max(needed or 0, longest_sequence(config))
    if shape.positions is not None and needed > shape.positions:
        yield error(
            f"actor_rollout_ref.model.path: the model has {shape.positions} positions and data.max_prompt_length, "
            f"data.max_response_length or actor_rollout_ref.rollout.max_model_len ask for {needed}; shorten them, or widen the "
            "model with data/prepare_model.py."
        )


def _parallel_findings(config: DictConfig, shape: ModelShape) -> Iterator[Finding]:
    tp = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    uneven = shape.heads % tp or (shape.kv_heads % tp and tp % shape.kv_heads)
    if uneven:
        yield error(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size ({tp}) must divide the model's {shape.heads} attention "
            f"heads and fit its {shape.kv_heads} key-value heads; use 1 or 2."
        )


def _dtype_findings(config: DictConfig, shape: ModelShape) -> Iterator[Finding]:
    mixed = config.actor_rollout_ref.actor.fsdp_config.get("mixed_precision") or {}
    trained = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}.get(
        mixed.get("param_dtype") or "bf16", "other"
    )
    served = config.actor_rollout_ref.rollout.dtype
    if trained != served:
        yield warning(
            f"actor_rollout_ref.rollout.dtype is {served} and the trainer computes in {trained} "
            "(actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype): their log-probs will differ; use the same."
        )
    if shape.dtype == "float16" and trained == "bfloat16":
        yield warning(
            "actor_rollout_ref.model.path: the weights are float16 and are trained in bfloat16; expect rounding."
        )

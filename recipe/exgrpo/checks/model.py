"""Checks of the model: its folder, its context, precision and tensor parallelism."""

from collections.abc import Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import ModelShape, is_missing
from recipe.exgrpo.checks.weights import folder_problems

KEY = "actor_rollout_ref.model.path"


def model_findings(run: Run) -> Iterator[Finding]:
    """Folder and lengths; what depends on the model's sizes only where they are known."""
    yield from _folder_findings(run.model)
    yield from _length_findings(run)
    if run.shape is not None:
        yield from _context_findings(run, run.shape)
        yield from _parallel_findings(run, run.shape)
        yield from _dtype_findings(run, run.shape)
        yield from _kernel_findings(run, run.shape)


def _folder_findings(path: str) -> Iterator[Finding]:
    if is_missing(path):
        yield error(
            f"{KEY}: the folder {path} does not exist; set MODEL or {KEY} to a model folder or hub id, or make it "
            "(data/prepare_model.py)."
        )
    folder = Path(path).expanduser()
    if folder.is_dir():
        yield from (error(f"{KEY}: {path} {problem}") for problem in folder_problems(folder))


def _length_findings(run: Run) -> Iterator[Finding]:
    limit, wanted = run.rollout.max_model_len, run.prompt_tokens + run.response_tokens
    key = "actor_rollout_ref.rollout.max_model_len"
    if limit and limit <= run.prompt_tokens:
        yield error(
            f"{key} ({limit}) leaves no room for a response after data.max_prompt_length ({run.prompt_tokens}); raise it."
        )
    elif limit and limit < wanted:
        yield warning(
            f"{key} ({limit}) is below data.max_prompt_length + data.max_response_length ({wanted}): long responses end "
            "earlier than the loss scale assumes; raise it or lower data.max_response_length."
        )


def _context_findings(run: Run, shape: ModelShape) -> Iterator[Finding]:
    needed = max(run.rollout.max_model_len or 0, run.longest)
    if shape.positions is not None and needed > shape.positions:
        yield error(
            f"{KEY}: the model has {shape.positions} positions and data.max_prompt_length, data.max_response_length or "
            f"actor_rollout_ref.rollout.max_model_len ask for {needed}; shorten them, or widen the model with "
            "data/prepare_model.py."
        )


def _parallel_findings(run: Run, shape: ModelShape) -> Iterator[Finding]:
    tp = run.tensor_parallel
    if shape.heads % tp or (shape.kv_heads % tp and tp % shape.kv_heads):
        yield error(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size ({tp}) must divide the model's {shape.heads} attention "
            f"heads and fit its {shape.kv_heads} key-value heads; use 1 or 2."
        )


def _dtype_findings(run: Run, shape: ModelShape) -> Iterator[Finding]:
    mixed = run.actor.fsdp_config.get("mixed_precision") or {}
    names = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
    trained, served = names.get(mixed.get("param_dtype") or "bf16", "other"), run.rollout.dtype
    if trained != served:
        yield warning(
            f"actor_rollout_ref.rollout.dtype is {served} and the trainer computes in {trained} "
            "(actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype): their log-probs will differ; use the same."
        )
    if shape.dtype == "float16" and trained == "bfloat16":
        yield warning(f"{KEY}: the weights are float16 and are trained in bfloat16; expect rounding.")


def _kernel_findings(run: Run, shape: ModelShape) -> Iterator[Finding]:
    """verl's fused kernels read `lm_head.weight` itself. `apply_fsdp2` wraps an untied head on its own, whose weight is then a
    DTensor outside its forward pass (tests/checks/test_verl_facts.py has verl fail)."""
    key = "actor_rollout_ref.model.use_fused_kernels"
    if run.config.actor_rollout_ref.model.use_fused_kernels and not shape.tied and run.actor.strategy == "fsdp2":
        yield error(
            f"{key}=true fails on {run.model}, whose embeddings are not tied: verl 0.9.1 multiplies a tensor with the head's "
            f"DTensor; set {key}=false and lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu if memory is short."
        )

"""Checks of types and ranges, before the checks that calculate with them: a traceback from there would name no key."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.checks.findings import Finding, error
from recipe.exgrpo.presets.compose import compose
from recipe.exgrpo.presets.paper_settings import flatten

COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)
OPTIONAL_COUNTS = (
    "actor_rollout_ref.rollout.max_model_len",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.total_training_steps",
)
NAMES = ("actor_rollout_ref.model.path", "trainer.default_local_dir")
# What verl would find out late, or take for something else: with an unknown resume_mode a run starts anew.
CHOICES = {
    "data.truncation": ("error", "left", "right", "middle"),
    "actor_rollout_ref.actor.strategy": ("fsdp", "fsdp2"),
    "actor_rollout_ref.actor.optim.lr_scheduler_type": ("constant", "cosine"),
    "actor_rollout_ref.rollout.name": ("vllm", "sglang", "trtllm"),
    "actor_rollout_ref.rollout.dtype": ("bfloat16", "float16", "float32", "auto", "half", "float"),  # vLLM's names
    "trainer.device": ("cuda", "npu", "cpu"),
    "trainer.resume_mode": ("auto", "disable", "resume_path"),
}
# Values of those keys that verl knows and ExGRPO refuses, and why: "one of ..." alone would read like a gap in a list.
_ENGINE = (
    "the gradient guard and the scoring of candidates hold on to verl's FSDP engine (verl_ext/grad_guard.py, "
    "recipe/exgrpo/trainer/worker.py), another one has neither"
)
REFUSED = {
    "actor_rollout_ref.actor.strategy": dict.fromkeys(
        ("megatron", "veomni", "torchtitan", "automodel", "mindspeed"), _ENGINE
    ),
    "actor_rollout_ref.rollout.name": {"hf": "verl 0.9.1 has no server for it"},
}
SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"


def type_findings(config: DictConfig) -> Iterator[Finding]:
    """One error for every value whose type no run can work with. ExGRPO's own keys are ExGRPOConfig's to check."""
    given = flatten(OmegaConf.to_container(config, resolve=True))
    yield from (error(f"{key} must be {wanted}; got {given.get(key)!r}.") for key, wanted in _wrong(given))


def _wrong(given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what it must be)."""
    yield from ((key, "a positive integer") for key in COUNTS if not _is_count(given.get(key)))
    for key in OPTIONAL_COUNTS:
        if given.get(key) is not None and not _is_count(given[key]):
            yield key, "a positive integer, or null"
    yield from ((key, "a path") for key in NAMES if not isinstance(given.get(key), str))
    if not _is_number(given.get(SHARE)) or not 0 < given[SHARE] <= 1:
        yield SHARE, "a share in (0, 1]"
    yield from ((key, _choice(key, given.get(key))) for key, known in CHOICES.items() if given.get(key) not in known)
    for key, default in _shipped().items():
        if given.get(key) is None or key in (*COUNTS, *OPTIONAL_COUNTS, SHARE):
            continue
        if isinstance(default, bool) and not isinstance(given[key], bool):
            yield key, "true or false"
        elif _is_number(default) and not _is_number(given[key]):
            yield key, "a number"


def _choice(key: str, value: Any) -> str:
    why = REFUSED.get(key, {}).get(value) if isinstance(value, str) else None
    return f"one of {', '.join(CHOICES[key])}{f' ({why})' if why else ''}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


@cache
def _shipped() -> dict[str, Any]:
    """The defaults of verl's keys, whose types are the wanted ones; references to other keys stay references."""
    defaults = flatten(OmegaConf.to_container(compose(), resolve=False))
    return {key: value for key, value in defaults.items() if not key.startswith("exgrpo.")}

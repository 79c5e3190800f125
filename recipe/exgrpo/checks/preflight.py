"""Refusals before anything expensive starts: each is one sentence that names the key and the remedy.

`check` is for a run: it raises on the first error and logs warnings. `inspect_run` yields everything, for `exgrpo check`.
"""

import logging
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe.exgrpo.checks.data import data_findings
from recipe.exgrpo.checks.disk import disk_findings
from recipe.exgrpo.checks.environment import environment_findings
from recipe.exgrpo.checks.findings import ERROR, NOTE, Finding, PreflightError, error
from recipe.exgrpo.checks.memory import memory_findings, world_size
from recipe.exgrpo.checks.model import longest_sequence, model_findings
from recipe.exgrpo.checks.reward import reward_findings
from recipe.exgrpo.checks.tokenizer import tokenizer_findings
from recipe.exgrpo.checks.types import type_findings
from recipe.exgrpo.core.config import ExGRPOConfig

__all__ = ["PreflightError", "check", "config_problems", "inspect_run"]

logger = logging.getLogger(__name__)


def _select(config: DictConfig, key: str, default=None):
    return OmegaConf.select(config, key, default=default)


def _norm_problem(config: DictConfig) -> str | None:
    """The sum over a sequence must be divided by a constant: anything else depends on the micro-batch split."""
    actor = config.actor_rollout_ref.actor
    if actor.loss_agg_mode != "seq-mean-token-sum-norm" or actor.loss_scale_factor == config.data.max_response_length:
        return None
    return (
        f"actor_rollout_ref.actor.loss_scale_factor is {actor.loss_scale_factor} but data.max_response_length is "
        f"{config.data.max_response_length}; set it to ${{data.max_response_length}}."
    )


def _batch_problem(config: DictConfig) -> str | None:
    size, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if size % mini:
        return (
            f"data.train_batch_size ({size}) must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size ({mini}); "
            "verl would pad every step with empty rows."
        )
    return None


def _parallel_problems(config: DictConfig) -> Iterator[str]:
    """Mini-batches must divide over the data-parallel ranks, replicas over the GPUs."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    gpus, tp, sp = world_size(config), rollout.tensor_model_parallel_size, actor.ulysses_sequence_parallel_size
    if gpus % tp:
        yield (
            f"actor_rollout_ref.rollout.tensor_model_parallel_size ({tp}) must divide the {gpus} GPUs "
            "(trainer.nnodes x trainer.n_gpus_per_node); lower it or change the GPUs."
        )
    if gpus % sp:
        yield f"actor_rollout_ref.actor.ulysses_sequence_parallel_size ({sp}) must divide the {gpus} GPUs; lower it."
    elif actor.ppo_mini_batch_size * rollout.n % (gpus // sp):
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size x actor_rollout_ref.rollout.n ({actor.ppo_mini_batch_size} x "
            f"{rollout.n}) must be a multiple of the data-parallel size ({gpus // sp}); change it or the number of GPUs."
        )


def _budget_problems(config: DictConfig) -> Iterator[str]:
    """With dynamic batches verl stops at a sequence longer than the token budget, hours into a run."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    longest = longest_sequence(config)
    budgets = (
        ("actor.ppo_max_token_len_per_gpu", actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu),
        (
            "rollout.log_prob_max_token_len_per_gpu",
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        ),
    )
    for key, dynamic, tokens in budgets:
        if dynamic and tokens * actor.ulysses_sequence_parallel_size < longest:
            yield (
                f"actor_rollout_ref.{key} ({tokens}) is below the longest sequence ({longest}: data.max_prompt_length + "
                "data.max_response_length); raise it or shorten the responses."
            )


def config_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for everything in the configuration that ExGRPO refuses."""
    rollout = config.actor_rollout_ref.rollout
    mode = config.trainer.v1.trainer_mode
    if not config.trainer.use_v1:
        yield "trainer.use_v1 must be true: ExGRPO extends verl's V1 trainer."
    if mode != "exgrpo":
        yield f"trainer.v1.trainer_mode is {mode!r}; ExGRPO is synchronous and runs as trainer.v1.trainer_mode=exgrpo."
    if rollout.n < 2:
        yield f"actor_rollout_ref.rollout.n is {rollout.n}; a group advantage needs at least 2 rollouts a question."
    if _select(config, "algorithm.use_kl_in_reward"):
        yield (
            "algorithm.use_kl_in_reward must be false: on replayed rows it would take the policy of the past for the current "
            "one; use actor_rollout_ref.actor.use_kl_loss for a KL term."
        )
    if _select(config, "algorithm.filter_groups.enable"):
        yield "algorithm.filter_groups.enable must be false: it drops groups before the replayed trajectory joins them."
    if _select(config, "algorithm.rollout_correction.bypass_mode"):
        yield (
            "algorithm.rollout_correction.bypass_mode must be false: stored log-probs are the training engine's, "
            "and importance weights against the inference engine's would mix the two."
        )
    if _select(config, "data.gen_batch_size") != 1:
        yield "data.gen_batch_size must be 1, so that exactly B - n questions are fetched."
    if _select(config, "critic.enable"):
        yield "critic.enable must be false: the advantage is group-relative, there is no critic."
    tools = ("actor_rollout_ref.rollout.multi_turn.enable", "data.tool_config_path", "data.function_tool_path")
    yield from (f"{key} is set; ExGRPO replays single-turn text only." for key in tools if _select(config, key))
    yield from filter(None, (_norm_problem(config), _batch_problem(config)))
    yield from _parallel_problems(config)
    yield from _budget_problems(config)


def settings_of(config: DictConfig) -> ExGRPOConfig:
    """The validated `exgrpo` node; raises PreflightError naming the key."""
    try:
        return ExGRPOConfig.from_mapping(OmegaConf.to_container(config, resolve=True)["exgrpo"])
    except (ValueError, OmegaConfBaseException) as problem:
        raise PreflightError(str(problem).splitlines()[0]) from problem


def inspect_run(config: DictConfig) -> Iterator[Finding]:
    """Everything found, cheapest first; what depends on readable data or sound settings comes only if they are."""
    try:
        settings_of(config)
    except PreflightError as problem:
        yield error(str(problem))
        return
    wrong = list(type_findings(config))
    if wrong:
        yield from wrong
        return
    problems = [error(text) for text in config_problems(config)]
    data = list(data_findings(config))
    yield from (*environment_findings(config), *problems, *data)
    yield from reward_findings(config)
    yield from model_findings(config)
    yield from tokenizer_findings(config, readable=not any(finding.severity == ERROR for finding in data))
    yield from memory_findings(config)
    yield from disk_findings(config)


def check(config: DictConfig) -> ExGRPOConfig:
    """Raise PreflightError on the first error, log the rest; returns the validated `exgrpo` settings."""
    settings = settings_of(config)
    for finding in inspect_run(config):
        if finding.severity == ERROR:
            raise PreflightError(finding.text)
        logger.log(logging.INFO if finding.severity == NOTE else logging.WARNING, "%s", finding.text)
    return settings

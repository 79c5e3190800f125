"""Checks of the configuration itself: what ExGRPO, or the layout of GPUs and batches, cannot work with."""

from collections.abc import Iterator

from omegaconf import OmegaConf

from recipe.exgrpo.checks.findings import Finding, error, note
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy, policy_class

# Key -> why it must be false.
OFF = {
    "algorithm.use_kl_in_reward": "on replayed rows it would take the policy of the past for the current one; use "
    "actor_rollout_ref.actor.use_kl_loss for a KL term",
    "algorithm.rollout_correction.bypass_mode": "stored log-probs are the training engine's, and importance weights against "
    "the inference engine's would mix the two",
    "critic.enable": "the advantage is group-relative, there is no critic",
    "actor_rollout_ref.rollout.enable_rollout_routing_replay": "a stored trajectory does not say which experts its tokens met",
}
# Trainer modes of verl that are not ours -> why.
ASYNCHRONOUS = (
    "its rollouts are of older weights than the update, and what is replayed, stored and retired in a step is planned from the "
    "outcomes of the step before; "
)
# Parts that verl has, that ExGRPO's code should work with, and that nobody has run it with.
UNTESTED = {
    "actor_rollout_ref.rollout.name": ("sglang", "trtllm"),
    "actor_rollout_ref.actor.strategy": ("fsdp",),
    "trainer.device": ("npu",),
}


def configuration_findings(run: Run) -> Iterator[Finding]:
    """One error for everything in the configuration that ExGRPO refuses."""
    for part in (_trainer, _rollouts, _loss_scale, _batches, _token_budgets):
        yield from map(error, part(run))
    yield from _untested(run)


def _untested(run: Run) -> Iterator[Finding]:
    for key, values in UNTESTED.items():
        value = OmegaConf.select(run.config, key)
        if value in values:
            yield note(f"{key}={value} is untested: every run of this project was with vLLM, FSDP2 and cpu or cuda.")


def policy_findings(settings: ExGRPOConfig, group_size: int) -> Iterator[Finding]:
    """An error when there is no such policy, or it cannot work with its settings."""
    try:
        make_policy(settings, max(2, group_size))  # fewer rollouts have a sentence of their own
    except ValueError as problem:
        yield error(str(problem))


def _trainer(run: Run) -> Iterator[str]:
    v1 = run.config.trainer.v1
    if not run.config.trainer.use_v1:
        yield "trainer.use_v1 must be true: ExGRPO extends verl's V1 trainer."
    if v1.trainer_mode != "exgrpo":
        why = ASYNCHRONOUS if "async" in str(v1.trainer_mode) else ""
        yield (
            f"trainer.v1.trainer_mode is {v1.trainer_mode!r}; {why}ExGRPO is synchronous and runs as "
            "trainer.v1.trainer_mode=exgrpo."
        )


def _rollouts(run: Run) -> Iterator[str]:
    if run.group_size < 2:
        yield (
            f"actor_rollout_ref.rollout.n is {run.group_size}; a group advantage needs at least 2 rollouts per question."
        )
    if run.rollout.temperature <= 0:
        yield (
            f"actor_rollout_ref.rollout.temperature is {run.rollout.temperature:g}: all rollouts of a question would be one, "
            "and log-probs are divided by it; set it above 0 (the paper's is 1.0)."
        )
    if run.settings.runtime.seeded_rollouts and run.rollout.name != "vllm":
        yield (
            f"exgrpo.runtime.seeded_rollouts works with actor_rollout_ref.rollout.name=vllm: {run.rollout.name} has another "
            "name for a request's seed (sglang: sampling_seed), which verl does not translate; set it to false."
        )
    yield from (f"{key} must be false: {why}." for key, why in OFF.items() if OmegaConf.select(run.config, key))
    if run.config.algorithm.filter_groups.enable and _needs_all_groups(run.settings.policy):
        yield (
            "algorithm.filter_groups.enable (exgrpo.dynamic_sampling) drops groups whose rewards do not differ before "
            f"exgrpo.policy={run.settings.policy} sees them, which grades them or takes their places; set it to false."
        )
    if run.config.data.get("gen_batch_size") != 1:
        yield "data.gen_batch_size must be 1, so that exactly as many questions are fetched as the plan has fresh ones."


def _needs_all_groups(policy: str) -> bool:
    """Whether this policy cannot do with groups that differ alone; false for one that does not exist, of which others tell."""
    try:
        return policy_class(policy).needs_all_groups
    except ValueError:
        return False


def _loss_scale(run: Run) -> Iterator[str]:
    """The sum over a sequence must be divided by a constant: anything else depends on the micro-batch split."""
    actor = run.actor
    if run.settings.loss.denominator == "mixed" and not actor.loss_agg_mode.startswith("seq-"):
        yield (
            f"exgrpo.loss.denominator=mixed is a number of sequences; actor_rollout_ref.actor.loss_agg_mode="
            f"{actor.loss_agg_mode} divides by tokens: use a mode that begins with seq-mean."
        )
    if actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor != run.response_tokens:
        yield (
            f"actor_rollout_ref.actor.loss_scale_factor is {actor.loss_scale_factor} but data.max_response_length is "
            f"{run.response_tokens}; set it to ${{data.max_response_length}}."
        )


def _batches(run: Run) -> Iterator[str]:
    """Mini-batches must divide the batch and be divisible by the data-parallel ranks, replicas must divide the GPUs."""
    mini, tp, sp = run.actor.ppo_mini_batch_size, run.tensor_parallel, run.sequence_parallel
    if run.questions % mini:
        yield (
            f"data.train_batch_size ({run.questions}) must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size "
            f"({mini}); verl would pad every step with empty rows."
        )
    if run.gpus % tp:
        yield (
            f"actor_rollout_ref.rollout.tensor_model_parallel_size ({tp}) must divide the {run.gpus} GPUs "
            "(trainer.nnodes x trainer.n_gpus_per_node); lower it or change the GPUs."
        )
    if run.gpus % sp:
        yield f"actor_rollout_ref.actor.ulysses_sequence_parallel_size ({sp}) must divide the {run.gpus} GPUs; lower it."
    elif mini * run.group_size % run.data_parallel:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size x actor_rollout_ref.rollout.n ({mini} x {run.group_size}) must be a "
            f"multiple of the data-parallel size ({run.data_parallel}); change it or the number of GPUs."
        )


def _token_budgets(run: Run) -> Iterator[str]:
    """With dynamic batches verl stops at a sequence longer than the token budget, hours into a run."""
    log_probs = run.rollout.log_prob_max_token_len_per_gpu
    budgets = (
        ("actor.ppo_max_token_len_per_gpu", run.actor.use_dynamic_bsz, run.token_budget),
        ("rollout.log_prob_max_token_len_per_gpu", run.rollout.log_prob_use_dynamic_bsz, log_probs),
    )
    for key, dynamic, tokens in budgets:
        if dynamic and tokens * run.sequence_parallel < run.longest:
            yield (
                f"actor_rollout_ref.{key} ({tokens}) is below the longest sequence ({run.longest}: data.max_prompt_length + "
                "data.max_response_length); raise it or shorten the responses."
            )

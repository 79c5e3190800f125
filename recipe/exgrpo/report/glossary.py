"""What every metric of a run means, one sentence each: what `exgrpo metrics` prints and docs/metrics.md is generated from.

Our own are listed by name, verl's by the pattern of their names (`fnmatch`): which timers and validation sets there are depends
on the run.
"""

from fnmatch import fnmatchcase

from recipe.exgrpo.core.policies.metrics import METRICS

OURS = {f"experience/{name}": sentence for name, sentence in METRICS.items()} | {
    "experience/bucket/*": "Eligible questions whose latest group had k successes of K (`bucket/k`, 1 <= k < K).",
    "experience/evicted/*": "Trajectories evicted in this step, by reason: age, reuse, per_question, bytes.",
    "experience/skipped_draws": "Questions that the dataset's cursor skipped: retired, or in this step already.",
    "experience/scoring_waste": "Tokens forwarded for scoring, padding included, over real tokens: 1 is no waste.",
    "experience/scoring_calls": "Forward calls for scoring in this step: at most one for ExGRPO, two for headroom.",
    "experience/extra_rows": "Stored trajectories in this step's update on top of the batch, not in any rollout's place.",
    "batch/history_bytes": "Bytes of this step's line in history.jsonl (`exgrpo browse`), 0 where none is written.",
    "batch/pass_rate": "Mean reward of this step's fresh rollouts; what the delayed start looks at.",
    "batch/questions": "Groups in this step's batch.",
    "batch/turns_mean": "Mean chat turns of a rollout, prompt included: 2 without tools.",
    "batch/tool_failures": "Calls of tools that raised, or gave no answer in time (`exgrpo.runtime.tool_timeout_s`): their "
    "rollouts read an error.",
    "batch/solve_all": "Groups all of whose fresh rollouts succeeded.",
    "batch/solve_none": "Groups none of whose fresh rollouts succeeded.",
    "batch/rows_out_of_update": "Trajectories in no loss term that still count in its denominator (masked, rows not refilled).",
    "batch/rows_out_of_denominator": "Of them, those out of its denominator as well (`exgrpo.loss.denominator=mixed`).",
    "batch/generated_rollouts": "Rollouts asked for in this step, those of groups that are not in its batch included.",
    "batch/discarded_groups": "Groups asked for and not in the batch: without variance, surplus (dynamic sampling) or failed.",
    "batch/rows_updated": "Trajectories in this step's loss terms, stored ones included: what an update costs.",
    "reward/acc/mean": "Fresh rollouts whose answer is right, share.",
    "reward/format_ok/mean": "Fresh rollouts in the asked format, share.",
    "reward/truncated/mean": "Fresh rollouts cut off at the length limit, share; without a box they have no answer.",
    "reward/timeout/mean": "Fresh rollouts on which the grader ran out of time, share; each counts as wrong.",
    "reward/error/mean": "Fresh rollouts on which the grader failed, share; each counts as wrong.",
    "reward/precheck/mean": "Fresh rollouts refused before parsing (absurdly long or nested answers), share.",
    "actor/replay_ratio_mean": "Mean importance weight w* = pi_theta / pi_past over replayed tokens; 1 would be no correction.",
    "actor/replay_shaped_mean": "Mean of f(w*) = w* / (w* + beta) over replayed tokens.",
    "actor/replay_ess": "Effective sample size of the replayed tokens' weights, as a share of the tokens (0 to 1).",
    "actor/fresh_ratio_mean": "Mean importance weight pi_theta / pi_old over fresh tokens.",
    "actor/pg_clipfrac": "Fresh tokens at the clip, share.",
    "actor/ppo_kl": "Mean of log(pi_old / pi_theta) over fresh tokens, nats.",
    "actor/skipped_updates": "Updates skipped for a gradient norm above exgrpo.runtime.max_grad_norm, or not finite.",
    "val/pass_rate": "Mean of `val/<source>/pass_rate` over the data sources of the validation files, whatever their sizes.",
    "val/*/pass_rate": "Mean accuracy over all samples of one data source; a lost rollout counts as wrong.",
    "timing_s/score_candidates": "Seconds in scoring stored trajectories.",
    "timing_s/experience": "Seconds in bookkeeping, admission and rearranging the update.",
}
VERL = {
    "step": "Training step; 0 is the validation before training.",
    "actor/entropy": "Entropy of the policy on this step's batch, aggregated like the loss (sum over a constant length), nats.",
    "actor/entropy_loss": "The entropy term as it enters the loss.",
    "actor/pg_loss": "The policy term of the loss (Eq. 4).",
    "actor/loss": "The whole loss.",
    "actor/pg_clipfrac_lower": "Tokens at the dual clip, share: verl's own loss alone, on-policy.",
    "actor/kl_*": "Divergence from the reference model, where there is one.",
    "actor/grad_norm": "Gradient norm before clipping, mean over the updates of a step.",
    "actor/lr": "Learning rate.",
    "actor/perf/*": "Memory of the training worker, GB.",
    "perf/*": "Tokens of the step, seconds, tokens per second and device, and model FLOPs utilisation.",
    "critic/score/*": "Rewards of all rows of the batch, replayed ones included.",
    "critic/rewards/*": "The same after reward shaping by verl (none here).",
    "critic/advantages/*": "Advantages over all response tokens.",
    "critic/returns/*": "The same as the advantages: there is no critic.",
    "response_length/*": "Response lengths in tokens over all rows; clip_ratio is the share at the longest.",
    "response_length_non_aborted/*": "The same without aborted rollouts.",
    "response/aborted_ratio": "Share of responses of length 0.",
    "prompt_length/*": "Prompt lengths in tokens.",
    "global_seqlen/*": "Tokens per data-parallel rank before and after balancing.",
    "num_turns/*": "Turns of the conversations (2: one question, one answer).",
    "training/num_turns/*": "The same, as the rollout reports it.",
    "training/global_step": "Training step.",
    "training/epoch": "Epoch of the dataset's cursor.",
    "training/filter_groups/*": "Groups that verl's dynamic sampling dropped: without variance, and surplus ones that differ.",
    "training/off_policy/*": "How many weight versions old the rows are, and over how many one spans.",
    "training/rollout_probs_diff_*": "Token probabilities of the inference against the training engine, fresh rows.",
    "training/rollout_actor_probs_pearson_corr": "Correlation of the two engines' token probabilities, fresh rows.",
    "rollout_corr/*": "Gap between inference and training engine in verl's rollout correction; all rows.",
    "timing_s/*": "Seconds in this part of the step.",
    "timing_per_token_ms/*": "Milliseconds per token in this part of the step.",
    "val-core/*": "Validation accuracy of one data source, over n samples (mean@n, best@n, maj@n).",
    "val-aux/*": "Further validation figures of one data source.",
}


def sentence_of(name: str) -> str | None:
    """What the metric `name` means; None for one that nobody described."""
    for table in (OURS, VERL):
        if name in table:
            return table[name]
    return next((text for table in (OURS, VERL) for pattern, text in table.items() if fnmatchcase(name, pattern)), None)


def markdown() -> str:
    """The content of docs/metrics.md."""
    parts = [
        "# Metrics",
        "",
        "Made by `exgrpo metrics --markdown > docs/metrics.md`; do not edit. `exgrpo metrics WORD` prints those about a word.",
        "All of `experience/` is reported by every policy and reads zero where a feature is off.",
    ]
    for title, table in (("Ours", OURS), ("verl's", VERL)):
        parts += ["", f"## {title}", "", "| metric | meaning |", "|---|---|"]
        parts += [f"| `{name}` | {sentence} |" for name, sentence in table.items()]
    return "\n".join([*parts, ""])

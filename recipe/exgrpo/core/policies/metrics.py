"""Every metric that a policy reports under `experience/`, with the sentence that docs/metrics.md has of it.

All policies report all of them, zero where a feature is off; `bucket/k` (eligible questions with k successes of K, 1 <= k < K)
and `evicted/reason` come with a store.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory
from recipe.exgrpo.core.policies.choices import Choice
from recipe.exgrpo.core.selection import Scores

METRICS = {
    "replay_active": "1 once stored experience is in use (after the delayed start), 0 before and on-policy.",
    "planned_questions": "Questions of this step that were drawn from the buffer.",
    "replayed_questions": "Planned questions whose group received a stored trajectory.",
    "skipped_replays": "Planned questions that received none: all their fresh rollouts failed to finish, or the gate held.",
    "replayed_rows": "Stored trajectories in this step's update, by whatever way they came in.",
    "zero_variance_groups": "Groups whose rewards do not differ and whose rows stored trajectories may take (refill).",
    "freed_rows": "Rows that left the update to be taken by stored trajectories (refill).",
    "drawn_groups": "Stored groups that came into the update as rows of their own (refill, headroom).",
    "refused_groups": "Stored groups that were scored and that the gate refused (headroom).",
    "headroom_mean": "Mean headroom of the stored groups in the update: what probabilities can still move, 0 to 1 (headroom).",
    "drift_mean": "Mean drift of the stored groups in the update: squared change of their log-probs, nats squared (headroom).",
    "rescued_groups": "Groups whose rollouts all failed and that got a stored success of their question (rescue).",
    "kept_prompts": "Questions that are kept to be asked again, with fresh rollouts only (prompts).",
    "graduated_prompts": "Questions that are no longer kept after this step: out of the band, or asked often enough (prompts).",
    "shaped_rows": "Rollouts of groups without variance that got an advantage for each token instead (rl_zvp).",
    "shaped_advantage_mean": "Mean magnitude of these advantages over their tokens (rl_zvp).",
    "guided_groups": "Groups that got traces from elsewhere (luffy, rlep).",
    "imported_trajectories": "Stored trajectories that came from elsewhere (exgrpo.experience.init_from).",
    "buffer_questions": "Questions with at least one stored trajectory.",
    "buffer_trajectories": "Stored trajectories.",
    "buffer_bytes": "Bytes of stored trajectories: tokens, log-probs and their columns.",
    "retired_questions": "Questions solved by all K, no longer drawn.",
    "added": "Trajectories admitted to the buffer in this step.",
    "newly_retired": "Questions retired in this step.",
    "reviewed": "Retired questions that are in this step's batch again, with K fresh rollouts (Table 7).",
    "partial_groups": "Groups that lost a rollout to a failure: trained on, and left out of all bookkeeping.",
    "candidates_scored": "Stored trajectories scored under the current policy.",
    "selected_entropy_mean": "Mean token entropy of the replayed trajectories under the current policy, nats.",
    "turns_mean": "Mean chat turns of the replayed trajectories, prompt included, as verl's num_turns counts: 2 without tools.",
    "tool_tokens": "Tokens of the replayed trajectories that the model did not write (tools): seen, and in no loss or score.",
    "age_steps_mean": "Mean age of the replayed trajectories, steps.",
    "age_steps_max": "Largest age of the replayed trajectories, steps.",
    "reuse_mean": "How often the replayed trajectories have been replayed, this time included: mean.",
    "reuse_max": "The same: largest.",
}


@dataclass
class Report:
    """What happened to experience in one step; becomes the `experience/` metrics."""

    active: bool = False
    planned: int = 0
    replayed_questions: int = 0
    skipped: int = 0
    zero_variance_groups: int = 0
    freed: int = 0
    drawn_groups: int = 0
    refused: int = 0
    rescued: int = 0
    guided: int = 0
    scored: int = 0
    added: int = 0
    retired: int = 0
    reviewed: int = 0
    partial_groups: int = 0
    entropies: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    tool_tokens: int = 0
    ages: list[int] = field(default_factory=list)
    reuses: list[int] = field(default_factory=list)
    evicted: dict[str, int] = field(default_factory=dict)
    headrooms: list[float] = field(default_factory=list)
    drifts: list[float] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def replayed(self, trajectory: Trajectory, step: int) -> None:
        """Note that `trajectory`, as it was before this use, is in the update of `step`."""
        self.entropies.append(trajectory.entropy)
        self.turns.append(trajectory.turns)
        self.tool_tokens += trajectory.tool_tokens
        self.ages.append(step - trajectory.birth_step)
        self.reuses.append(trajectory.use_count + 1)

    def drew(self, groups: Scores) -> None:
        """Note that groups with these scores are in the update."""
        self.drawn_groups += len(groups.drift)
        self.headrooms += groups.headroom.tolist()
        self.drifts += groups.drift.tolist()

    def metrics(self, store: ExperienceBuffer, step: int) -> dict[str, float]:
        """All of METRICS, and `bucket/k` and `evicted/reason` of `store`."""
        stats = store.stats(step)
        values = {
            "replay_active": self.active,
            "planned_questions": self.planned,
            "replayed_questions": self.replayed_questions,
            "skipped_replays": self.skipped,
            "replayed_rows": len(self.ages),
            "zero_variance_groups": self.zero_variance_groups,
            "freed_rows": self.freed,
            "drawn_groups": self.drawn_groups,
            "refused_groups": self.refused,
            "rescued_groups": self.rescued,
            **dict.fromkeys(("kept_prompts", "graduated_prompts", "shaped_rows", "shaped_advantage_mean"), 0),
            "headroom_mean": _mean(self.headrooms),
            "drift_mean": _mean(self.drifts),
            "guided_groups": self.guided,
            "imported_trajectories": stats["imported"],
            "buffer_questions": stats["questions"],
            "buffer_trajectories": stats["trajectories"],
            "buffer_bytes": stats["bytes"],
            "retired_questions": stats["retired"],
            "added": self.added,
            "newly_retired": self.retired,
            "reviewed": self.reviewed,
            "partial_groups": self.partial_groups,
            "candidates_scored": self.scored,
            "selected_entropy_mean": _mean(self.entropies),
            "turns_mean": _mean(self.turns),
            "tool_tokens": self.tool_tokens,
            "age_steps_mean": _mean(self.ages),
            "age_steps_max": max(self.ages, default=0),
            "reuse_mean": _mean(self.reuses),
            "reuse_max": max(self.reuses, default=0),
            **{name: value for name, value in stats.items() if name.startswith("bucket/")},
            **{f"evicted/{reason}": count for reason, count in self.evicted.items()},
        }
        return {name: float(value) for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else 0.0

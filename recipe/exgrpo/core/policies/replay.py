"""The replay-buffer manager: one object that plans a step, picks trajectories and keeps the books (Alg. 1).

A trainer calls, each step: `plan` (which questions to replay), `select` (which of their trajectories), `replayed` (those
that entered the batch), `grade` (outcomes of all groups; returns what to store), `store`, `finish_step`. The manager knows
neither models nor Ray; the verl trainer and the laboratory drive the same one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.outcomes import spread_buckets
from recipe.exgrpo.core.sampler import sample_questions
from recipe.exgrpo.core.schedule import DelayedStart
from recipe.exgrpo.core.selection import Scores, choose, needs_scores

# Names every step reports under `experience/`, besides `bucket/k` and `evicted/reason`.
METRIC_NAMES = (
    "replay_active",
    "planned_questions",
    "replayed_questions",
    "skipped_replays",
    "buffer_questions",
    "buffer_trajectories",
    "buffer_bytes",
    "retired_questions",
    "added",
    "newly_retired",
    "reviewed",
    "partial_groups",
    "candidates_scored",
    "selected_entropy_mean",
    "age_steps_mean",
    "age_steps_max",
    "reuse_mean",
    "reuse_max",
)


@dataclass(frozen=True)
class Group:
    """Outcome of one question's group: rewards of its fresh rollouts, and of the replayed trajectory if there is one."""

    question: str
    fresh_rewards: Sequence[float]
    replayed_reward: float | None = None

    @property
    def size(self) -> int:
        return len(self.fresh_rewards) + (self.replayed_reward is not None)

    @property
    def rewards(self) -> list[float]:
        return [*self.fresh_rewards, *([] if self.replayed_reward is None else [self.replayed_reward])]


@dataclass
class StepReport:
    """What happened to experience in one step; becomes the `experience/` and `batch/` metrics."""

    active: bool = False
    planned: int = 0
    replayed: int = 0
    scored: int = 0
    added: int = 0
    retired: int = 0
    reviewed: int = 0
    partial_groups: int = 0
    entropies: list[float] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    reuses: list[int] = field(default_factory=list)
    evicted: dict[str, int] = field(default_factory=dict)


def check_group_size(group_size: int) -> None:
    """Raise ValueError for a K without a group advantage."""
    if group_size < 2:
        raise ValueError(f"actor_rollout_ref.rollout.n must be at least 2 for a group advantage; got {group_size}.")


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else 0.0


class ReplayManager:
    """Experience replay for groups of `group_size` = K trajectories under `config`; `buffer` for resumed runs."""

    def __init__(self, config: ExGRPOConfig, group_size: int, buffer: ExperienceBuffer | None = None) -> None:
        check_group_size(group_size)
        self.config = config
        self.group_size = group_size
        self.buffer = ExperienceBuffer(group_size, config.buffer) if buffer is None else buffer
        self.rng = np.random.default_rng(config.seed)
        self.schedule = DelayedStart(config.start_threshold)
        self.report = StepReport()

    @property
    def active(self) -> bool:
        """Whether replay and collection are on in the current step."""
        return self.schedule.active

    @property
    def needs_scores(self) -> bool:
        return needs_scores(self.config.trajectory.select)

    def plan(self, batch_size: int) -> list[str]:
        """Questions to replay in a step of `batch_size` = B questions: min(floor(rho B), eligible), each at most once."""
        self.report = StepReport(active=self.active)
        if not self.active:
            return []
        wanted = math.floor(self.config.rho * batch_size)
        questions = sample_questions(self.buffer, wanted, self.config.question, self.rng)
        self.report.planned = len(questions)
        return questions

    def select(self, question: str, scores: Scores | None = None) -> Trajectory:
        """The stored trajectory of `question` to replay; `scores` are those of `buffer.rows(question)`, in that order."""
        rows = self.buffer.rows(question)
        if scores is not None:
            self.buffer.mark_scored(rows, scores.entropy)
            self.report.scored += len(rows)
        chosen = choose(self.config.trajectory.select, len(rows), scores, self.rng)
        return self.buffer.trajectory(int(rows[chosen]))

    def replayed(self, trajectory: Trajectory, step: int) -> None:
        """Note that `trajectory` entered the batch of `step`."""
        self.report.replayed += 1
        self.report.entropies.append(trajectory.entropy)
        self.report.ages.append(step - trajectory.birth_step)
        self.report.reuses.append(trajectory.use_count + 1)
        self.buffer.mark_used(trajectory.row, step)

    def successes(self, group: Group) -> int:
        """s of the mixed group, 0..K (Alg. 1); by fresh rollouts alone, scaled to K, with `bookkeeping.fresh_only`."""
        books = self.config.bookkeeping
        fresh = sum(reward > books.success_threshold for reward in group.fresh_rewards)
        if group.replayed_reward is None:
            return fresh
        if not books.fresh_only:
            return fresh + (group.replayed_reward > books.success_threshold)
        tried = len(group.fresh_rewards)
        if fresh in (0, tried):
            return self.group_size if fresh else 0
        return min(max(round(fresh * self.group_size / tried), 1), self.group_size - 1)

    def grade(self, groups: Sequence[Group]) -> dict[int, list[int]]:
        """Update buckets and the retired set from finished groups; only while replay is active.

        Returns, for positions of `groups` whose successes are to be stored, the positions of those fresh rollouts. A partial
        group (a failed session) changes nothing: its count is not out of K.
        """
        if not self.active:
            return {}
        whole = [position for position, group in enumerate(groups) if group.size == self.group_size]
        self.report.partial_groups += len(groups) - len(whole)
        counts = self._counts([groups[position] for position in whole])
        kept = [p for p, count in zip(whole, counts, strict=True) if self._settle(groups[p].question, count)]
        return {position: self._to_store(groups[position]) for position in kept}

    def _counts(self, groups: Sequence[Group]) -> list[int]:
        """The bucket of each whole group, 0..K, by `bookkeeping.outcome`."""
        if self.config.bookkeeping.outcome == "reward_spread":
            return spread_buckets([group.rewards for group in groups], self.group_size)
        return [self.successes(group) for group in groups]

    def _to_store(self, group: Group) -> list[int]:
        """Positions of the fresh rollouts worth keeping: successes, or with continuous rewards those above the group mean."""
        books = self.config.bookkeeping
        spread = books.outcome == "reward_spread"
        bar = float(np.mean(group.rewards)) if spread else books.success_threshold
        return [i for i, reward in enumerate(group.fresh_rewards) if reward > bar]

    def _settle(self, question: str, count: int) -> bool:
        """Retire, re-bucket or bench a question by its success count; true when its fresh successes are to be stored."""
        books = self.config.bookkeeping
        if self.buffer.is_retired(question):
            return False
        if count == self.group_size:
            self._solved(question)
            return False
        upper = self.group_size - 1 if books.upper is None else books.upper
        if books.lower < count <= upper:
            self.buffer.record(question, count)
            return True
        if count == 0 and not books.keep_unsolved and self.buffer.latest_count(question) is not None:
            self.buffer.record(question, 0)
        return False

    def _solved(self, question: str) -> None:
        """All K succeeded: into the retired set, or only out of the buckets when retirement is off."""
        if self.config.bookkeeping.retire:
            self.buffer.retire(question)
            self.report.retired += 1
        elif self.buffer.latest_count(question) is not None:
            self.buffer.record(question, 0)

    def store(self, question: str, token_ids, log_probs, reward: float, step: int) -> None:
        """Add one fresh successful trajectory (response ids [L], behaviour log-probs [L]) unless it is stored already."""
        self.report.added += self.buffer.add(question, Response(token_ids, log_probs), reward, step)

    def finish_step(self, step: int, pass_rate: float) -> None:
        """Close the books of `step`: bounds, retired review, and the schedule's look at the fresh rollouts' pass rate."""
        self.report.evicted = self.buffer.enforce_limits(step)
        books = self.config.bookkeeping
        if self.active and books.review_interval and step % books.review_interval == 0:
            self._review(books.review_share)
        self.schedule.observe(pass_rate)

    def _review(self, share: float) -> None:
        """Put a share of the retired questions back into the stream (Table 7)."""
        retired = self.buffer.retired
        for i in self.rng.choice(len(retired), size=math.ceil(share * len(retired)), replace=False) if retired else ():
            self.buffer.unretire(retired[int(i)])
            self.report.reviewed += 1

    def metrics(self, step: int) -> dict[str, float]:
        """The `experience/` metrics of the step just finished, without their prefix; all zero before replay starts."""
        report = self.report
        return {
            **self._buffer_metrics(step),
            "replay_active": float(report.active),
            "planned_questions": report.planned,
            "replayed_questions": report.replayed,
            "skipped_replays": report.planned - report.replayed if self.config.inject else 0,
            "added": report.added,
            "newly_retired": report.retired,
            "reviewed": report.reviewed,
            "partial_groups": report.partial_groups,
            "candidates_scored": report.scored,
            "selected_entropy_mean": _mean(report.entropies),
            "age_steps_mean": _mean(report.ages),
            "age_steps_max": max(report.ages, default=0),
            "reuse_mean": _mean(report.reuses),
            "reuse_max": max(report.reuses, default=0),
            **{f"evicted/{reason}": count for reason, count in report.evicted.items()},
        }

    def _buffer_metrics(self, step: int) -> dict[str, float]:
        stats = self.buffer.stats(step)
        buckets = {name: value for name, value in stats.items() if name.startswith("bucket/")}
        return {
            "buffer_questions": stats["questions"],
            "buffer_trajectories": stats["trajectories"],
            "buffer_bytes": stats["bytes"],
            "retired_questions": stats["retired"],
            **buckets,
        }

    def state(self) -> dict:
        """What the buffer does not hold: generator and schedule, JSON-able."""
        return {"rng": self.rng.bit_generator.state, "replay_active": self.schedule.active}

    def load_state(self, state: dict, buffer: ExperienceBuffer) -> None:
        """Continue from `state()` and a restored buffer: the same next draws as without the interruption."""
        self.rng.bit_generator.state = state["rng"]
        self.schedule.active = bool(state["replay_active"]) or self.schedule.active
        self.buffer = buffer

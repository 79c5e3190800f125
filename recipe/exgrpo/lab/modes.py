"""How each `exgrpo.mode` drives the core, step by step as `recipe.exgrpo.trainer.trainer` does; one class a mode.

A step calls `slots` (which questions, how many rollouts), `inject` (rewards known), `arrange` (behaviour log-probs and
advantages known) and `finish`. A group is the list of rows of one question, in batch order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.outcomes import in_band
from recipe.exgrpo.core.policies.fill import FILL_METRIC_NAMES, Entry, Filled, FillManager, Response, replay_loss
from recipe.exgrpo.core.policies.replay import METRIC_NAMES, Group, ReplayManager
from recipe.exgrpo.core.sampler import interleave
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.lab.questions import Stream
from recipe.exgrpo.lab.rows import Row

# Scores of stored responses: (question of each, its token ids) -> one score each, in order.
Scorer = Callable[[list[tuple[str, np.ndarray]]], Scores]


@dataclass(frozen=True)
class Slot:
    """One question of a step's plan: `rollouts` fresh ones; `planned` when it comes from the buffer."""

    question: str
    rollouts: int
    planned: bool = False


class OnPolicy:
    """The Dr.GRPO twin (`exgrpo.enable: false`), and what the modes have in common."""

    def __init__(self, config: ExGRPOConfig, group_size: int) -> None:
        self.config, self.group_size = config, group_size
        self.dropped = 0  # rows of this step out of the update

    @property
    def active(self) -> bool:
        """Whether replay is on, for `loss.fresh_clip: before_replay`."""
        return False

    @property
    def loss(self) -> LossConfig:
        return self.config.loss

    def slots(self, stream: Stream, size: int) -> list[Slot]:
        """The plan of a step of `size` questions."""
        return [Slot(stream.next(), self.group_size) for _ in range(size)]

    def inject(self, groups: list[list[Row]], slots: list[Slot], score: Scorer, step: int) -> None:
        """Add replayed rows to their groups."""

    def arrange(self, groups: list[list[Row]], step: int) -> None:
        """Take rows out of the update, or put others in their place."""

    def finish(self, groups: list[list[Row]], step: int, pass_rate: float) -> None:
        """Book-keeping after the update; `pass_rate` is the mean reward of the fresh rollouts."""

    def metrics(self, step: int) -> dict[str, float]:
        """Metrics of the step; all modes report the same names, zero where a feature is off."""
        zeros = {f"experience/{name}": 0.0 for name in METRIC_NAMES}
        zeros |= {f"fill/{name}": 0.0 for name in FILL_METRIC_NAMES}
        return zeros | {"batch/dropped": float(self.dropped)}


class Masked(OnPolicy):
    """Only groups of one band of success rates reach the gradient (App. F.1)."""

    def arrange(self, groups: list[list[Row]], step: int) -> None:
        threshold, self.dropped = self.config.bookkeeping.success_threshold, 0
        for rows in groups:
            successes = sum(row.reward > threshold for row in rows)
            if not in_band(successes, len(rows), self.config.mask.band):
                self.dropped += drop(rows)


class Replay(OnPolicy):
    """ExGRPO: questions and trajectories from the buffer."""

    def __init__(self, config: ExGRPOConfig, group_size: int) -> None:
        super().__init__(config, group_size)
        self.manager = ReplayManager(config, group_size)

    @property
    def active(self) -> bool:
        return self.manager.active

    def slots(self, stream: Stream, size: int) -> list[Slot]:
        planned = self.manager.plan(size)
        buffer, taken = self.manager.buffer, set(planned)
        reuse_retired = len(stream.ids) - len(buffer.retired) < size
        fresh = []
        for _ in range(size - len(planned)):
            fresh.append(stream.next_unless(lambda q: q in taken or (buffer.is_retired(q) and not reuse_retired)))
            taken.add(fresh[-1])
        rollouts = self.group_size - self.config.inject
        return interleave([Slot(q, rollouts, True) for q in planned], [Slot(q, self.group_size) for q in fresh])

    def inject(self, groups: list[list[Row]], slots: list[Slot], score: Scorer, step: int) -> None:
        live = [(slot.question, rows) for slot, rows in zip(slots, groups, strict=True) if slot.planned]
        if not live or not self.config.inject:
            return
        scores = self._scores([question for question, _ in live], score)
        for question, rows in live:
            chosen = self.manager.select(question, scores.get(question))
            self.manager.replayed(chosen, step)
            past = chosen.log_probs if self.config.loss.importance == "past" else None
            rows.append(Row(question, rows[0].prompt, chosen.token_ids.tolist(), chosen.reward, True, past))

    def _scores(self, questions: list[str], score: Scorer) -> dict[str, Scores]:
        """Scores of all stored trajectories by question; empty when selection needs none."""
        if not self.manager.needs_scores:
            return {}
        buffer = self.manager.buffer
        owners = [(question, int(row)) for question in questions for row in buffer.rows(question)]
        scores = score([(question, buffer.trajectory(row).token_ids) for question, row in owners])
        of = np.array([question for question, _ in owners])
        return {question: scores[of == question] for question in questions}

    def finish(self, groups: list[list[Row]], step: int, pass_rate: float) -> None:
        graded = [group_of(rows) for rows in groups]
        for position, members in self.manager.grade(graded).items():
            fresh = [row for row in groups[position] if not row.is_replayed]
            for row in (fresh[member] for member in members):
                self.manager.store(row.question, row.response, row.behaviour, row.reward, step)
        self.manager.finish_step(step, pass_rate)

    def metrics(self, step: int) -> dict[str, float]:
        found = self.manager.metrics(step)
        return super().metrics(step) | {f"experience/{name}": found[name] for name in METRIC_NAMES}


class Fill(OnPolicy):
    """Fill-slot replay: the ordinary fresh stream, past successes in the rows of groups without signal."""

    def __init__(self, config: ExGRPOConfig, group_size: int) -> None:
        super().__init__(config, group_size)
        self.manager = FillManager(config, group_size)

    @property
    def active(self) -> bool:
        return self.manager.active

    @property
    def loss(self) -> LossConfig:
        return replay_loss(self.config.loss)

    def arrange(self, groups: list[list[Row]], step: int) -> None:
        plan = self.manager.plan([group_of(rows) for rows in groups])
        entries = [entry_of([groups[i][j] for j in members]) for i, members in plan.to_store.items()]
        filled = self.manager.exchange(entries, plan.budget, step)
        places = [(i, j) for i in plan.dropped for j in range(self.group_size)]
        for (i, j), trajectory in zip(places, filled, strict=False):
            groups[i][j] = filled_row(trajectory)
        for i, j in places[len(filled) :]:
            groups[i][j].in_update = False
        self.dropped = len(places) - len(filled)

    def finish(self, groups: list[list[Row]], step: int, pass_rate: float) -> None:
        self.manager.finish_step(step, pass_rate)

    def metrics(self, step: int) -> dict[str, float]:
        found = self.manager.metrics()
        return super().metrics(step) | {f"fill/{name}": found[name] for name in FILL_METRIC_NAMES}


def make_mode(config: ExGRPOConfig, group_size: int) -> OnPolicy:
    """The class for `config.enable` and `config.mode`."""
    kinds = {"replay": Replay, "fill": Fill, "masked": Masked}
    return (kinds[config.mode] if config.enable else OnPolicy)(config, group_size)


def group_of(rows: list[Row]) -> Group:
    """A group's outcome as the core wants it."""
    past = [row.reward for row in rows if row.is_replayed]
    return Group(rows[0].question, [row.reward for row in rows if not row.is_replayed], past[0] if past else None)


def entry_of(rows: list[Row]) -> Entry:
    """The successes of one mixed group as an entry to collect."""
    responses = [Response(row.response, row.behaviour) for row in rows]
    return Entry(rows[0].question, len(rows), np.asarray(rows[0].prompt, np.int32), responses)


def filled_row(filled: Filled) -> Row:
    """The row of a past success; its reward was a success, its advantage is frozen."""
    response = filled.response
    return Row(
        filled.question, filled.prompt_ids.tolist(), response.token_ids.tolist(), 1.0,
        is_replayed=True, behaviour=response.log_probs, advantage=filled.advantage,
    )  # fmt: skip


def drop(rows: list[Row]) -> int:
    """Take rows out of the update; returns how many."""
    for row in rows:
        row.in_update = False
    return len(rows)

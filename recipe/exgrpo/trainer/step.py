"""What the trainer knows of the step it is in, from the plan to the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transfer_queue import KVBatchMeta

from recipe.exgrpo.core.buffer import Response, Trajectory
from recipe.exgrpo.core.policies.choices import Choice
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Member, Slot, without_signal
from recipe.exgrpo.trainer.extra_rows import Layout, append
from recipe.exgrpo.trainer.rows import (
    IN_UPDATE,
    check_outputs,
    in_plan_order,
    ordered_groups,
    put_flag,
    read_entropies,
    read_outcomes,
    read_responses,
    response_of,
)
from recipe.exgrpo.trainer.stored_rows import Joined, exchange, inject


@dataclass
class Step:
    """One training step: `slots` by uid in batch order, then what came of them.

    `keys` holds the keys of each of `groups`, fresh rollouts first; `advantages` are those that a policy sets itself,
    `replaced` the rows whose places stored trajectories took, `placed` these trajectories and those on top of the batch,
    `sequences` what the loss of an update is divided by.
    """

    number: int = 0
    slots: dict[str, Slot] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)
    infos: list[dict] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    tool_failures: int = 0
    joined: list[Joined] = field(default_factory=list)
    placed: list[Trajectory] = field(default_factory=list)
    advantages: dict[str, float | np.ndarray] = field(default_factory=dict)
    replaced: dict[str, dict] = field(default_factory=dict)
    partition_id: str = "train"
    rows_out: int = 0
    rows_uncounted: int = 0
    extra_rows: int = 0
    updates: int | None = None
    sequences: float | None = None
    scoring_waste: float = 0.0
    scoring_calls: int = 0

    def open(self, batch: KVBatchMeta) -> None:
        """Read the outcomes of all fresh rollouts; nothing in `batch` is padding yet."""
        self.partition_id = batch.partition_id
        check_outputs(batch.keys)
        groups = ordered_groups(batch.keys, self.slots)
        rewards, self.infos, self.turns, self.tool_failures = read_outcomes(batch.keys, batch.partition_id)
        self.keys = list(groups.values())
        self.groups = [
            Group(self.slots[uid].question, [rewards[key] for key in keys], planned=self.slots[uid].planned)
            for uid, keys in groups.items()
        ]

    def in_order(self, batch: KVBatchMeta) -> KVBatchMeta:
        """The same rows in the plan's order, so that a run with fixed sampling seeds repeats."""
        return in_plan_order(batch, self.slots)

    def inject(self, batch: KVBatchMeta, joining: dict[int, list[Trajectory]]) -> KVBatchMeta:
        """The batch with the stored trajectories that join groups; all rows flagged."""
        for position, trajectories in joining.items():
            group, keys = self.groups[position], self.keys[position]
            uid = keys[0].rsplit("_", 2)[0]
            for trajectory in trajectories:
                # Sessions that failed leave their numbers free; stored rows come after all that were asked for.
                key = f"{uid}_{self.slots[uid].rollouts + len(group.joined)}_0"
                self.joined.append(Joined(key, keys[0], trajectory))
                group.joined.append(trajectory)
                keys.append(key)
        return inject(batch, self.joined, list(self.slots))

    def arrange(
        self, batch: KVBatchMeta, arrangement: Arrangement, layout: Layout | None = None, denominator: str = "all"
    ) -> KVBatchMeta:
        """The batch after `arrangement`: stored rows in freed places and on top, what is out flagged, advantages set aside."""
        layout = Layout() if layout is None else layout
        arrangement.check(self.rows)
        rows = len(batch)
        leaving = {self.key(member) for member in arrangement.leave}
        slots = [key for key in batch.keys if key in leaving]
        self.placed = [one.trajectory for one in (*arrangement.place, *arrangement.extra)]
        batch, names, self.replaced = exchange(batch, slots, arrangement.place, self.number)
        batch, added = append(batch, arrangement.extra, layout, self.number)
        silent = self._silent(arrangement) if denominator == "mixed" else set()
        out = silent | set(slots[len(names) :])
        put_flag(IN_UPDATE, batch, out, 0.0)
        self.rows_out, self.rows_uncounted, self.extra_rows = len(out), len(silent), len(added)
        # Rows that verl padded the batch with count, as in its own loss, but for a denominator of mixed groups alone.
        counted = (rows if denominator == "all" else max(1, self.rows - len(silent))) + len(added)
        self.updates, self.sequences = layout.updates, counted / layout.updates
        self.advantages = {self.key(member): value for member, value in arrangement.advantages.items()}
        self.advantages |= dict(zip(names, (one.advantage for one in arrangement.place), strict=True)) | added
        return batch

    def _silent(self, arrangement: Arrangement) -> set[str]:
        """Rows of groups whose rewards do not differ, but for those with an advantage of their own or replaced."""
        return {self.key(member) for member in without_signal(self.groups, arrangement)} - set(self.replaced)

    @property
    def rows(self) -> int:
        """Rollouts and stored trajectories that joined them."""
        return sum(map(len, self.keys))

    def read(self, members: Sequence[Member]) -> list[Response]:
        """Rollouts of this step with their log-probs of pi_old; TransferQueue no longer has those replaced."""
        keys = [self.key(member) for member in members]
        there = [key for key in keys if key not in self.replaced]
        found = dict(zip(there, read_responses(there, self.partition_id), strict=True)) if there else {}
        return [found[key] if key in found else response_of(self.replaced[key], key) for key in keys]

    def entropies(self, members: Sequence[Member]) -> list[np.ndarray]:
        """Entropies of pi_old at the own tokens of rollouts that are still in the batch, float32 [own tokens] each."""
        return read_entropies([self.key(member) for member in members], self.partition_id)

    def key(self, member: Member) -> str:
        return self.keys[member[0]][member[1]]

    def tool_metrics(self) -> dict[str, float]:
        """Over fresh rollouts: their chat turns, and calls of tools that failed."""
        return {"batch/turns_mean": float(np.mean(self.turns)), "batch/tool_failures": float(self.tool_failures)}

    def history(self, choices: Sequence[Choice], threshold: float) -> dict:
        """What history.jsonl keeps of a finished step: outcome of every group, what was replayed, and what competed for it."""
        replayed = [one.trajectory for one in self.joined] + self.placed
        return {
            "step": self.number,
            "question": [group.question for group in self.groups],
            "solved": [sum(reward > threshold for reward in group.rewards) for group in self.groups],
            "size": [group.size for group in self.groups],
            "joined": [len(group.joined) for group in self.groups],
            "replayed": [[trajectory.row, trajectory.question] for trajectory in replayed],
            "choices": [choice.as_dict() for choice in choices],
        }

    @property
    def fresh_keys(self) -> list[str]:
        """Keys of this step's own rollouts, in batch order."""
        return [
            key for group, keys in zip(self.groups, self.keys, strict=True) for key in keys[: len(group.fresh_rewards)]
        ]

    @property
    def pass_rate(self) -> float:
        """Mean reward of the fresh rollouts."""
        return float(np.mean([reward for group in self.groups for reward in group.fresh_rewards]))


def batch_metrics(groups: Sequence[Group], threshold: float) -> dict[str, float]:
    """Over fresh rollouts only: mean reward, groups in the batch, and how many were solved by all or by none of them."""
    solved = [[reward > threshold for reward in group.fresh_rewards] for group in groups]
    return {
        "batch/pass_rate": float(np.mean([reward for group in groups for reward in group.fresh_rewards])),
        "batch/questions": float(len(solved)),
        "batch/solve_all": float(sum(all(group) for group in solved)),
        "batch/solve_none": float(sum(not any(group) for group in solved)),
    }

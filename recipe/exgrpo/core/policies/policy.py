"""The interface of a policy, and its smallest one: the matched on-policy baseline, which every other policy departs from.

A trainer calls, each step: `plan` (which questions, how many rollouts each), `inject` (rewards are known: stored trajectories
that join their question's group), `arrange` (log-probs are known: what leaves the update, and what takes the places),
`finish` (bookkeeping and admission). A policy knows neither models nor Ray: what costs I/O or a forward pass is a callable
of `Tools`, paid only when called. `docs/extend.md` adds one in a screenful.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.choices import Choice
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.rules import Context
from recipe.exgrpo.core.selection import Scores

# A rollout of this step: (position of its group, position in the group; fresh ones first, then those that joined).
Member = tuple[int, int]


@dataclass(frozen=True)
class Slot:
    """One question of a step's plan: `rollouts` fresh ones; `planned` when the policy asked for it by name."""

    question: str
    rollouts: int
    planned: bool = False


class Dataset(Protocol):
    """The training questions behind a cursor that only moves forward, from epoch to epoch."""

    def __len__(self) -> int:
        """How many questions there are."""

    def draw(self, skip: Callable[[str], bool]) -> str:
        """The next question that is not to be skipped; any question when all are."""


@dataclass
class Group:
    """One question's group in a step: rewards of its fresh rollouts by session, and the stored trajectories that joined it."""

    question: str
    fresh_rewards: Sequence[float]
    joined: list[Trajectory] = field(default_factory=list)
    planned: bool = False

    @property
    def rewards(self) -> list[float]:
        """Of all members; a stored trajectory keeps the reward it was stored with."""
        return [*self.fresh_rewards, *(trajectory.reward for trajectory in self.joined)]

    @property
    def size(self) -> int:
        return len(self.fresh_rewards) + len(self.joined)


@dataclass(frozen=True)
class Tools:
    """What a trainer lends for one step: scores under the current policy (one forward pass), and this step's rollouts.

    `read` and `entropies` cost I/O for each member. Log-probs and entropies are those of pi_old, by one and the same forward
    pass, and there from `arrange` on; entropies are float32 [own tokens], nats, of the tokens that the model wrote.
    """

    score: Callable[[Sequence[Trajectory]], Scores]
    read: Callable[[Sequence[Member]], list[Response]]
    entropies: Callable[[Sequence[Member]], list[np.ndarray]]


@dataclass(frozen=True)
class Placed:
    """A stored trajectory that is trained on, in another rollout's place or on top, with this advantage on every own token."""

    trajectory: Trajectory
    advantage: float


@dataclass(frozen=True)
class Arrangement:
    """What a policy changes in the update: `leave` it; `place` takes the places of the first that leave (in batch order).

    A member that leaves and is not replaced keeps its place in the normaliser. `advantages` replace those of members that stay:
    one number for all tokens, or float [own tokens], one for each that the model wrote.
    `extra` rows come on top of the batch: they are dealt out evenly over the step's updates, and every loss term is divided by
    the number of all sequences, theirs included. They are to come with pi_past's log-probs and their prompts, as placed ones.
    """

    leave: Sequence[Member] = ()
    place: Sequence[Placed] = ()
    advantages: dict[Member, float | np.ndarray] = field(default_factory=dict)
    extra: Sequence[Placed] = ()

    def __post_init__(self) -> None:
        if len(self.place) > len(self.leave):
            raise ValueError(f"{len(self.place)} trajectories cannot take the places of {len(self.leave)} rollouts.")

    def check(self, rows: int) -> None:
        """ValueError when `extra` is more than the `rows` of the batch that it comes on top of."""
        if len(self.extra) > rows:
            raise ValueError(
                f"a policy asked for {len(self.extra)} extra rows on top of a batch of {rows}; at most as many."
            )


def without_signal(groups: Sequence[Group], arrangement: Arrangement) -> list[Member]:
    """Members of groups whose rewards do not differ, but for those to which the policy gives an advantage of its own."""
    return [
        (i, j)
        for i, group in enumerate(groups)
        if max(group.rewards) == min(group.rewards)
        for j in range(group.size)
        if (i, j) not in arrangement.advantages
    ]


class Policy:
    """The matched on-policy baseline (Dr.GRPO), and what other policies inherit: K fresh rollouts of the next questions.

    `loss` None means that verl's own loss and group advantage are used. `store` None means that nothing is kept from step to
    step, saved or loaded. `Options`, a dataclass, holds what a policy of your own is configured by (`exgrpo.options`).
    """

    Options: ClassVar[type | None] = None
    needs_all_groups: ClassVar[bool] = False  # whether groups without variance must reach it: no dynamic sampling then
    by_std: ClassVar[bool] = False  # whether group advantages are divided by their standard deviation (GRPO)
    plans_questions: ClassVar[bool] = False  # whether stored questions are drawn: `exgrpo.inject: false` needs that

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        if group_size < 2:
            raise ValueError(f"actor_rollout_ref.rollout.n must be at least 2 for a group advantage; got {group_size}.")
        if not config.inject and not self.plans_questions:
            raise ValueError(f"exgrpo.inject=false is a control of stored questions; exgrpo.policy={config.policy}.")
        if config.dynamic_sampling and self.needs_all_groups:
            raise ValueError(
                f"exgrpo.dynamic_sampling=true drops groups whose rewards do not differ, and exgrpo.policy={config.policy} "
                "grades them or takes their places."
            )
        self.config, self.group_size, self.options = config, group_size, options
        self.rng = np.random.default_rng(config.seed)
        self.store: ExperienceBuffer | None = None

    @property
    def loss(self) -> LossConfig | None:
        denominator = self.config.loss.denominator
        # verl's own divides by all sequences.
        return None if denominator == "all" else LossConfig(denominator=denominator)

    @property
    def active(self) -> bool:
        """Whether stored experience is in use in the current step."""
        return False

    def skips(self, question: str) -> bool:
        """Whether the dataset's cursor is to pass this question by."""
        return False

    def draw(self, dataset: Dataset) -> Slot:
        """One fresh question with K rollouts: for the plan, or in place of a group whose rollouts all failed."""
        return Slot(dataset.draw(self.skips), self.group_size)

    def plan(self, size: int, dataset: Dataset) -> list[Slot]:
        """The `size` questions of a step, in batch order."""
        return [self.draw(dataset) for _ in range(size)]

    def inject(self, groups: Sequence[Group], tools: Tools, step: int) -> dict[int, list[Trajectory]]:
        """Stored trajectories that join groups, by the position of the group."""
        return {}

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        """What leaves the update and what takes its places."""
        return Arrangement()

    def finish(self, groups: Sequence[Group], tools: Tools, step: int, pass_rate: float) -> None:
        """Bookkeeping after the update; `pass_rate` is the mean reward of all fresh rollouts."""

    def metrics(self, step: int) -> dict[str, float]:
        """The `experience/` metrics of the step just finished, without their prefix: all of METRICS, zero where nothing was."""
        return dict.fromkeys(METRICS, 0.0)

    def choices(self) -> list[Choice]:
        """What competed for places in the step just finished, and what was taken; goes into history.jsonl."""
        return []

    def state_dict(self) -> dict:
        """What `store` does not hold, JSON-able."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict, store: ExperienceBuffer | None) -> None:
        """Continue from `state_dict()` and a restored store: the same next draws as without the interruption."""
        self.rng.bit_generator.state = state["rng"]
        self.store = store

    @classmethod
    def stored_rollouts(cls, config: ExGRPOConfig, rollouts: int, steps: int) -> float:
        """Rollouts of which the store may come to hold a share, in a run of `steps` with `rollouts` each (memory estimate)."""
        return 0

    def context(self, step: int) -> Context:
        """What a rule may know besides its candidates."""
        return Context(self.config, self.group_size, step, self.rng)

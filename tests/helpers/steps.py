"""A policy's step by hand: questions behind a cursor, what a trainer lends, and groups with rewards of 0 and 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recipe.exgrpo.core.buffer import Response, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import Policy, make_policy
from recipe.exgrpo.core.policies.policy import Group, Member, Tools
from recipe.exgrpo.core.policies.rules import Context
from recipe.exgrpo.core.selection import Scores

K = 8


def make(policy: str = "exgrpo", group_size: int = K, **values) -> Policy:
    """A policy by name, active from the first step unless `values` say otherwise."""
    return make_policy(ExGRPOConfig.from_mapping({"policy": policy, "start_threshold": None} | values), group_size)


def rewards(successes: int, of: int = K) -> list[float]:
    return [1.0] * successes + [0.0] * (of - successes)


def past(question: str = "q", reward: float = 1.0) -> Trajectory:
    """A stored trajectory that joined a group."""
    return Trajectory(0, question, np.array([9], np.int32), np.array([-1.0], np.float32), np.ones(1, bool), reward, 0)


def stored(policy: Policy, counts: dict[str, int], rows: int = 1) -> Policy:
    """Put questions with `rows` trajectories of their own into the store; trajectory j is born in step j."""
    for i, (question, count) in enumerate(counts.items()):
        policy.store.record(question, count)
        for j in range(rows):
            policy.store.add(question, Response([100 * i + j, 7], [-0.5, -1.0]), 1.0, step=j)
    return policy


class Loader:
    """A dataset that hands out `questions` in order, round and round."""

    def __init__(self, questions: Sequence[str]) -> None:
        self.questions, self.at, self.skipped = list(questions), 0, []

    def __len__(self) -> int:
        return len(self.questions)

    def draw(self, skip: Callable[[str], bool]) -> str:
        for _ in range(2 * len(self)):
            question = self.questions[self.at % len(self)]
            self.at += 1
            if not skip(question):
                break
            self.skipped.append(question)
        return question


def fresh(n: int = 1000) -> Loader:
    """`n` questions that no test stores: "fresh0", "fresh1", ..."""
    return Loader([f"fresh{i}" for i in range(n)])


@dataclass
class Lent:
    """What a trainer lends for a step, and what was asked of it: `scored` and `read` hold one list for each call.

    Rollout j of group i answers prompt [i, 1] with [i, j, 7], and every entropy, headroom and drift is 0, unless functions say
    otherwise; the negative log-likelihood is the opposite of the entropy. `token_entropies` are those of its own tokens.
    """

    entropy: Callable[[Trajectory], float] = lambda trajectory: 0.0
    headroom: Callable[[Trajectory], float] = lambda trajectory: 0.0
    drift: Callable[[Trajectory], float] = lambda trajectory: 0.0
    ids: Callable[[int, int], Sequence[int]] = lambda i, j: [i, j, 7]
    prompt: Callable[[int], Sequence[int]] = lambda i: [i, 1]
    token_entropies: Callable[[int, int], np.ndarray] = lambda i, j: np.zeros(3, np.float32)
    scored: list[list[Trajectory]] = field(default_factory=list)
    read: list[list[Member]] = field(default_factory=list)

    @property
    def tools(self) -> Tools:
        return Tools(score=self._score, read=self._read, entropies=self._entropies)

    def _entropies(self, members: Sequence[Member]) -> list[np.ndarray]:
        return [self.token_entropies(i, j) for i, j in members]

    def _score(self, trajectories: Sequence[Trajectory]) -> Scores:
        self.scored.append(list(trajectories))
        entropy, headroom, drift = (
            np.array([value(trajectory) for trajectory in trajectories], np.float64)
            for value in (self.entropy, self.headroom, self.drift)
        )
        return Scores(entropy, -entropy, headroom, drift)

    def _read(self, members: Sequence[Member]) -> list[Response]:
        self.read.append(list(members))
        answers = [(self.ids(i, j), self.prompt(i)) for i, j in members]
        return [Response(ids, log_probs_of(ids), prompt_ids=prompt) for ids, prompt in answers]

    @property
    def members(self) -> list[Member]:
        """All rollouts that were read."""
        return [member for call in self.read for member in call]


def log_probs_of(ids: Sequence[int]) -> list[float]:
    """Behaviour log-probs of a response: a function of its ids, below 0."""
    return [-(1.0 + token) / 1024 for token in ids]


def finish(policy: Policy, groups: Sequence[Group], step: int = 1, pass_rate: float = 0.5, **lent) -> Lent:
    """Close a step; returns what was read for it."""
    tools = Lent(**lent)
    policy.finish(groups, tools.tools, step, pass_rate)
    return tools


def free_rows(groups: Sequence[Group], context: Context) -> list[Member]:
    """A rule for places (`exgrpo.place=steps:free_rows`): the first n members of each group of a question "free<n>"."""
    named = [(i, group.question) for i, group in enumerate(groups) if group.question.startswith("free")]
    return [(i, j) for i, question in named for j in range(int(question.removeprefix("free")))]

"""Fill-slot replay (`exgrpo.mode: fill`): past successes take the places of groups that teach nothing.

A group whose rewards are all equal has no advantage; it leaves the update and its sequences are the budget. The budget is
filled with entries: the successes of one earlier mixed group, with their behaviour log-probs and their advantage 1 - k/K
frozen at collection. No rollout and no updated sequence is added, and the normaliser stays the number of sequences.

A trainer calls, each step: `plan` (rewards known: which groups leave, which rollouts to hand over), `exchange` (log-probs
known: what to train on instead; then collects), `finish_step`. Nothing here knows a model or Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.replay import Group, check_group_size
from recipe.exgrpo.core.schedule import DelayedStart

STATE_VERSION = 1
# Names every step reports under `fill/`; all zero while fill is off.
FILL_METRIC_NAMES = (
    "active",
    "dropped_groups",
    "budget",
    "filled",
    "drawn_entries",
    "added",
    "entries",
    "trajectories",
    "bytes",
    "partial_groups",
    "age_steps_mean",
    "age_steps_max",
    "uses_mean",
    "uses_max",
)


@dataclass(frozen=True)
class Response:
    """One response: `token_ids` int32 [L] and `log_probs` float32 [L], those of pi_old in the training engine."""

    token_ids: np.ndarray
    log_probs: np.ndarray

    def __post_init__(self) -> None:
        # Copies: a view would keep the whole batch that it was read from in memory for as long as the entry lives.
        ids, log_probs = np.array(self.token_ids, np.int32), np.array(self.log_probs, np.float32)
        if ids.ndim != 1 or ids.shape != log_probs.shape or not len(ids):
            raise ValueError(
                f"a response needs as many log-probs as ids, at least one; got {ids.shape}, {log_probs.shape}"
            )
        object.__setattr__(self, "token_ids", ids)
        object.__setattr__(self, "log_probs", log_probs)


@dataclass
class Entry:
    """All successes of one mixed group: `successes` = k of K, the prompt's ids int32 [P], and how often it was drawn."""

    question: str
    successes: int
    prompt_ids: np.ndarray
    responses: list[Response]
    birth_step: int = 0
    uses: int = 0

    def __post_init__(self) -> None:
        self.prompt_ids = np.array(self.prompt_ids, np.int32)

    @property
    def nbytes(self) -> int:
        return self.prompt_ids.nbytes + sum(r.token_ids.nbytes + r.log_probs.nbytes for r in self.responses)


@dataclass(frozen=True)
class Filled:
    """A sequence to train on in a slot: its advantage is frozen, its behaviour policy that of `birth_step`."""

    question: str
    prompt_ids: np.ndarray
    response: Response
    advantage: float
    birth_step: int


@dataclass(frozen=True)
class FillPlan:
    """`dropped`: positions of the groups that leave the update; `budget`: the sequences they held; `to_store`: for positions
    of mixed groups, the positions of their successful rollouts."""

    dropped: list[int]
    budget: int
    to_store: dict[int, list[int]]


@dataclass
class FillReport:
    """What happened in one step."""

    active: bool = False
    dropped: int = 0
    budget: int = 0
    filled: int = 0
    added: int = 0
    partial_groups: int = 0
    ages: list[int] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)


def replay_loss(config: LossConfig) -> LossConfig:
    """The loss of fill mode: replayed tokens are PPO-clipped against the stored log-probs, whatever `shaping` says.

    The shaping w / (w + beta) has gradient beta / (1 + beta)^2 = 0.083 at w = 1; the clipped weight has 1.
    """
    return replace(config, shaping="clip", importance="past")


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards differ at all."""
    return max(rewards) > min(rewards)


def draw_weights(successes: np.ndarray, group_size: int, power: float) -> np.ndarray:
    """(1 - k/K)^power, float64 [n], for k in 1..K-1: rare successes first; uniform for power 0."""
    return (1.0 - np.asarray(successes, np.float64) / group_size) ** power


def weighted_order(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices in the order of drawing without replacement with `weights` (> 0), int64 [n].

    The smallest of exponential waiting times with these rates comes first, so one vector of draws gives the whole order.
    """
    return np.argsort(rng.exponential(size=len(weights)) / weights, kind="stable")


def fill_budget(order: np.ndarray, sizes: np.ndarray, budget: int) -> list[int]:
    """The first of `order` whose `sizes` (sequences) fit into `budget`; one too big for what is left is passed over.

    Passing over, instead of stopping, fills as many slots as the pool allows; it favours small entries only in the last
    few slots, and those are the rare successes that the weights favour as well.
    """
    chosen, left = [], budget
    for i in order.tolist():
        if sizes[i] <= left:
            chosen.append(i)
            left -= int(sizes[i])
        if left == 0:
            break
    return chosen


class FillManager:
    """Fill-slot replay for groups of `group_size` = K rollouts under `config.fill`.

    `config.start_threshold` delays it as it delays replay; until then nothing is dropped, drawn or collected. Memory is
    bounded: an entry goes when it is older than `fill.max_age_steps` or used `fill.reps` times.
    """

    def __init__(self, config: ExGRPOConfig, group_size: int) -> None:
        check_group_size(group_size)
        self.config = config.fill
        self.success_threshold = config.bookkeeping.success_threshold
        self.group_size = group_size
        self.rng = np.random.default_rng(config.seed)
        self.schedule = DelayedStart(config.start_threshold)
        self.entries: list[Entry] = []
        self.report = FillReport()

    @property
    def active(self) -> bool:
        """Whether fill-slot replay is on in the current step."""
        return self.schedule.active

    def plan(self, groups: Sequence[Group]) -> FillPlan:
        """Which groups leave the update and which rollouts `exchange` will want; empty while inactive.

        A partial group (a failed session) is left as it is: neither dropped nor stored.
        """
        self.report = FillReport(active=self.active)
        if not self.active:
            return FillPlan([], 0, {})
        whole = [i for i, group in enumerate(groups) if group.size == self.group_size]
        dropped = [i for i in whole if not has_signal(groups[i].fresh_rewards)]
        hits = {i: self._successes(groups[i]) for i in whole}
        mixed = {i: found for i, found in hits.items() if 0 < len(found) < self.group_size}
        self.report.dropped, self.report.budget = len(dropped), self.group_size * len(dropped)
        self.report.partial_groups = len(groups) - len(whole)
        return FillPlan(dropped, self.report.budget, mixed)

    def exchange(self, fresh: Sequence[Entry], budget: int, step: int) -> list[Filled]:
        """Up to `budget` sequences for the freed slots, in the order drawn; then collects `fresh`, this step's entries.

        In one call because the order matters: a success must not be replayed in the step it comes from, where the update
        holds it already. `source: current` is the control that does just that, and keeps nothing.
        """
        if not self.active:
            return []
        for entry in fresh:
            entry.birth_step, entry.uses = step, 0
        past = self.config.source == "past"
        drawn = self._draw(self.entries if past else list(fresh), budget, step)
        if past:
            self.entries.extend(fresh)
            self.report.added = len(fresh)
        return [
            Filled(
                entry.question, entry.prompt_ids, response, 1.0 - entry.successes / self.group_size, entry.birth_step
            )
            for entry in drawn
            for response in entry.responses
        ]

    def finish_step(self, step: int, pass_rate: float) -> None:
        """Close the books of `step`: drop what can never be drawn again, and let the schedule see the pass rate."""
        self.entries = [entry for entry in self.entries if self._eligible(entry, step + 1)]
        self.schedule.observe(pass_rate)

    def metrics(self) -> dict[str, float]:
        """The `fill/` metrics of the step just finished, without their prefix."""
        report = self.report
        values = {
            "active": report.active,
            "dropped_groups": report.dropped,
            "budget": report.budget,
            "filled": report.filled,
            "drawn_entries": len(report.uses),
            "added": report.added,
            "entries": len(self.entries),
            "trajectories": sum(len(entry.responses) for entry in self.entries),
            "bytes": sum(entry.nbytes for entry in self.entries),
            "partial_groups": report.partial_groups,
            "age_steps_mean": np.mean(report.ages) if report.ages else 0,
            "age_steps_max": max(report.ages, default=0),
            "uses_mean": np.mean(report.uses) if report.uses else 0,
            "uses_max": max(report.uses, default=0),
        }
        return {name: float(value) for name, value in values.items()}

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Everything, as one-dimensional arrays (for `recipe.exgrpo.checkpoint.tensors.write_tensors`) and a JSON-able dict."""
        responses = [response for entry in self.entries for response in entry.responses]
        arrays = {
            "successes": np.array([entry.successes for entry in self.entries], np.int32),
            "birth_step": np.array([entry.birth_step for entry in self.entries], np.int32),
            "uses": np.array([entry.uses for entry in self.entries], np.int32),
            "responses": np.array([len(entry.responses) for entry in self.entries], np.int32),
            "prompt_length": np.array([len(entry.prompt_ids) for entry in self.entries], np.int32),
            "response_length": np.array([len(response.token_ids) for response in responses], np.int32),
            "prompt_ids": _joined([entry.prompt_ids for entry in self.entries], np.int32),
            "token_ids": _joined([response.token_ids for response in responses], np.int32),
            "log_probs": _joined([response.log_probs for response in responses], np.float32),
        }
        return arrays, {
            "version": STATE_VERSION,
            "group_size": self.group_size,
            "questions": [entry.question for entry in self.entries],
            "rng": self.rng.bit_generator.state,
            "active": self.schedule.active,
        }

    def load_state(self, arrays: dict[str, np.ndarray], meta: dict) -> None:
        """Continue from `state()`: the same next draws. Raises ValueError for another version, K, or ragged arrays."""
        for key, expected in (("version", STATE_VERSION), ("group_size", self.group_size)):
            if meta[key] != expected:
                raise ValueError(f"fill state has {key} {meta[key]}; this run has {expected}.")
        prompts = _split(arrays["prompt_ids"], arrays["prompt_length"])
        lengths = arrays["response_length"]
        pairs = zip(_split(arrays["token_ids"], lengths), _split(arrays["log_probs"], lengths), strict=True)
        responses = iter([Response(ids, log_probs) for ids, log_probs in pairs])
        columns = (arrays[name].tolist() for name in ("successes", "responses", "birth_step", "uses"))
        self.entries = [
            Entry(question, k, prompt, [next(responses) for _ in range(n)], birth, uses)
            for question, prompt, k, n, birth, uses in zip(meta["questions"], prompts, *columns, strict=True)
        ]
        self.rng.bit_generator.state = meta["rng"]
        self.schedule.active = bool(meta["active"]) or self.schedule.active

    def _successes(self, group: Group) -> list[int]:
        return [i for i, reward in enumerate(group.fresh_rewards) if reward > self.success_threshold]

    def _eligible(self, entry: Entry, step: int) -> bool:
        return step - entry.birth_step <= self.config.max_age_steps and entry.uses < self.config.reps

    def _draw(self, entries: list[Entry], budget: int, step: int) -> list[Entry]:
        """Draw entries for `budget` sequences, count their use, and note them in the report."""
        pool = [entry for entry in entries if self._eligible(entry, step)] if budget else []
        successes = np.array([entry.successes for entry in pool])
        order = weighted_order(draw_weights(successes, self.group_size, self.config.power), self.rng)
        drawn = [pool[i] for i in fill_budget(order, np.array([len(entry.responses) for entry in pool]), budget)]
        for entry in drawn:
            entry.uses += 1
        self.report.filled = sum(len(entry.responses) for entry in drawn)
        self.report.ages = [step - entry.birth_step for entry in drawn]
        self.report.uses = [entry.uses for entry in drawn]
        return drawn


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)


def _split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """`values` cut into pieces of `lengths`, each a copy; ValueError when they do not add up."""
    if int(lengths.sum()) != len(values):
        raise ValueError(f"fill state is ragged: lengths add up to {int(lengths.sum())} of {len(values)} values.")
    return [piece.copy() for piece in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []

"""The page's tables as plain columns: trajectories, questions, and the steps of history.jsonl."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from recipe.exgrpo.browse.sources import Content
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import NONE, Snapshot, spans

COLUMNS = {
    "row": "serial", "reward": "reward", "born": "birth_step", "uses": "use_count", "entropy": "entropy", "nll": "nll",
    "solved": "group_successes", "size": "group_size", "advantage": "advantage", "length": "length",
    "prompt": "prompt_length", "origin": "origin",
}  # fmt: skip


def newest(frozen: Snapshot, limit: int) -> np.ndarray:
    """Positions of the trajectories that are shown: the `limit` stored last, in order of storage."""
    total = len(frozen.rows["row_serial"])
    return np.arange(max(0, total - limit), total)


def trajectories(frozen: Snapshot, at: np.ndarray) -> dict[str, list]:
    """Columns of the trajectories at positions `at`; None for what is not known.

    `question` is an index into the snapshot's names. `ratio` is the geometric mean of the importance weights
    pi_theta / pi_past of the model's own tokens when the trajectory was last scored.
    """
    columns = {name: numbers(frozen.rows[f"row_{column}"][at]) for name, column in COLUMNS.items()}
    grouped = frozen.rows["row_group"][at] != NONE
    columns["advantage"] = numbers(np.where(grouped, frozen.rows["row_advantage"][at], math.nan))
    columns["ratio"] = numbers(np.exp(-frozen.rows["row_nll"][at].astype(np.float64) - mean_log_probs(frozen, at)))
    return columns | {"question": frozen.rows["row_question"][at].tolist()}


def mean_log_probs(frozen: Snapshot, at: np.ndarray) -> np.ndarray:
    """Mean stored log-prob over the model's own tokens (nats), float64 [len(at)]."""
    if not len(at):
        return np.zeros(0)
    log_probs = np.concatenate([piece for _, piece in frozen.runs(at)])
    own = ~np.isnan(log_probs)
    starts = np.concatenate([[0], np.cumsum(spans(frozen.rows)[at])[:-1]])
    sums = np.add.reduceat(np.where(own, log_probs, 0).astype(np.float64), starts)
    return sums / np.add.reduceat(own.astype(np.int64), starts)


def numbers(values: np.ndarray) -> list:
    """As JSON has them: five digits, None for what is not finite."""
    if values.dtype.kind != "f":
        return values.tolist()
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


class Questions:
    """Every question that the state or the history knows, by a number that the other tables use."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self.index = {name: i for i, name in enumerate(self.names) if name}

    def number(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = len(self.names)
            self.names.append(name)
        return self.index[name]


def questions(content: Content, known: Questions) -> dict[str, list]:
    """Columns by question number: `state`, `count` (latest successes of K, None without), `stored`, `replayed`,
    and `outcomes`, a list of step, successes and group size, one after the other; all that the history knows.

    `replayed` counts trajectories in updates: of the history where it has any, else uses of what is still stored.
    """
    outcomes, replayed = defaultdict(list), Counter()
    for step in content.steps:
        for name, solved, size in zip(step["question"], step["solved"], step["size"], strict=True):
            outcomes[known.number(name)] += [step["step"], solved, size]
        replayed.update(known.number(name) for _, name in step["replayed"])
    frozen = content.frozen
    if frozen is not None and not content.steps:
        for question, uses in zip(
            frozen.rows["row_question"].tolist(), frozen.rows["row_use_count"].tolist(), strict=True
        ):
            replayed[question] += uses
    total = len(known.names)
    stored = np.bincount(frozen.rows["row_question"], minlength=total) if frozen else np.zeros(total, int)
    return {
        "name": known.names,
        "state": [state_of(content.buffer, name, n) for name, n in zip(known.names, stored.tolist(), strict=True)],
        "count": [content.buffer.latest_count(name) if content.buffer else None for name in known.names],
        "stored": stored.tolist(),
        "replayed": [replayed[i] for i in range(total)],
        "outcomes": [outcomes[i] for i in range(total)],
    }


def state_of(buffer: ExperienceBuffer | None, question: str, stored: int) -> str:
    """One word on where a question stands in the saved state."""
    if buffer is None or not question:
        return "seen"
    if buffer.is_retired(question):
        return "retired"
    if stored:
        return "stored" if buffer.latest_count(question) else "unsolved"
    return "empty" if buffer.latest_count(question) is not None else "seen"


def step_details(steps: Sequence[dict], known: Questions) -> list[dict]:
    """What each step replayed, and the candidates; questions by number."""
    return [
        {
            "step": step["step"],
            "replayed": [[row, known.number(name)] for row, name in step["replayed"]],
            "choices": [
                choice | {"question": list(map(known.number, choice["question"]))} for choice in step["choices"]
            ],
        }
        for step in steps
    ]

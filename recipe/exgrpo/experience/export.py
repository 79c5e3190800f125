"""Stored trajectories for others: chosen by what is known of them, as SFT messages or as preference pairs."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import Candidates, ExperienceBuffer

PASSED = 0.5  # a reward above it is a success
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Bounds:
    """An inclusive range; nan, what was never scored, is in it only when it has no ends."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise ValueError(f"a range goes up: {self.low:g}:{self.high:g}.")

    @classmethod
    def of(cls, text: str) -> "Bounds":
        """From `LOW:HIGH`, either end may be missing, or one value. Raises ValueError for anything else."""
        low, colon, high = text.partition(":")
        try:
            return cls(float(low or "-inf"), float(high or "inf") if colon else float(low))
        except ValueError as error:
            raise ValueError(f"{text!r} is not LOW:HIGH ({error}).") from None

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which of `values` are in it, bool [n]."""
        if self == Bounds():
            return np.ones(len(values), bool)
        return (values >= self.low) & (values <= self.high)


@dataclass(frozen=True)
class Filters:
    """Which trajectories are exported: by source (empty: all), k of K of their group, age and length, last entropy, reward.

    `successes` are those of the group they were collected in (0 where no group is known).
    """

    sources: Sequence[str] = ()
    successes: Bounds = Bounds()
    age: Bounds = Bounds()
    length: Bounds = Bounds()
    entropy: Bounds = Bounds()
    reward: Bounds = Bounds()

    def chosen(self, buffer: ExperienceBuffer, step: int) -> Candidates:
        """Those that pass, in order of storage; ages are before `step`. Raises ValueError for a source that nothing has."""
        found = buffer.candidates()
        keep = self._of_sources(buffer, len(found))
        columns = {
            "successes": found.successes,
            "age": found.age(step),
            "length": found.length,
            "entropy": found.entropy,
            "reward": found.reward,
        }
        for name, values in columns.items():
            keep &= getattr(self, name).holds(values)
        return found[keep]

    def _of_sources(self, buffer: ExperienceBuffer, total: int) -> np.ndarray:
        if not self.sources:
            return np.ones(total, bool)
        frozen = buffer.snapshot()
        known = [origin["source"] for origin in frozen.meta["origins"]]
        if unknown := sorted(set(self.sources) - set(known)):
            raise ValueError(f"no trajectory has source {unknown[0]!r}; there are {', '.join(sorted(set(known)))}.")
        return np.array([source in self.sources for source in known], bool)[frozen.rows["row_origin"]]


def sft_rows(
    buffer: ExperienceBuffer, chosen: Candidates, prompts: Mapping[str, list[dict]], decode: Decode
) -> Iterator[dict]:
    """One conversation for each success: `messages` (prompt and assistant turn), and where it comes from.

    Those of questions that `prompts` (chat messages by question id) does not have are left out, and so are those with tool
    turns, of which one assistant message would teach the tools' words.
    """
    for handle in chosen.row[chosen.reward > PASSED].tolist():
        found = buffer.trajectory(handle)
        if found.question in prompts and found.mask.all():
            yield {
                "messages": [*prompts[found.question], _turn(decode(found.token_ids.tolist()))],
                "question": found.question,
                "reward": found.reward,
                "source": found.origin.source,
                "group_successes": found.provenance.successes,
                "group_size": found.provenance.size,
                "length": len(found.token_ids),
            }


def preference_rows(
    buffer: ExperienceBuffer, chosen: Candidates, prompts: Mapping[str, list[dict]], decode: Decode, pairs: int = 1
) -> Iterator[dict]:
    """At most `pairs` pairs of a success and a failure of one question: `prompt`, `chosen`, `rejected` as messages.

    No trajectory is in two pairs of its question; the newest come first. Those with tool turns are in none.
    """
    plain = chosen[[buffer.trajectory(int(row)).mask.all() for row in chosen.row]]
    for question, (won, lost) in _by_outcome(buffer, plain).items():
        for good, bad in list(zip(won[::-1], lost[::-1], strict=False))[:pairs]:
            if question in prompts:
                first, second = buffer.trajectory(good), buffer.trajectory(bad)
                yield {
                    "prompt": prompts[question],
                    "chosen": [_turn(decode(first.token_ids.tolist()))],
                    "rejected": [_turn(decode(second.token_ids.tolist()))],
                    "question": question,
                    "chosen_reward": first.reward,
                    "rejected_reward": second.reward,
                    "chosen_source": first.origin.source,
                    "rejected_source": second.origin.source,
                }


def _by_outcome(buffer: ExperienceBuffer, chosen: Candidates) -> dict[str, tuple[list[int], list[int]]]:
    """Handles of successes and failures of each question, in order of storage."""
    found: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for handle, reward in zip(chosen.row.tolist(), chosen.reward.tolist(), strict=True):
        found[buffer.question_of(handle)][reward <= PASSED].append(handle)
    return found


def _turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def sft_schema():
    """Columns of a parquet file of conversations."""
    import pyarrow as pa

    return pa.schema(
        {
            "messages": _messages(), "question": pa.string(), "reward": pa.float64(), "source": pa.string(),
            "group_successes": pa.int16(), "group_size": pa.int16(), "length": pa.int32(),
        }
    )  # fmt: skip


def preference_schema():
    """Columns of a parquet file of pairs."""
    import pyarrow as pa

    return pa.schema(
        {
            "prompt": _messages(), "chosen": _messages(), "rejected": _messages(), "question": pa.string(),
            "chosen_reward": pa.float64(), "rejected_reward": pa.float64(), "chosen_source": pa.string(),
            "rejected_source": pa.string(),
        }
    )  # fmt: skip


def _messages() -> Any:
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))

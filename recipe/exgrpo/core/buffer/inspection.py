"""What is in an experience buffer, as plain data: summaries, comparisons, records for export, and grading again.

Works on a buffer alone: no GPU, no Ray, no model. Nothing here prints.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from recipe.exgrpo.core.buffer.experience import ExperienceBuffer
from recipe.exgrpo.core.buffer.records import Trajectory

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def distribution(values: np.ndarray) -> dict[str, float]:
    """Count, mean, extremes and quantiles of the finite values; only the count when there are none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return {"n": 0}
    quantiles = dict(zip(QUANTILES, np.quantile(finite, list(QUANTILES.values())).tolist(), strict=True))
    return {"n": len(finite), "mean": finite.mean().item(), "min": finite.min().item()} | quantiles | {
        "max": finite.max().item()
    }  # fmt: skip


def columns(buffer: ExperienceBuffer, step: int) -> dict[str, np.ndarray]:
    """What is distributed over trajectories, each [trajectories]: ages in steps before `step`, uses, scores (nan if never
    scored), advantage at collection (nan without a group), reward, response length in tokens."""
    found = buffer.candidates()
    return {
        "age_steps": found.age(step),
        "use_count": found.use_count,
        "entropy": found.entropy,
        "nll": found.nll,
        "drift": found.drift,
        "advantage": np.where(found.group < 0, math.nan, found.advantage),
        "reward": found.reward,
        "length": found.length,
    }


def summary(buffer: ExperienceBuffer, step: int) -> dict:
    """Occupancy, origins, groups, buckets, bytes, retired questions, and the distributions of `columns`."""
    stats, found, rows = buffer.stats(step), columns(buffer, step), buffer.candidates()
    return {
        "step": step,
        "group_size": buffer.group_size,
        "questions": int(stats["questions"]),
        "eligible": int(buffer.bucket_sizes().sum()),
        "cooling": int(stats["cooling"]),
        "retired": int(stats["retired"]),
        "trajectories": int(stats["trajectories"]),
        "groups": len(np.unique(rows.group[rows.group >= 0])),
        "with_prompt": int(rows.has_prompt.sum()),
        "tokens": int(rows.length.sum()),
        "bytes": int(stats["bytes"]),
        "evicted": dict(buffer.evicted),
        "origins": origins(buffer),
        "buckets": {str(k): int(stats[f"bucket/{k}"]) for k in range(1, buffer.group_size)},
    } | {name: distribution(values) for name, values in found.items()}


def origins(buffer: ExperienceBuffer) -> list[dict]:
    """Each origin that has trajectories (see `records.Origin`), with their number."""
    frozen = buffer.snapshot()
    counts = np.bincount(frozen.rows["row_origin"], minlength=len(frozen.meta["origins"])).tolist()
    return [o | {"trajectories": n} for o, n in zip(frozen.meta["origins"], counts, strict=True) if n]


def newest_step(buffer: ExperienceBuffer) -> int:
    """The latest birth step stored; 0 for an empty buffer."""
    return int(buffer.snapshot().rows["row_birth_step"].max(initial=0))


def trajectories(buffer: ExperienceBuffer, questions: Iterable[str] | None = None) -> Iterator[Trajectory]:
    """The stored trajectories of `questions`, or of all, question by question."""
    for question in buffer.questions() if questions is None else questions:
        for row in buffer.rows(question).tolist():
            yield buffer.trajectory(row)


def record(buffer: ExperienceBuffer, trajectory: Trajectory, decode: Callable[[list[int]], str] | None = None) -> dict:
    """A trajectory as JSON-able values, with its question's latest count, and its text where `decode` is given.

    What has not been scored is None, and so is the id of a group that is not known.
    """
    ids, provenance = trajectory.token_ids.tolist(), trajectory.provenance
    scores = {name: getattr(trajectory, name) for name in ("entropy", "nll", "drift")}
    found = {
        "question": trajectory.question,
        "latest_count": buffer.latest_count(trajectory.question),
        "row": trajectory.row,
        "reward": trajectory.reward,
        "birth_step": trajectory.birth_step,
        "use_count": trajectory.use_count,
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
        "group": None if provenance.group < 0 else provenance.group,
        "group_successes": provenance.successes,
        "group_size": provenance.size,
        "advantage": provenance.advantage,
        "source": trajectory.origin.source,
        "behaviour": trajectory.origin.behaviour,
        "chat_template": trajectory.origin.chat_template,
        "temperature": trajectory.origin.temperature,
        "tools": trajectory.origin.tools,
        "prompt_hash": f"{trajectory.prompt_hash:016x}",
        "length": len(ids),
        "prompt_ids": trajectory.prompt_ids.tolist(),
        "token_ids": ids,
        "log_probs": trajectory.log_probs.tolist(),
        "mask": trajectory.mask.tolist(),
    }
    return found if decode is None else found | {"text": decode(ids)}


def difference(a: ExperienceBuffer, b: ExperienceBuffer) -> dict:
    """What happened between `a` and `b`: trajectories by contents, questions that came, went, moved bucket, or retired."""
    stored_a, stored_b = _contents(a), _contents(b)
    known_a, known_b = set(a.questions()), set(b.questions())
    retired_a, retired_b = set(a.retired), set(b.retired)
    moved = [
        {"question": q, "from": a.latest_count(q), "to": b.latest_count(q)}
        for q in sorted(known_a & known_b)
        if a.latest_count(q) != b.latest_count(q)
    ]
    return {
        "trajectories": {
            "a": stored_a.total(),
            "b": stored_b.total(),
            "added": (stored_b - stored_a).total(),
            "removed": (stored_a - stored_b).total(),
        },
        "questions_added": sorted(known_b - known_a),
        "questions_removed": sorted(known_a - known_b),
        "retired": sorted(retired_b - retired_a),
        "unretired": sorted(retired_a - retired_b),
        "moved": moved,
    }


@dataclass(frozen=True)
class Regraded:
    """A stored trajectory under today's reward. `trouble` is "timeout" or "error" when the grader did not finish."""

    question: str
    row: int
    stored: float
    now: float
    extracted: str
    trouble: str | None


def own_text(ids: np.ndarray, mask: np.ndarray | None, decode: Callable[[list[int]], str]) -> str:
    """What the reward is shown of a response of integers [L]: what the model wrote of it (`mask` bool [L], None: all), with a
    line break where a tool spoke (verl_ext/rewards/manager.py)."""
    if mask is None or mask.all():
        return decode(ids.tolist())
    pieces = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(mask)) + 1)
    return "\n".join(decode(ids[piece].tolist()) for piece in pieces if mask[piece[0]])


def regrade(
    found: Iterable[Trajectory],
    dataset: Mapping[str, dict],
    decode: Callable[[list[int]], str],
    grade: Callable[..., dict],
) -> Iterator[Regraded | None]:
    """Grade trajectories again; None for one whose question is not in `dataset` (question id -> row in verl's schema).

    `decode` turns ids into text and `grade` is a reward function in verl's signature, such as `compute_score`.
    """
    for trajectory in found:
        row = dataset.get(trajectory.question)
        if row is None:
            yield None
            continue
        result = grade(
            row["data_source"],
            own_text(trajectory.token_ids, trajectory.mask, decode),
            row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info"),
        )
        trouble = next((name for name in ("timeout", "error") if result.get(name)), None)
        now, extracted = float(result["score"]), str(result.get("extracted", ""))
        yield Regraded(trajectory.question, trajectory.row, trajectory.reward, now, extracted, trouble)


def _contents(buffer: ExperienceBuffer) -> Counter[tuple[str, int]]:
    """Question and digest of the response of every trajectory; equal responses may be stored several times."""
    frozen = buffer.snapshot()
    questions, digests = frozen.rows["row_question"].tolist(), frozen.rows["row_digest"].tolist()
    return Counter((frozen.names[q], digest) for q, digest in zip(questions, digests, strict=True))

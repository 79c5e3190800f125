"""Run folders for `exgrpo browse`: metrics, history and a saved state with the toy model's byte-level tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response

K = 4
TOKENIZER = Path(__file__).resolve().parents[2] / "data" / "toy" / "model" / "tokenizer.json"
# What a model may write to whoever looks at it: each would set window.pwned, or disguise what is there.
HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<!--<script>window.pwned=1",
    '<img src=x onerror="window.pwned=1">',
    "<svg/onload=window.pwned=1>",
    "<a href='javascript:window.pwned=1'>x</a>",
    "{{constructor.constructor('window.pwned=1')()}}",
    "';window.pwned=1;//\u2028window.pwned=1\u2029",
    "\u202etxt.exe \u200bé€😀",
    "]]><style>*{display:none}</style>",
)
HOSTILE_IDS = (*(f"{i}{text}" for i, text in enumerate(HOSTILE)), "lone \ud800 surrogate")


def buffer_of(questions: dict[str, list[tuple[str, int]]]) -> ExperienceBuffer:
    """Questions with their trajectories: (text, step collected); the middle token of each is a tool's."""
    tokenizer, buffer = Tokenizer.from_file(str(TOKENIZER)), ExperienceBuffer(K)
    buffer.origin = Origin("rollout", "", 1.0)
    for i, (name, found) in enumerate(questions.items()):
        buffer.record(name, 1 + i % (K - 1))
        for text, step in found:
            ids = tokenizer.encode(text).ids
            own = np.arange(len(ids)) != len(ids) // 2 if len(ids) > 2 else None
            log_probs = -0.5 * np.ones(len(ids))
            group = Provenance(buffer.new_group(), successes=2, size=K, advantage=0.5)
            buffer.add(
                name,
                Response(ids, log_probs, own, tokenizer.encode("prompt").ids),
                1.0,
                step,
                provenance=group,
                keep_prompt=True,
            )
    return buffer


def save(folder: Path, buffer: ExperienceBuffer, step: int) -> Path:
    """`global_step_<step>` with experience and tokenizer."""
    target = folder / f"global_step_{step}"
    ExperienceCheckpointer({"policy": "exgrpo", "group_size": K}).save(target, buffer, {})
    (target / "actor" / "huggingface").mkdir(parents=True)
    shutil.copy(TOKENIZER, target / "actor" / "huggingface")
    return target


def log(folder: Path, steps: int, questions: list[str], rows: list[int]) -> None:
    """metrics.jsonl and history.jsonl of `steps` steps; each replays the first of two candidates of a question."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "history.jsonl").open("w") as history:
        metrics.write(json.dumps({"step": 0, "val/pass_rate": 0.25}) + "\n")
        for step in range(1, steps + 1):
            buckets = {f"experience/bucket/{k}": (step * k) % 7 for k in range(1, K)}
            row = {
                "step": step,
                "batch/pass_rate": 0.3 + step / 1000,
                "actor/replay_ratio_mean": 0.9,
                "val/pass_rate": 0.3,
            }
            metrics.write(json.dumps(row | buckets) + "\n")
            history.write(json.dumps(history_line(step, questions, rows)) + "\n")


def history_line(step: int, questions: list[str], rows: list[int]) -> dict:
    n = len(questions)
    asked, row = [questions[(step + i) % n] for i in range(min(4, n))], rows[step % len(rows)]
    choice = {
        "considered": 3, "question": asked[:1], "row": [row, row + 100_000], "birth_step": [0, 0], "use_count": [step, 0],
        "solved": [2, 2], "entropy": [0.125, 0.5], "nll": [0.25, None], "taken": [True, False],
    }  # fmt: skip
    outcomes = {"solved": [(step + i) % (K + 1) for i in range(len(asked))], "size": [K] * len(asked)}
    joined = [1] + [0] * (len(asked) - 1)
    return {
        "step": step,
        "question": asked,
        "joined": joined,
        "replayed": [[row, asked[0]]],
        "choices": [choice],
    } | outcomes


def hostile_run(folder: Path, steps: int = 12) -> Path:
    """A run whose questions and trajectories all try something."""
    questions = {
        name: [(text, 1), (f"{text} again", 3)] for name, text in zip(HOSTILE_IDS, [*HOSTILE, "plain"], strict=True)
    }
    buffer = buffer_of(questions)
    buffer.mark_scored(buffer.rows(HOSTILE_IDS[0]), [0.25, 0.5], [0.4, 0.9])
    buffer.mark_used(int(buffer.rows(HOSTILE_IDS[0])[0]), 5)
    buffer.retire(HOSTILE_IDS[4])
    save(folder, buffer, steps)
    log(folder, steps, list(HOSTILE_IDS), buffer.candidates().row.tolist())
    return folder

"""Questions of the toy task with their tokenizer, and traces of them: what an import needs, in a second."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from recipe.exgrpo.checkpoint.resume import template_fingerprint, tokenizer_fingerprint
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import ExperienceConfig
from recipe.exgrpo.experience.grading import Grading
from recipe.exgrpo.experience.importing import Importer
from recipe.exgrpo.experience.questions import Questions
from recipe.exgrpo.experience.rendering import Renderer
from recipe.exgrpo.experience.sources import Source
from recipe.exgrpo.experience.target import Target
from recipe.exgrpo.experience.tokenizers import load_tokenizer
from recipe.exgrpo.experience.traces import Columns

MODEL = str(Path(__file__).resolve().parents[2] / "data" / "toy" / "model")
K = 4


def row_of(question: str, answer: str = "4") -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"What is {question}?"}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0, "question_id": question},
    }


def boxed(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """A reward: the text ends with the gold answer, and was not cut off."""
    right = solution_str.endswith(f"={ground_truth}") and not (extra_info or {}).get("truncated")
    return {"score": float(right), "acc": float(right)}


def target(questions=("1+3", "2+2", "3+1"), tokenizer=None, function=boxed, **changes) -> Target:
    """A run on `questions`, whose answers are all 4."""
    tokenizer = tokenizer or load_tokenizer(MODEL)
    values = {
        "questions": Questions({question: row_of(question) for question in questions}),
        "renderer": Renderer(tokenizer, model_type=lambda: "qwen2"),
        "grading": Grading(function, {}),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": template_fingerprint(tokenizer, {}),
        "temperature": 1.0,
        "max_prompt": 64,
        "max_response": 32,
        "vocabulary": len(tokenizer),
    }
    return Target(**values | changes)


def rated(pairs):
    """A start policy: log-probs that are a function of prompt and response, below 0."""
    return [np.float32(-1e-3 * (1 + ids + 7 * len(prompt))) for prompt, ids in pairs]


def imported(*paths: Path, into=None, on=None, tag=None, columns=None, score=rated, **settings):
    """Import files into a buffer; returns (buffer, report)."""
    buffer = into if into is not None else ExperienceBuffer(K)
    importer = Importer(on or target(), buffer, ExperienceConfig(**settings), score)
    for path in paths:
        importer.read(Source(path, columns or Columns()), tag)
    return buffer, importer.report


def write(path: Path, *rows: dict | str) -> Path:
    """A JSON-lines or parquet file."""
    if path.suffix == ".parquet":
        pd.DataFrame(list(rows)).to_parquet(path)
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def stored(buffer: ExperienceBuffer) -> list:
    """Every trajectory, in order of storage."""
    return [buffer.trajectory(row) for row in buffer.candidates().row.tolist()]

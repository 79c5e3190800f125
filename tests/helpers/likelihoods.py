"""Stored responses under a model: the reference is plain transformers in float64, one unpadded sequence at a time."""

from pathlib import Path

import numpy as np
import torch
import transformers

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.trainer.scoring import Candidate

LENGTHS = ((3, 5), (9, 1), (6, 12), (4, 8), (7, 3), (2, 20))


def make_candidates(lengths=LENGTHS) -> list[Candidate]:
    """Random tokens of the toy vocabulary, (prompt, response) long."""
    rng = np.random.default_rng(0)
    rows = []
    for row, (prompt, response) in enumerate(lengths):
        ids = rng.integers(0, 280, response).astype(np.int32)
        stored = Trajectory(row, "q", ids, np.zeros(response, np.float32), np.ones(response, bool), 1.0, 0)
        rows.append(Candidate(torch.as_tensor(rng.integers(0, 280, prompt)), stored))
    return rows


def reference(folder: Path | str, candidates: list[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """(entropy, negative log-likelihood), means over each response, float64 [n]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    found = []
    for candidate in candidates:
        response = torch.as_tensor(candidate.trajectory.token_ids, dtype=torch.int64)
        with torch.no_grad():
            logits = model(torch.cat([candidate.prompt, response])[None]).logits[0, len(candidate.prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        found.append((float(entropy), float(-log_p[torch.arange(len(response)), response].mean())))
    return tuple(np.array(found).T)

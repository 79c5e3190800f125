"""vLLM (CPU) with small random models of each architecture: what it samples it gives the log-probs of plain transformers.

The table of docs/models.md. The trainer's side of it is tests/trainer/test_families.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from transformers import AutoModelForCausalLM

from recipe.exgrpo.presets.compose import ROOT

pytestmark = pytest.mark.scripts


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> dict[str, dict]:
    """Family -> its folder and the sampled rows, from one process for all."""
    folder = tmp_path_factory.mktemp("families")
    paths = os.pathsep.join(map(str, (ROOT / "tests/helpers", ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, ROOT / "tests/e2e/vllm_families.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines())
    return {line["family"]: line for line in lines}


def gaps(folder: Path | str, rows: list[dict]) -> np.ndarray:
    """The largest difference of a log-prob to plain transformers in float64, of each row."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager"), []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["prompt"] + row["tokens"]])).logits[0, len(row["prompt"]) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(row["tokens"])), row["tokens"]]
        found.append(np.abs(expected.numpy() - row["log_probs"]).max())
    return np.array(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sampled_has_the_log_probs_of_plain_transformers(generated, family):
    rows = generated[family]["rows"]
    assert gaps(generated[family]["folder"], rows).max() < 1e-4
    assert len({tuple(row["tokens"]) for row in rows}) > len(rows) // 2


def test_responses_end_with_their_end_though_it_pads_too(generated):
    rows = [(family["end"], row["tokens"], row["ended"]) for family in generated.values() for row in family["rows"]]
    assert any(ended for _, _, ended in rows)
    assert all((tokens[-1] == end) is ended and end not in tokens[:-1] for end, tokens, ended in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_thinking_off_the_prompt_is_longer_by_the_empty_thought(generated, family):
    prompts = sorted({tuple(row["prompt"]) for row in generated[family]["rows"]}, key=len)
    assert len(prompts) == 2
    assert prompts[1][: len(prompts[0])] == prompts[0]

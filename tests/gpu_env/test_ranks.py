"""Two ranks of verl's FSDP2 engine over gloo: what they score, save and merge is the model that plain transformers loads.

For `make test-gpu-env`, and in `make test-long` with the CPU environment's versions.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families import model_folder
from likelihoods import make_candidates, reference

from recipe.exgrpo.presets.compose import ROOT
from verl_ext.evaluation.model import find_model, merged

pytestmark = [pytest.mark.verl, pytest.mark.long]

LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=32")
FUSED = ("actor_rollout_ref.model.use_fused_kernels=true",)


def on_two_ranks(folder: Path, family: str, *overrides: str) -> subprocess.CompletedProcess:
    """`ranks.py` with a small model of that family in `folder/model`."""
    model = model_folder(family, folder / "model")
    paths = os.pathsep.join(map(str, (ROOT / "tests/helpers", ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        ROOT / "tests/gpu_env/ranks.py",
        folder,
        "hardware=tiny",
        f"actor_rollout_ref.model.path={model}",
        *overrides,
    ]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False)


def scores(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in json.loads((folder / "scores.json").read_text()).items()}


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        pytest.param("Qwen2, untied", (), id="untied embeddings"),
        pytest.param("Qwen2, tied", FUSED, id="fused kernels, tied embeddings"),
    ],
)
def test_two_shards_are_one_model(tmp_path, family, overrides):
    done = on_two_ranks(tmp_path, family, *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    entropy, nll = reference(tmp_path / "model", make_candidates())
    np.testing.assert_allclose(scores(tmp_path)["nll"], nll, atol=2e-5)
    np.testing.assert_allclose(scores(tmp_path)["entropy"], entropy, atol=2e-5)
    whole = merged(find_model(str(tmp_path / "global_step_1")), tmp_path)
    assert np.abs(reference(whole, make_candidates())[1] - nll).max() < 0.05  # merged in bfloat16


def test_fused_kernels_fail_on_untied_embeddings(tmp_path):
    """What `exgrpo check` refuses (checks/model.py): a plain weight meets one that is dealt out over ranks."""
    done = on_two_ranks(tmp_path, "Qwen2, untied", *FUSED)
    assert done.returncode != 0
    assert "mixed torch.Tensor and DTensor" in done.stderr


def test_adapters_of_two_ranks_are_merged_into_what_was_scored(tmp_path):
    done = on_two_ranks(tmp_path, "Qwen2, untied", *LORA)
    assert done.returncode == 0, done.stderr[-4000:]
    here, (_, base) = scores(tmp_path)["nll"], reference(tmp_path / "model", make_candidates())
    whole = merged(find_model(str(tmp_path / "global_step_1")), tmp_path)
    _, there = reference(whole, make_candidates())
    effect = np.abs(here - base).mean()
    assert effect > 0.1
    assert np.abs(here - there).mean() < 0.1 * effect  # merged in bfloat16

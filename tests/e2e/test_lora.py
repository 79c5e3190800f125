"""LoRA on the real stack (CPU): three steps in vLLM's adapter mode, resume, another rank refused, the checkpoint merged."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipe.exgrpo.presets.compose import ROOT
from verl_ext.evaluation.model import find_model, merged

pytestmark = [pytest.mark.stack, pytest.mark.long]

LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=1e-2", "trainer.save_freq=3")


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    found = toy(tmp_path_factory.mktemp("lora") / "run", 3, *LORA)
    assert found.code == 0, found.output[-4000:]
    return found


def test_vllm_samples_from_the_adapter_of_every_step(run):
    """After the first update the adapter is not zero: a wrong sync leaves vLLM at other log-probs (0.1 and more)."""
    for step in (1, 2, 3):
        assert run.metrics[step]["training/rollout_probs_diff_max"] < 1e-4
        assert run.metrics[step]["actor/grad_norm"] > 0


def test_stored_trajectories_are_scored_and_replayed_under_it(run):
    """Their importance weight is the adapter's work: the base model never moves, its ratio would stay at 1."""
    for step in (2, 3):
        row = run.metrics[step]
        assert row["experience/candidates_scored"] >= row["experience/replayed_questions"] > 0
        assert abs(row["actor/replay_ratio_mean"] - 1) > 1e-3


def test_the_merged_checkpoint_is_not_the_base_model(run, tmp_path):
    folder = merged(find_model(str(run.folder / "global_step_3")), tmp_path)
    ids = torch.arange(40)[None]
    models = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, ROOT / "data/toy/model")
    )
    with torch.no_grad():
        ours, base = (model(ids).logits for model in models)
    assert (ours - base).abs().max() > 0.5
    assert not (folder / "lora_adapter").exists()


def test_another_rank_is_refused_and_the_same_one_resumes(toy, run):
    other = toy(run.folder, 4, *LORA, "actor_rollout_ref.model.lora_rank=4")
    assert other.code == 2
    assert "exgrpo.resume_allow=[model]" in other.output
    resumed = toy(run.folder, 4, *LORA)
    assert resumed.code == 0, resumed.output[-4000:]
    assert sorted(resumed.metrics) == [1, 2, 3, 4]
    assert resumed.metrics[4]["training/rollout_probs_diff_max"] < 1e-4
    assert resumed.metrics[4]["experience/replayed_questions"] > 0
